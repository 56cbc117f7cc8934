"""``pt2``: the program that ``torch.export`` makes, saved by torch itself."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from weightloom.export.base import Job, Target, batches, targets
from weightloom.export.facts import NO_LICENCE
from weightloom.export.graph import exported, quiet

ABOUT = "weightloom.json"
"""The extra file of the archive that has classes, pre-processing and licence."""


class _Pt2(Target):
    """An archive for ``torch.export.load``."""

    name, suffix = "pt2", ".pt2"

    def write(self, job: Job) -> list[Path]:
        about = {
            **dict(job.facts.lines()),
            "class_names": list(job.facts.class_names),
            "preprocessing": job.facts.preprocessing(),
            "temperature": job.facts.temperature,
            "licence": job.facts.licence or NO_LICENCE,
        }
        program = exported(job.network, job.facts.input)
        with quiet():
            torch.export.save(program, job.file, extra_files={ABOUT: json.dumps(about)})
        return [job.file]

    def run(self, job: Job, images: Tensor) -> tuple[Tensor, str]:
        with quiet(), torch.inference_mode():
            network = torch.export.load(job.file).module()
            answers = torch.cat([network(part) for part in batches(images)])
        return answers, f"torch {torch.__version__.split('+')[0]}, loaded again"


targets.register("pt2")(_Pt2())
