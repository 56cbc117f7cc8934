"""Baseline: a network on the straight line between two checkpoints, aligned beforehand or not.

Shapes: M samples, P values of a network.
Sources: linear interpolation after permutation alignment, Git Re-Basin (arXiv 2209.04836), section 4
It is the bar of novelty that the weight-space position paper asks for (arXiv 2605.18632, section 3.5).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from weightloom.generators.base import Request, generators, sample_generators
from weightloom.generators.nearest import TasksGenerator
from weightloom.weights import align
from weightloom.weights.mixing import interpolate


@generators.register("interpolation")
class Interpolation(TasksGenerator):
    """Two checkpoints of the nearest tasks, mixed in a share drawn evenly from 0 to 1.

    One checkpoint alone is given as it is.
    """

    kind: ClassVar[str] = "interpolation"
    aligned: ClassVar[bool] = False

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) mixtures, pair and share drawn from each sample's own stream."""
        found = self.neighbours(request)
        rows = [row for task in found.tasks(self.tasks) for row in found.rows_of(task)]
        zoo = self.flats(found)
        made, reports = [], []
        for stream in sample_generators(request):
            pair = [rows[place] for place in torch.randperm(len(rows), generator=stream)[:2].tolist()]
            share = float(torch.rand((), generator=stream))
            one, other = zoo[pair[0]], zoo[pair[-1]]
            if self.aligned and len(pair) == 2:
                other = align(request.architecture, one, other[None])[0]
            made.append(interpolate(one, other, share))
            reports.append(
                {
                    "checkpoints": [found.group.rows[row].get("id") for row in pair],
                    "checkpoint_tasks": [found.group.rows[row]["task"] for row in pair],
                    "share": share if len(pair) == 2 else 0.0,
                }
            )
        return torch.stack(made), reports


@generators.register("aligned-interpolation")
class AlignedInterpolation(Interpolation):
    """The same, the second checkpoint's units brought into the order of the first one's."""

    kind: ClassVar[str] = "aligned-interpolation"
    aligned: ClassVar[bool] = True
