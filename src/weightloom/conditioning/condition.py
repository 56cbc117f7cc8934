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
    has_architecture: whether the architecture's own description is used; prompt (B, T, D): the codes of a
    first guess at the network, used where has_prompt (B,) bool says so; prompt_from: what each is, in words;
    refit: for each request its support set (C, S, channels, height, width) if the guess at its head is to be
    made from it once the trunk stands, else None; () for none.
    """

    instruction: Tensor
    has_instruction: Tensor
    classes: Tensor
    has_classes: Tensor
    has_architecture: bool = True
    prompt: Tensor | None = None
    has_prompt: Tensor | None = None
    prompt_from: tuple[str | None, ...] = ()
    refit: tuple[Tensor | None, ...] = ()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classes.shape[1]

    def __len__(self) -> int:
        return len(self.instruction)

    @property
    def guessed(self) -> Tensor:
        """(B,) bool: the requests that start from a first guess."""
        if self.prompt is None:
            return torch.zeros_like(self.has_classes)
        return self.has_classes if self.has_prompt is None else self.has_prompt

    def without(self, *parts: str) -> Condition:
        """The same condition with ``instruction``, ``dataset`` or ``architecture`` taken away."""
        assert set(parts) <= {"instruction", "dataset", "architecture"}
        return Condition(
            instruction=self.instruction,
            has_instruction=self.has_instruction & ("instruction" not in parts),
            classes=self.classes,
            has_classes=self.has_classes & ("dataset" not in parts),
            has_architecture=self.has_architecture and "architecture" not in parts,
            prompt=self.prompt,
            has_prompt=None if self.has_prompt is None else self.has_prompt & ("dataset" not in parts),
            prompt_from=self.prompt_from,
            refit=() if "dataset" in parts else self.refit,
        )

    def rows(self, chosen: slice) -> Condition:
        """Some requests of the batch."""
        return Condition(
            instruction=self.instruction[chosen],
            has_instruction=self.has_instruction[chosen],
            classes=self.classes[chosen],
            has_classes=self.has_classes[chosen],
            has_architecture=self.has_architecture,
            prompt=None if self.prompt is None else self.prompt[chosen],
            has_prompt=None if self.has_prompt is None else self.has_prompt[chosen],
            prompt_from=self.prompt_from[chosen],
            refit=self.refit[chosen],
        )

    def repeat(self, times: int) -> Condition:
        """Every request ``times`` times in a row."""
        return Condition(
            instruction=self.instruction.repeat_interleave(times, 0),
            has_instruction=self.has_instruction.repeat_interleave(times, 0),
            classes=self.classes.repeat_interleave(times, 0),
            has_classes=self.has_classes.repeat_interleave(times, 0),
            has_architecture=self.has_architecture,
            prompt=None if self.prompt is None else self.prompt.repeat_interleave(times, 0),
            has_prompt=None if self.has_prompt is None else self.has_prompt.repeat_interleave(times, 0),
            prompt_from=tuple(words for words in self.prompt_from for _ in range(times)),
            refit=tuple(images for images in self.refit for _ in range(times)),
        )


def stack_conditions(
    instructions: Sequence[Tensor | None],
    classes: Sequence[Tensor | None],
    *,
    text_width: int,
    shape: tuple[int, int],
    prompts: Sequence[Tensor | None] | None = None,
) -> Condition:
    """One batch from single encodings, None where a part is missing; ``shape`` is (C, F)."""
    assert len(instructions) == len(classes)
    prompt = None
    known = [p for p in prompts or () if p is not None]
    if prompts is not None and known:
        prompt = torch.stack([torch.zeros_like(known[0]) if p is None else p for p in prompts])
    return Condition(
        instruction=torch.stack([torch.zeros(text_width) if i is None else i for i in instructions]),
        has_instruction=torch.tensor([i is not None for i in instructions]),
        classes=torch.stack([torch.zeros(shape) if c is None else c for c in classes]),
        has_classes=torch.tensor([c is not None for c in classes]),
        prompt=prompt,
        has_prompt=None if prompts is None else torch.tensor([p is not None for p in prompts]),
    )
