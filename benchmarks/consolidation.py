"""The table of consolidated checkpoints: sizes counted every way, errors of weights by layer and of outputs.

Every checkpoint is decoded from the file and held against the original, which has to be installed, and beside
plain rounding to 8 and 4 bits with one 16-bit scale for each output channel. Inputs are those of the part
``evaluation``: neither codes nor steps were made with them.

    weightloom train consolidated --out runs/consolidated
    python benchmarks/consolidation.py --generator runs/consolidated
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.consolidation.catalogue import published
from weightloom.consolidation.compress import is_matrix, outputs, relative_error
from weightloom.consolidation.inputs import inputs
from weightloom.consolidation.networks import networks
from weightloom.consolidation.packing import duplicates
from weightloom.generators.consolidated import MIN_SIMILARITY, Consolidated
from weightloom.io import cache_dir, write_json, write_text

HERE = Path(__file__).parent
COMMAND = "python benchmarks/consolidation.py --generator runs/consolidated"
ASKED = {
    "the ImageNet MobileNetV2": "mobilenet-v2",
    "a pretrained MobileNet for recognising objects on a phone": "mobilenet-v2",
    "EfficientNet-Lite 1 for ImageNet": "efficientnet-lite1",
    "embed sentences for semantic search": "minilm-l6",
    "track the fundamental frequency of singing, full model": "crepe-full",
    "recognise the speaker from a voice recording": "resemblyzer",
    "is anybody talking in this audio": "silero-vad",
    "convert English spelling to phonemes": "g2p-en",
    "predict energies of crystals": "chgnet-0.3.0",
    "find bats in ultrasonic recordings": "batdetect2-same",
    "clean EEG of eye blinks": "iclabel",
    "locate the eyes and mouth in a face": "mtcnn-onet",
}
"""Wordings that no checkpoint was given, and what each should find."""
MARKS = ("<!-- figures: benchmarks/consolidation.py writes them -->", "<!-- end of figures -->")
ELSEWHERE = (
    "translate Latin poems",
    "a cat",
    "generate music",
    "predict stock prices",
    "large language model",
    "Recognise handwritten digits",
    "tell apart pictures of clothing",
    "ResNet50 for ImageNet",
)
"""What is not there."""


def rounded(state: Mapping[str, Tensor], bits: int) -> tuple[dict[str, Tensor], float]:
    """Round to nearest with a 16-bit scale for each output channel; and the bits of all of it."""
    made, total = {}, 0.0
    twice = duplicates(state)
    for name, tensor in state.items():
        if is_matrix(tensor):
            weight = tensor.flatten(1)
            largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
            scale = (largest / (2 ** (bits - 1) - 1)).half().float().clamp(min=6e-8)
            made[name] = ((weight / scale).round() * scale).reshape(tensor.shape)
            cost = bits * tensor.numel() + 16 * len(weight)
        else:
            made[name] = tensor
            cost = (24 if tensor.is_floating_point() else 8 * tensor.element_size()) * tensor.numel()
        total += 0 if name in twice else cost
    return made, total


def weight_error(made: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> float:
    """Relative error of all values that have a point."""
    names = [name for name, tensor in true.items() if tensor.is_floating_point()]
    flat = [torch.cat([state[name].reshape(-1) for name in names]) for state in (made, true)]
    return relative_error(*flat)


def measure(model: Consolidated, name: str, speech: Path, count: int) -> dict[str, Any]:
    """One row of the table."""
    entry = published(name)
    true = entry.read()
    start = time.perf_counter()
    made = model.state(name)
    seconds = time.perf_counter() - start
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in true.items()}
    sizes, values = model.sizes(name), model.about[name]["num_parameters"]
    matrices = sum(t.numel() for n, t in true.items() if is_matrix(t) and n not in duplicates(true))
    plain = {bits: rounded(true, bits) for bits in (8, 4)}
    row: dict[str, Any] = {
        "checkpoint": name,
        "package": entry.package,
        "licence": entry.licence,
        "base": entry.base,
        "parameters": values,
        "bytes": sizes,
        "bits_per_weight": 8 * sum(sizes.values()) / values,
        "bits_per_coded_weight": 8 * sizes["stream"] / max(1, matrices),
        "decoding_seconds": seconds,
        "weight_error": weight_error(made, true),
        "rounded_8": {
            "bits_per_weight": plain[8][1] / values,
            "weight_error": weight_error(plain[8][0], true),
        },
        "rounded_4": {
            "bits_per_weight": plain[4][1] / values,
            "weight_error": weight_error(plain[4][0], true),
        },
        "layers": {n: round(relative_error(made[n], t), 6) for n, t in true.items() if t.is_floating_point()},
        "inputs": None,
    }
    if entry.network is not None and entry.inputs is not None:
        forward = networks.get(entry.network)
        x = inputs.get(entry.inputs)("evaluation", count, speech, true)
        right = outputs(forward, true, x)
        row["inputs"], row["num_inputs"] = entry.inputs, len(x)
        row["output_error"] = relative_error(outputs(forward, made, x), right)
        for bits in (8, 4):
            row[f"rounded_{bits}"]["output_error"] = relative_error(
                outputs(forward, plain[bits][0], x), right
            )
    return row


def total(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Everything counted: the two files as they lie on the disk."""
    files = {name: (folder / name).stat().st_size for name in ("model.safetensors", "config.json")}
    values = sum(row["parameters"] for row in rows)
    seen = [row for row in rows if row["inputs"] is not None]
    own = sum(sum(row["bytes"].values()) for row in rows)

    def mean(key: str) -> float:
        return sum(row[key]["bits_per_weight"] * row["parameters"] for row in rows) / values

    return {
        "checkpoints": len(rows),
        "parameters": values,
        "files": files,
        "bits_per_weight": 8 * sum(files.values()) / values,
        "bits_per_weight_without_prior_and_names": 8 * own / values,
        "rounded_8_bits_per_weight": mean("rounded_8"),
        "rounded_4_bits_per_weight": mean("rounded_4"),
        "measured_on_inputs": len(seen),
        "measured_bits_per_weight": 8
        * sum(sum(row["bytes"].values()) for row in seen)
        / max(1, sum(row["parameters"] for row in seen)),
        "largest_output_error": max((row["output_error"] for row in seen), default=None),
        "within_1_percent": sum(row["output_error"] <= 0.01 for row in seen),
        "within_1_percent_and_6_bits": sum(
            row["output_error"] <= 0.01 and row["bits_per_weight"] <= 6 for row in seen
        ),
        "rounded_8_within_1_percent": sum(row["rounded_8"]["output_error"] <= 0.01 for row in seen),
    }


