"""``weightloom generate`` over a folder of consolidated checkpoints: retrieve, decode, save."""

from __future__ import annotations

from pathlib import Path

from weightloom.cli.output import emit, facts, percent, say, seconds_text, table, working
from weightloom.errors import InputError


def retrieve(folder: Path, instruction: str | None, out: Path | None, *, as_json: bool) -> None:
    """Find the checkpoint that the instruction asks for, decode it, and save it if asked to.

    Raises:
        InputError: no instruction, or nothing is alike enough.
        CheckpointError: the folder is broken.
    """
    from weightloom.generators.consolidated import Consolidated

    if instruction is None:
        raise InputError("a consolidated checkpoint is found by an instruction; say which network you want")
    model = Consolidated.from_pretrained(folder)
    with working("retrieving"):
        sample = model.generate(instruction)
    if out is not None:
        sample.save(out)
    result = {**sample.report, "tensors": len(sample.state_dict), "out": out}
    if as_json:
        emit(result)
        return
    say(f"{model.name} holds {result['checkpoint']}", style="bold")
    facts(
        [
            ("instruction", result["instruction"]),
            ("similarity", f"{result['similarity']:.2f}"),
            ("parameters", f"{result['num_parameters']:,}"),
            ("bits a weight", f"{result['bits_per_weight']:.2f}"),
            ("error on tuning inputs", percent(result["tuning_error"])),
            ("package", result["package"]),
            ("licence", result["licence"]),
            ("saved", out),
            ("time", seconds_text(result["seconds"])),
        ]
    )
    say()
    rows = [(m["checkpoint"], f"{m['similarity']:.2f}") for m in result["runners_up"]]
    table(["next alike", "similarity"], rows, numbers=["similarity"])
