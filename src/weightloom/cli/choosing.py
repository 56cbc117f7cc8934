"""Which generator and architecture answer a request on the command line, and what was compared.

Shapes: U pictures without labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from weightloom.cli.inputs import load_unlabelled, plain_text
from weightloom.cli.naming import Shown, best_generator
from weightloom.cli.output import note, progress
from weightloom.errors import InputError, UnsupportedRequestError

if TYPE_CHECKING:
    from torch import Tensor

    from weightloom.architectures import ArchitectureSpec
    from weightloom.generators import Generator, Sample
    from weightloom.generators.router import Limits, Routed
    from weightloom.tasks import SupportSet, Task

AUTO = "auto"
"""``--arch`` where the examples choose."""

PLAIN = "cnn(depth=3,width=16)"
"""What a named generator makes where no architecture is named."""

SHOTS = 16
"""Examples a class where an architecture or a generator is named."""

MOST_EXAMPLES = 2000
"""Examples in all that small networks are chosen and made from at most, where ``--shots`` does not say."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Who answers, and what it is made from.

    Attributes:
        model, spec: generator and architecture.
        target, support, others: the task, its examples, the pictures without labels; None where there are
            none.
        sample: the network, where it was made to be judged.
        losses: of left-out examples, by generator, where two small ones were compared.
        routed: what was compared, where the examples chose.
    """

    model: Generator
    spec: ArchitectureSpec
    target: Task | None
    support: SupportSet | None
    others: Tensor | None
    sample: Sample | None = None
    losses: dict[str, float] = field(default_factory=dict)
    routed: Routed | None = None


def limits_of(budget: str, most_parameters: int | None, target: str) -> Limits:
    """What ``--budget``, ``--max-params`` and ``--target`` allow. Raises InputError where they are none."""
    from weightloom.evaluation.selection import parse_budget
    from weightloom.generators.router import TARGETS, Limits

    if most_parameters is not None and most_parameters < 1:
        raise InputError(f"--max-params must be at least 1, not {most_parameters}")
    bounds = [bound for bound in (most_parameters, TARGETS[target]) if bound is not None]
    return Limits(
        budget=parse_budget(plain_text(budget, "budget")), most_parameters=min(bounds) if bounds else None
    )


def answer(
    arch: str,
    generator: str | None,
    names: tuple[str, ...] | None,
    instruction: str | None,
    shown: Shown,
    limits: Limits,
) -> Answer:
    """Whatever answers: what is named, else what the examples choose, else what the names say.

    Raises:
        InputError: whatever is wrong with the request.
    """
    from weightloom.architectures import parse_architecture
    from weightloom.generators.load import load_generator
    from weightloom.generators.router import TRUNKS, without_examples
    from weightloom.generators.trunks import PUBLISHED

    shows = shown.task is not None or shown.data is not None
    arch = AUTO if arch.strip().lower() == AUTO else arch
    if arch == AUTO and generator is None and shows:
        return _routed(instruction, names, shown, limits)
    losses: dict[str, float] = {}
    text = arch
    if arch == AUTO and generator is None:
        generator, text = without_examples(
            names, instruction, limits, unlabelled=shown.unlabelled is not None
        )
    elif arch == AUTO:
        text = TRUNKS[0] if generator == "pretrained" else PLAIN
    spec = parse_architecture(plain_text(text, "architecture"))
    if generator is None and spec.family in PUBLISHED:
        generator = "pretrained"
    if generator is None:
        shown = replace(shown, shots=shown.shots or SHOTS)
        generator, losses = best_generator(names, instruction, spec, shown)
    model = load_generator(plain_text(generator, "generator"))
    shape = model.validity.input_for(spec)
    target = shown.load(shape)
    support = None if target is None else target.support(shown.shots or SHOTS, shown.seed)
    classes = len(names or ()) or (None if target is None else target.num_classes)
    _check_size(spec.resolve(classes=spec.classes or classes or 2, input=shape), limits)
    others = None
    if shown.unlabelled is not None:
        if target is None and not model.unlabelled_alone:
            raise InputError(
                f"{model.name} uses pictures without labels beside examples: give --task or --data too"
            )
        others = load_unlabelled(shown.unlabelled, target, shape, shown.skip_broken)
    return Answer(model=model, spec=spec, target=target, support=support, others=others, losses=losses)


def _check_size(spec: ArchitectureSpec, limits: Limits) -> None:
    """Raise UnsupportedRequestError where what is named is larger than what is allowed."""
    most, count = limits.most_parameters, spec.num_parameters()
    if most is not None and count > most:
        raise UnsupportedRequestError(
            f"{spec.family} has {count:,} parameters here, where --max-params or --target allow {most:,}"
        )


def _routed(instruction: str | None, names: tuple[str, ...] | None, shown: Shown, limits: Limits) -> Answer:
    from weightloom.conditioning.names import check_same_names
    from weightloom.generators import router

    first = shown.load()
    assert first is not None
    if names is not None:
        check_same_names(names, first.class_names)
    shots = shown.shots
    if shots is None:
        counts = first.data("train").labels.bincount()
        shots = min(int(counts.max()), max(SHOTS, MOST_EXAMPLES // first.num_classes))

    def task(shape: router.Shape) -> Task:
        found = first if shape == first.input_shape else shown.load(shape)
        assert found is not None
        return found

    folder = shown.unlabelled

    @cache
    def unlabelled(shape: router.Shape) -> Tensor:
        assert folder is not None
        return load_unlabelled(folder, task(shape), shape, shown.skip_broken)

    seen = router.Shown(
        task=task,
        shots=shots,
        seed=shown.seed,
        unlabelled=None if folder is None else unlabelled,
        instruction=instruction,
        batch_norm=shown.batch_norm,
    )
    with progress() as move:
        found = router.route(seen, limits, move)
    for reason in found.left_out:
        note(f"not tried: {reason}")
    winner = found.tried[0]
    better = [floor for floor in found.floors if winner.accuracy is None or floor.accuracy > winner.accuracy]
    for floor in better:
        if winner.accuracy is not None and winner.judged_by == router.LEFT_OUT_EXAMPLES:
            note(
                f"on left-out examples {floor.name} is better: {100 * floor.accuracy:.1f} % where the "
                f"network has {100 * winner.accuracy:.1f} %"
            )
    others = None if folder is None else unlabelled(found.sample.architecture.input or (3, 16, 16))
    return Answer(
        model=found.model, spec=found.sample.architecture, target=found.task, support=found.support,
        others=others, sample=found.sample, routed=found,
    )  # fmt: skip


def compared_facts(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What was compared, a line each: share of left-out examples that are answered rightly."""
    if found is None:
        return []
    lines = []
    for place, one in enumerate(found["tried"]):
        right = "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f} %, "
        loss = "" if one["loss"] is None else f"loss {one['loss']:.2f}, "
        what = f"{one['generator']} {one['architecture']}: {right}{loss}{one['seconds']:.1f} s"
        lines.append((f"on {one['judged_by']}" if not place else "", what))
    lines += [("", f"{one['name']}: {100 * one['accuracy']:.1f} %") for one in found["floors"]]
    return lines
