"""What a generator starts from where there are examples: the best guess that costs no training.

Knows nothing of what is made of the guess.

Shapes: T tokens of a network, D codes a token, C classes, S examples a class, F features of a class, P values
of a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import SupportEncoder
from weightloom.fitting import accuracy, closed_form_network, recalibrate
from weightloom.generators.fingerprint import Fingerprint
from weightloom.tokenizers import WeightTokenizer


class StartsFromGuess:
    """First guesses of a generator that has a tokenizer, an encoder of examples and perhaps checkpoints."""

    tokenizer: WeightTokenizer
    images: SupportEncoder
    fingerprint: Fingerprint | None

    def closed_form(self, spec: ArchitectureSpec, support: Tensor, trunk: Tensor | None = None) -> Tensor:
        """(P,) closed-form head for a support set on ``trunk`` (P,), the zoo's mean network where it is
        None.
        """
        trunk = self.tokenizer.centre(spec) if trunk is None else trunk
        return closed_form_network(spec, trunk, support, head_rms=self.tokenizer.head_rms(spec))

    @torch.no_grad()
    def first_guess(self, spec: ArchitectureSpec, support: Tensor) -> tuple[Tensor, str, bool]:
        """What generation starts from for a support set (C, S, channels, height, width).

        Closed-form networks on the zoo's mean trunk and on that of the most alike tasks, and the checkpoint
        of the most alike task (their mean if there are several), are compared on examples that the heads were
        not made from. The best is taken; a closed-form one is then made from all examples.

        Returns:
            (T, D) codes, what they are in words, and whether the head is a closed form.
        """
        described = self.images.describe(support)
        near = None if self.fingerprint is None else self.fingerprint.trunk_near(spec, described)
        trunks = {"closed form": self.tokenizer.centre(spec)}
        if near is not None:
            trunks = {"closed form on alike trunks": near, **trunks}
        best = next(iter(trunks))
        known, what = self._known_like(spec, described)
        shots = support.shape[1]
        if shots >= 4 and near is not None:
            half = shots // 2
            part = support[:, :half]
            tried = [self.closed_form(spec, part, trunk) for trunk in trunks.values()]
            if known is not None:
                kept = self.tokenizer.decode(spec, known[None])
                tried.append(recalibrate(spec, kept, part.flatten(0, 1))[0])
            images = support[:, half:].flatten(0, 1)  # (C, S - half, ...) -> (C * (S - half), ...)
            labels = torch.arange(len(support)).repeat_interleave(shots - half)
            held = int(accuracy(spec, torch.stack(tried), images, labels).argmax())
            if held == len(trunks):
                assert known is not None
                return known, what, False
            best = list(trunks)[held]
        flat = self.closed_form(spec, support, trunks[best])
        return self.tokenizer.encode(spec, flat[None])[0], best, True

    def taught_guess(self, spec: ArchitectureSpec, support: Tensor) -> tuple[Tensor, str, bool]:
        """What a training task starts from in training; as in generation where nothing else is said."""
        return self.first_guess(spec, support)

    def _known_like(self, spec: ArchitectureSpec, described: Tensor) -> tuple[Tensor | None, str]:
        """(T, D) codes kept for the task that looks most like ``described`` (C, 2F), and what they are."""
        group = None if self.fingerprint is None else self.fingerprint.groups.get(spec)
        if group is None or not group.rows:
            return None, ""
        return group.known(self.fingerprint.nearest_row(spec, described))  # type: ignore[union-attr]