def report(result: Mapping[str, Any]) -> str:
    """The figures as they stand in docs/consolidation.md."""

    def share(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.2%}".replace("%", " %")

    whole = result["total"]
    files = sum(whole["files"].values())
    right = [f for f in result["retrieval"] if f["found"] == f["wanted"]]
    wrong = [f for f in result["not_there"] if f["answered"]]
    taken = "; ".join(f"'{f['instruction']}' with {f['nearest']}" for f in wrong)
    head = [
        "checkpoint",
        "parameters",
        "bits a weight",
        "weights off",
        "outputs off",
        "8 bits: outputs",
        "4 bits: outputs",
        "licence",
    ]
    lines = [
        f"{whole['checkpoints']} checkpoints, {whole['parameters']:,} parameters, {files:,} bytes on",
        "the disk with prior, steps, names and wordings:",
        f"**{whole['bits_per_weight']:.2f} bits a weight**, everything counted.",
        f"{whole['measured_on_inputs']} are measured on real inputs, at",
        f"{whole['measured_bits_per_weight']:.2f} bits a weight together: their outputs are at most",
        f"{share(whole['largest_output_error'])} off and {whole['within_1_percent']} are within 1 %;",
        f"{whole['within_1_percent_and_6_bits']} are within 1 % at 6 bits or less each. Rounded to 8 bits,",
        f"{whole['rounded_8_within_1_percent']} are within 1 %.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * 6 + "---|",
    ]
    for row in result["checkpoints"]:
        cells = [
            row["checkpoint"],
            f"{row['parameters']:,}",
            f"{row['bits_per_weight']:.2f}",
            share(row["weight_error"]),
            share(row.get("output_error")),
            share(row["rounded_8"].get("output_error")),
            share(row["rounded_4"].get("output_error")),
            row["licence"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "With the 16-bit scales and 24-bit vectors that they need, 8 bits are",
        f"{whole['rounded_8_bits_per_weight']:.2f} bits a weight and 4 bits",
        f"{whole['rounded_4_bits_per_weight']:.2f}.",
        "",
        f"Of {len(result['retrieval'])} sentences that no checkpoint was given, {len(right)} find the",
        f"one that was meant, {sum(f['answered'] for f in right)} of them above the threshold; of",
        f"{len(result['not_there'])} that ask for something else, {len(wrong)} are answered all the same"
        + (f" ({taken})." if wrong else "."),
        "The threshold was set on these sentences.",
    ]
    return "\n".join(lines)


def write_report(result: Mapping[str, Any], page: Path = HERE.parent / "docs" / "consolidation.md") -> str:
    """The page with the figures of ``result`` between its two marks."""
    before, _, rest = page.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n\n{report(result)}\n\n{MARKS[1]}{after}"


def main() -> None:
    """Measure everything and write ``benchmarks/results/consolidation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, default=Path("runs/consolidated"))
    parser.add_argument("--speech", type=Path, default=cache_dir("speech"))
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "consolidation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Consolidated.from_pretrained(options.generator)
    rows = []
    for name in model.about:
        row = measure(model, name, options.speech, options.inputs)
        rows.append(row)
        print(
            f"{name:20} {row['parameters']:>11,} {row['bits_per_weight']:.2f} bits, weights "
            f"{row['weight_error']:.2%}, outputs {row.get('output_error', float('nan')):.2%} "
            f"(8 bits {row['rounded_8'].get('output_error', float('nan')):.2%})",
            flush=True,
        )
    found = []
    for text, wanted in ASKED.items():
        if wanted in model.about:
            first, second = model.find(text)[:2]
            found.append(
                {
                    "instruction": text,
                    "wanted": wanted,
                    "found": first.name,
                    "similarity": first.similarity,
                    "next": second.name,
                    "next_similarity": second.similarity,
                    "answered": first.similarity >= MIN_SIMILARITY,
                }
            )
    absent = []
    for text in ELSEWHERE:
        first = model.find(text)[0]
        absent.append(
            {
                "instruction": text,
                "nearest": first.name,
                "similarity": first.similarity,
                "answered": first.similarity >= MIN_SIMILARITY,
            }
        )
    result = {
        "command": COMMAND,
        "device": f"CPU, 1 thread, torch {torch.__version__}",
        "total": total(rows, options.generator),
        "checkpoints": rows,
        "retrieval": found,
        "not_there": absent,
    }
    write_json(options.out, result)
    page = HERE.parent / "docs" / "consolidation.md"
    write_text(page, write_report(result, page))
    for key, value in result["total"].items():
        print(f"{key}: {value}")
    print(f"retrieval: {sum(f['found'] == f['wanted'] for f in found)} of {len(found)}")


if __name__ == "__main__":
    main()
