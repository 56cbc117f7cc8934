"""``c``: one C99 file without heap or dependencies, for networks of up to 100,000 parameters.

For ``int8`` the weights of convolutions and products are rounded for each output channel, and everything is
computed in floats: nothing has to be calibrated, and accuracy is that of the float file within
a tenth of a point or two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.errors import WeightloomError
from weightloom.export.base import Job, NotChecked, Target, targets
from weightloom.export.c_code import source
from weightloom.export.compilers import answers_of, build, footprints, found_compiler

MOST_PARAMETERS = 100_000


class _C(Target):
    """One file with the weights as arrays and memory as one static array."""

    name, suffix = "c", ".c"
    rounds = True

    def refusal(self, network: nn.Module) -> str | None:
        count = sum(values.numel() for values in network.parameters())
        if count <= MOST_PARAMETERS:
            return None
        return f"c is for networks of up to {MOST_PARAMETERS:,} parameters; this one has {count:,}"

    def write(self, job: Job) -> list[Path]:
        job.file.write_text(source(job.network, job.facts, int8=job.int8), encoding="ascii")
        return [job.file]

    def run(self, job: Job, images: Tensor) -> tuple[Tensor, str]:
        compiler = found_compiler()
        if compiler is None:
            raise NotChecked("there is no C compiler (cc, gcc or clang)")
        program = build(compiler, job.file, job.folder / "weightloom_check")
        said = answers_of(program, images.contiguous().numpy().tobytes())
        answers = np.frombuffer(said, dtype=np.float32).copy()
        if len(answers) != len(images) * len(job.facts.class_names):
            raise WeightloomError("the compiled C file does not answer every picture")
        return torch.from_numpy(answers).reshape(len(images), -1), f"{compiler}, compiled and run"

    def more(self, job: Job) -> dict[str, Any]:
        return {"footprint": footprints(job.file)}


targets.register("c")(_C())
