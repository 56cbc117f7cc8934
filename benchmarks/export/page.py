"""The page that is made from the JSON: ``docs/results/export.md``."""

from __future__ import annotations

from typing import Any

from words.page import table

Row = dict[str, Any]


def short(value: float) -> str:
    """A small number."""
    return f"{value:.1e}" if value else "0"


def lost(row: Row) -> float:
    """Points of accuracy that a file has less than its network."""
    return float(round(100 * (row["before"] - row["after"]), 2))


def gained(row: Row) -> str:
    """The same as text, what is gained with a plus."""
    return f"{-lost(row):+.2f}" if lost(row) else "0"


def flash_and_ram(row: Row) -> list[tuple[str, int, int]]:
    """Compiler, bytes of flash, bytes of RAM."""
    return [(compiler, sizes["flash"], sizes["ram"]) for compiler, sizes in row["footprint"].items()]


def bars(rows: list[Row], config: dict[str, Any]) -> list[list[str]]:
    """Figure, bar, result and whether it holds."""
    found: list[tuple[str, str, str, bool]] = []
    for name in ("onnx", "pt2", "python", "c"):
        worst = max(row["difference"] for row in rows if row["to"] == name and not row["int8"])
        bar = config["difference"]
        found.append(
            (f"{name}: largest difference of logits ÷ spread", f"≤ {bar:g}", short(worst), worst <= bar)
        )
    for name in ("onnx", "c"):
        worst = max(lost(row) for row in rows if row["to"] == name and row["int8"])
        bar = config["loss"]
        found.append((f"{name}, int8: most that is lost, points", f"≤ {bar:g}", f"{worst:.2f}", worst <= bar))
    own = config["controller"]
    for row in rows:
        if row["to"] == "c" and row["architecture"] == own["architecture"] and row["task"] == "digits":
            for compiler, flash, ram in flash_and_ram(row):
                if compiler == own["compiler"]:
                    kind = f"`{own['architecture']}`, {'int8' if row['int8'] else 'float32'}, Cortex-M4"
                    for what, value in (("flash", flash), ("RAM", ram)):
                        held = value <= own["bytes"]
                        found.append((f"{kind}: {what}, bytes", f"≤ {own['bytes']:,}", f"{value:,}", held))
    return [[text, bar, value, "holds" if held else "**falls short**"] for text, bar, value, held in found]


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    held = results["exports"]
    rows: list[Row] = held["rows"]
    kinds = list(dict.fromkeys((row["architecture"], row["size"]) for row in rows))
    tools = "; ".join(dict.fromkeys(row["checked"] for row in rows))
    images = sorted({row["images"] for row in rows})
    counts = " or ".join(f"{count:,}" for count in images)
    intro = f"""Generated networks for {" and ".join(config["datasets"])}, as files that run without
Weightloom. Each file was run on {counts} test pictures and compared with its network ({tools}).
How a file is made is in [Export a network](../export.md)."""
    command = f"""`python benchmarks/run.py export`; {held["cpu_seconds"]:,} CPU-seconds. Flash and RAM are
those of `gcc -Os -c` and `size`: code, constants and buffers, without the C library, the stack, and the
caller's picture and logits."""
    parts = [
        "# Results of exports",
        intro,
        command,
        "## Against the bars",
        table(["figure", "bar", "result", ""], bars(rows, config)),
        "## Difference of logits ÷ their spread",
    ]
    differences, losses, sizes = [], [], []
    for text, size in kinds:
        own = [row for row in rows if (row["architecture"], row["size"]) == (text, size)]
        network = f"`{text}`, {size} pixels"
        worst = [
            max(row["difference"] for row in own if row["to"] == name and not row["int8"])
            for name in ("onnx", "pt2", "python", "c")
        ]
        differences.append([network, *(short(value) for value in worst)])
        for task in config["datasets"]:
            at = {(row["to"], row["int8"]): row for row in own if row["task"] == task}
            before = at["c", False]["before"]
            after = [
                f"{100 * at[name, True]['after']:.2f} ({gained(at[name, True])})" for name in ("onnx", "c")
            ]
            moved = " and ".join(f"{at[name, True]['difference']:.2f}" for name in ("onnx", "c"))
            losses.append(
                [network, task, f"{at['c', False]['images']:,}", f"{100 * before:.2f}", *after, moved]
            )
        for int8 in (False, True):
            row = next(row for row in own if row["to"] == "c" and row["int8"] == int8)
            for compiler, flash, ram in flash_and_ram(row):
                sizes.append(
                    [
                        network,
                        "int8" if int8 else "float32",
                        f"`{compiler}`",
                        f"{flash:,}",
                        f"{ram:,}",
                        f"{3 * size * size * 4:,}",
                    ]
                )
    parts += [
        "The largest over both datasets and all pictures.",
        table(["network", "onnx", "pt2", "python", "c"], differences),
        "## Accuracy before and after int8",
        "Percent, and points gained or lost. ONNX: weights int8 for each output channel, activations uint8 "
        "with ranges from training pictures. C: weights int8 for each output channel, activations float32. "
        "Differences: the largest of logits ÷ their spread, ONNX and C.",
        table(["network", "pictures", "of", "float32", "onnx int8", "c int8", "differences"], losses),
        "## Flash and RAM of the C file",
        table(["network", "weights", "compiler", "flash", "RAM", "caller's picture"], sizes),
    ]
    return "\n\n".join(parts) + "\n"
