"""What a generator is told, encoded: words, examples, architecture. Every part may be missing.

Shapes: B requests, C classes, F features of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A batch of conditions that share an architecture and a class count.

    instruction (B, 384) with has_instruction (B,) bool; classes (B, C, F) with has_classes (B,) bool;
    has_architecture: whether the architecture's own description is used; initial (B, T, D): the codes that a
    request starts from, used where has_initial (B,) bool says so; initial_from: what each is, in words;
    supports: for each request its support set (C, S, channels, height, width) if the head starts from it once
    the trunk stands, else None; () for none.
    """

    instruction: Tensor
    has_instruction: Tensor
    classes: Tensor
    has_classes: Tensor
    has_architecture: bool = True
    initial: Tensor | None = None
    has_initial: Tensor | None = None
    initial_from: tuple[str | None, ...] = ()
    supports: tuple[Tensor | None, ...] = ()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classes.shape[1]

    def __len__(self) -> int:
        return len(self.instruction)

    def without(self, *parts: str) -> Condition:
        """The same condition with ``instruction``, ``dataset`` or ``architecture`` taken away."""
        assert set(parts) <= {"instruction", "dataset", "architecture"}
        return Condition(
            instruction=self.instruction,
            has_instruction=self.has_instruction & ("instruction" not in parts),
            classes=self.classes,
            has_classes=self.has_classes & ("dataset" not in parts),
            has_architecture=self.has_architecture and "architecture" not in parts,
            initial=self.initial,
            has_initial=None if self.has_initial is None else self.has_initial & ("dataset" not in parts),
            initial_from=self.initial_from,
            supports=() if "dataset" in parts else self.supports,
        )

    def rows(self, chosen: slice) -> Condition:
        """Some requests of the batch."""
        return Condition(
            instruction=self.instruction[chosen],
            has_instruction=self.has_instruction[chosen],
            classes=self.classes[chosen],
            has_classes=self.has_classes[chosen],
            has_architecture=self.has_architecture,
            initial=None if self.initial is None else self.initial[chosen],
            has_initial=None if self.has_initial is None else self.has_initial[chosen],
            initial_from=self.initial_from[chosen],
            supports=self.supports[chosen],
        )

    def repeat(self, times: int) -> Condition:
        """Every request ``times`` times in a row."""
        return Condition(
            instruction=self.instruction.repeat_interleave(times, 0),
            has_instruction=self.has_instruction.repeat_interleave(times, 0),
            classes=self.classes.repeat_interleave(times, 0),
            has_classes=self.has_classes.repeat_interleave(times, 0),
            has_architecture=self.has_architecture,
            initial=None if self.initial is None else self.initial.repeat_interleave(times, 0),
            has_initial=None if self.has_initial is None else self.has_initial.repeat_interleave(times, 0),
            initial_from=tuple(words for words in self.initial_from for _ in range(times)),
            supports=tuple(images for images in self.supports for _ in range(times)),
        )


def stack_conditions(
    instructions: Sequence[Tensor | None],
    classes: Sequence[Tensor | None],
    *,
    text_width: int,
    shape: tuple[int, int],
    initial: Sequence[Tensor | None] | None = None,
) -> Condition:
    """One batch from single encodings, None where a part is missing; ``shape`` is (C, F)."""
    assert len(instructions) == len(classes)
    codes = None
    known = [i for i in initial or () if i is not None]
    if initial is not None and known:
        codes = torch.stack([torch.zeros_like(known[0]) if i is None else i for i in initial])
    return Condition(
        instruction=torch.stack([torch.zeros(text_width) if i is None else i for i in instructions]),
        has_instruction=torch.tensor([i is not None for i in instructions]),
        classes=torch.stack([torch.zeros(shape) if c is None else c for c in classes]),
        has_classes=torch.tensor([c is not None for c in classes]),
        initial=codes,
        has_initial=None if codes is None else torch.tensor([i is not None for i in initial or ()]),
    )
