"""Why a generator made what it made: which part of the request mattered, which checkpoints are near, and what
the transformer looked at. Reads, and changes nothing. Knows no command line.

Shapes: P values of a network, T tokens, C classes, L blocks, H heads, S positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import encode_text
from weightloom.conditioning.names import no_names
from weightloom.defaults import with_plain_defaults
from weightloom.errors import WeightloomError
from weightloom.fitting import accuracy, interval_of
from weightloom.generators import Generator, Sampling
from weightloom.generators.igpg import IGPG
from weightloom.generators.layerwise import Layerwise
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.nn.transformer import CausalTransformer
from weightloom.tasks import SupportSet

NEAREST = 5
"""Checkpoints that are named."""


@torch.no_grad()
@with_plain_defaults
def explain(
    model: Generator,
    spec: ArchitectureSpec,
    *,
    instruction: str | None,
    support: SupportSet | None,
    images: Tensor,
    labels: Tensor,
    unlabelled: Tensor | None = None,
    batch_norm: str = "support",
    seed: int = 0,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """What drove the result for one request.

    Args:
        model: any generator; attention and nearest checkpoints are told of those that have them.
        spec: the resolved architecture.
        instruction: the request's words.
        support: the request's examples.
        images: (N, ...) on which accuracies are measured; nothing is chosen by them.
        labels: (N,).
        unlabelled: the request's pictures without labels.
        batch_norm: as the request's.
        seed: of what is drawn.
        sampling: how codes are drawn.

    Returns:
        ``removed``: accuracy of the whole request and of it without each part that it has, with their
        ``intervals`` and ``num_images`` (without the class names, they are names that no one knows);
        ``knows_checkpoints``: whether the generator carries any; ``nearest``: checkpoints by distance in
        root mean square of normalised weights, nearest first, or None; ``attention``: the share of the
        generated tokens' attention that goes to each part of the prefix (what goes to the network's own
        tokens is left out; parts sum to 1), or None; ``starts_from``.
    """
    parts: dict[str, Any] = {"instruction": instruction, "examples": support}
    if model.reads_names and support is not None:
        parts["class names"] = tuple(support.class_names)
    if unlabelled is not None:
        parts["pictures without labels"] = unlabelled

    def reached(**kept: Any) -> float | None:
        shown, names = kept["examples"], kept.get("class names")
        if shown is not None and "class names" in parts and names is None:
            shown = replace(shown, class_names=no_names(shown.num_classes))
        try:
            sample = model.generate_many(
                spec,
                instruction=kept["instruction"],
                classes=names if shown is None else None,
                support=shown,
                unlabelled=None if shown is None else kept.get("pictures without labels"),
                seed=seed,
                sampling=sampling,
                batch_norm=batch_norm,
            )[0]
        except WeightloomError:  # a generator that cannot do without this part
            return None
        return float(accuracy(spec, sample.flat[None], images, labels))

    removed: dict[str, float | None] = {"nothing": reached(**parts)}
    for name, value in parts.items():
        if value is not None:
            removed[name] = reached(**{**parts, name: None})
    if instruction is not None and support is not None and "class names" not in parts:
        removed["both"] = reached(instruction=None, examples=None)
    sample = model.generate_many(
        spec,
        instruction=instruction,
        support=support,
        unlabelled=unlabelled,
        seed=seed,
        sampling=sampling,
        batch_norm=batch_norm,
    )[0]
    return {
        "removed": removed,
        "intervals": {name: interval_of(value, len(labels)) for name, value in removed.items()},
        "num_images": len(labels),
        "knows_checkpoints": model.zoo_index is not None,
        "nearest": nearest_checkpoints(model, spec, sample.flat),
        "attention": attention_over_prefix(model, spec, instruction, support),
        "starts_from": sample.report.get("initial_codes"),
    }


def nearest_checkpoints(
    model: Generator, spec: ArchitectureSpec, flat: Tensor
) -> list[dict[str, Any]] | None:
    """The zoo's checkpoints nearest to a network (P,), by the root mean square of the difference of weights
    in units of the checkpoints' own spread.
    """
    index = model.zoo_index
    group = None if index is None else index.groups.get(spec)
    if index is None or group is None or not group.rows:
        return None
    bound = index.bind(spec)
    distance = (bound.normalise(group.flats) - bound.normalise(flat)).square().mean(1).sqrt()  # (M,)
    order = distance.topk(min(NEAREST, len(distance)), largest=False).indices.tolist()
    return [{**group.rows[row], "distance": float(distance[row])} for row in order]


def attention_over_prefix(
    model: Generator,
    spec: ArchitectureSpec,
    instruction: str | None,
    support: SupportSet | None,
) -> dict[str, float] | None:
    """Mean attention of the generated tokens to the words, the architecture and each class."""
    names = (
        [f"class {name}" for name in support.class_names] if support is not None else ["(no examples given)"]
    )
    words = "instruction" if instruction is not None else "(no instruction given)"
    layerwise = model.part_for(spec) if isinstance(model, LayerwiseSet) else model
    if isinstance(layerwise, Layerwise):
        encoded = None if instruction is None else encode_text([instruction])
        seen = None if support is None else layerwise.images.describe(support.images)[None]
        x, tokens = layerwise.sequence(spec, encoded, seen)
        return _shares(layerwise.backbone, x, tokens, [words, *names])
    if isinstance(model, IGPG) and isinstance(model.backbone, CausalTransformer):
        images = None if support is None else support.images
        condition = model.condition(spec, [instruction], [images])
        prefix, starts = model.prefix(spec, condition, model.initial_codes(spec, condition))
        if support is None:
            names = ["(no examples given)"] * condition.num_classes
        x = torch.cat([prefix, starts], dim=1)
        return _shares(model.backbone, x, starts.shape[1], [words, "architecture", *names])
    return None


def _shares(backbone: CausalTransformer, x: Tensor, tokens: int, names: list[str]) -> dict[str, float]:
    attention = backbone.attention(x)[:, 0, :, -tokens:, : len(names)]  # (L, H, T, prefix)
    share = attention.mean((0, 1, 2))
    share = share / share.sum()
    found: dict[str, float] = {}
    for name, value in zip(names, share.tolist(), strict=True):
        found[name] = found.get(name, 0.0) + value
    return found
