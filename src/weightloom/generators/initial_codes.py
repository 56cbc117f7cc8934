"""Initial codes: what a prior over codes starts from where there are examples, without any training.

Knows nothing of what is made of them.

Shapes: T tokens of a network, D codes a token, C classes, S examples a class, F features of a class, P values
of a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting import accuracy, closed_form_network, recalibrate
from weightloom.tokenizers import WeightTokenizer

if TYPE_CHECKING:
    from weightloom.generators.zoo_index import ZooIndex


class StartsFromCodes:
    """Initial codes of a generator that has a tokenizer and perhaps an index of its zoo."""

    tokenizer: WeightTokenizer
    zoo_index: ZooIndex | None

    def closed_form(self, spec: ArchitectureSpec, support: Tensor, trunk: Tensor | None = None) -> Tensor:
        """(P,) closed-form head for a support set on ``trunk`` (P,), the zoo's mean network where it is
        None.
        """
        trunk = self.tokenizer.centre(spec) if trunk is None else trunk
        return closed_form_network(spec, trunk, support, head_rms=self.tokenizer.head_rms(spec))

    @torch.no_grad()
    def initial_codes(self, spec: ArchitectureSpec, support: Tensor, classes: Tensor) -> tuple[Tensor, str]:
        """(T, D) what generation starts from for a support set (C, S, channels, height, width), and what it
        is in words; ``classes`` (C, 2F) are its examples described.

        Closed-form networks on the zoo's mean trunk and on that of the most alike tasks, and the checkpoint
        of the most alike task, are compared on examples that the heads were not made from. The best is taken;
        a closed-form one is then made from all examples.
        """
        near = None if self.zoo_index is None else self.zoo_index.trunk_near(spec, classes)
        trunks = {"closed form": self.tokenizer.centre(spec)}
        if near is not None:
            trunks = {"closed form on alike trunks": near, **trunks}
        best = next(iter(trunks))
        known = None if self.zoo_index is None else self.zoo_index.nearest(spec, classes)
        shots = support.shape[1]
        if shots >= 4 and near is not None:
            half = shots // 2
            part = support[:, :half]
            tried = [self.closed_form(spec, part, trunk) for trunk in trunks.values()]
            if known is not None:
                tried.append(recalibrate(spec, known[1][None], part.flatten(0, 1))[0])
            images = support[:, half:].flatten(0, 1)  # (C, S - half, ...) -> (C * (S - half), ...)
            labels = torch.arange(len(support)).repeat_interleave(shots - half)
            held = int(accuracy(spec, torch.stack(tried), images, labels).argmax())
            if held == len(trunks):
                assert known is not None
                return self.tokenizer.encode(spec, known[1][None])[0], f"checkpoint {known[0]['id']}"
            best = list(trunks)[held]
        flat = self.closed_form(spec, support, trunks[best])
        return self.tokenizer.encode(spec, flat[None])[0], best

    @torch.no_grad()
    def training_codes(self, spec: ArchitectureSpec, support: Tensor, classes: Tensor) -> Tensor:
        """(T, D) the closed form on the trunks of alike tasks, whatever is known: the checkpoint of a task is
        what has to be learned. Arguments as :meth:`initial_codes`'.
        """
        near = None if self.zoo_index is None else self.zoo_index.trunk_near(spec, classes)
        return self.tokenizer.encode(spec, self.closed_form(spec, support, near)[None])[0]
