"""Class names on the command line, and which generator answers where none is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightloom.cli.inputs import load_task, plain_text
from weightloom.cli.output import working

if TYPE_CHECKING:
    from weightloom.architectures import ArchitectureSpec
    from weightloom.generators import Validity
    from weightloom.tasks import Task

FIRST, OTHER = "words-small", "layerwise-tiny"
"""Bundled generators: one that reads names, for four architectures, one for any depth and width."""

Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES",
        help="The names of the classes, in the order of the outputs: 'cat, dog, truck'.",
    ),
]
GeneratorOrNone = Annotated[
    str | None,
    typer.Option(
        "--generator",
        metavar="NAME",
        help="A bundled name, a local folder, or a hub id. Left out: the one that answers left-out examples "
        f"best, of those that make the architecture ({FIRST}, {OTHER}, pretrained).",
    ),
]


def given_names(classes: str | None) -> tuple[str, ...] | None:
    """The class names of ``--classes``. Raises InputError where they are none."""
    if classes is None:
        return None
    from weightloom.conditioning.names import parse_names

    return parse_names(plain_text(classes, "class names"))


def default_generators(
    names: tuple[str, ...] | None,
    instruction: str | None,
    spec: ArchitectureSpec,
    *,
    classes: int | None,
    more: bool = False,
) -> tuple[str, ...]:
    """Which bundled generators can answer: it follows from what the request has.

    ``classes`` is the number of classes of the examples, None without examples; ``more`` says whether there
    are pictures without labels. Where classes are only listed in the sentence, the request is for words alone
    if it can be answered so. Examples need no sentence encoder: where none is installed, the other generator
    answers.

    Raises:
        UnsupportedRequestError: pictures without labels for an architecture that only the other one makes.
    """
    from weightloom.conditioning.text import reads_text
    from weightloom.errors import UnsupportedRequestError

    if classes is not None:
        first = reads_text() and _makes(spec, classes)
        if more and not first:
            makes = "; ".join(_validity(FIRST).listed())
            raise UnsupportedRequestError(
                f"pictures without labels are used by {FIRST}, with the extra text; it makes: {makes}"
            )
        limits = _validity(OTHER)
        other = not more and classes <= limits.max_classes and spec.input in (None, limits.input)
        return (FIRST,) * first + (OTHER,) * other or (FIRST,)
    if names is not None:
        return (FIRST,)
    if instruction is None:
        return (OTHER,)
    from weightloom.conditioning.names import names_in

    listed = names_in(instruction)
    return (FIRST,) if listed is not None and _makes(spec, len(listed)) else (OTHER,)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a request shows of its task, as on the command line."""

    task: str | None
    data: Path | None
    unlabelled: Path | None
    skip_broken: bool
    shots: int | None
    seed: int
    batch_norm: str

    def load(self, shape: tuple[int, int, int] | None = None) -> Task | None:
        """The task, or None, for pictures of ``shape``. Raises what :func:`load_task` raises."""
        # Without examples it is said of the pictures without labels.
        skip_broken = self.skip_broken and (self.data is not None or self.unlabelled is None)
        return load_task(self.task, self.data, shape, skip_broken)


def best_generator(
    names: tuple[str, ...] | None, instruction: str | None, spec: ArchitectureSpec, shown: Shown
) -> tuple[str, dict[str, float]]:
    """The bundled generator that answers, and the loss on left-out examples of each where several can.

    One network of each is made and judged; with one example a class, none can be left out, and the first
    answers.
    """
    target, more = shown.load(), shown.unlabelled is not None
    count = None if target is None else target.num_classes
    able = default_generators(names, instruction, spec, classes=count, more=more)
    if target is None or len(able) == 1 or shown.shots == 1:
        return able[0], {}
    from weightloom.generators.choice import left_out_loss
    from weightloom.generators.load import load_generator

    losses: dict[str, float] = {}
    with working("choosing a generator"):
        for name in able:
            model = load_generator(name)
            own = shown.load(model.validity.input_for(spec))
            assert own is not None
            support = own.support(shown.shots or 16, shown.seed)
            sample = model.generate_many(
                spec,
                instruction=instruction,
                support=support,
                seed=shown.seed,
                batch_norm=shown.batch_norm,
            )[0]
            losses[name] = round(left_out_loss(sample, support), 4)
    return min(losses, key=lambda name: losses[name]), losses


def _makes(spec: ArchitectureSpec, classes: int) -> bool:
    """Whether the first generator makes ``spec`` with so many classes; only its config is read."""
    from weightloom.errors import InputError

    validity = _validity(FIRST)
    if spec.classes not in (None, classes):
        return False
    try:
        validity.check(spec.resolve(classes=classes, input=validity.input_for(spec)))
    except InputError:
        return False
    return True


def _validity(name: str) -> Validity:
    """What a bundled generator can be asked for; only its config is read."""
    from weightloom.generators import Validity
    from weightloom.generators.load import BUNDLED
    from weightloom.io import read_json

    return Validity.from_json(read_json(BUNDLED / name / "config.json")["validity"])
