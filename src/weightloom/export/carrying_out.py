"""One export from beginning to end: write in a folder aside, run, compare, and only then put in place."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, UnsupportedRequestError, WeightloomError
from weightloom.export.base import (
    MOST_DIFFERENCE,
    MOST_ROUNDED,
    Exported,
    Job,
    NotChecked,
    Target,
    batches,
    targets,
)
from weightloom.export.facts import Facts, checked_names, facts_of
from weightloom.generators import Sample
from weightloom.io import atomic_file, temporary_folder
from weightloom.seeding import torch_generator
from weightloom.tasks import Task
from weightloom.weights import layout_of
from weightloom.weights.guard import require_finite
from weightloom.zoo.reading import read_checked

TEST_IMAGES = 2000
"""Test pictures on which accuracy before and after is measured (all of them if there are fewer)."""

SHOTS = 32
"""Examples a class on which int8 is calibrated, up to :data:`CALIBRATION` in all."""

CALIBRATION = 512
MOST_VALUES = 1 << 27  # of the test pictures; a quarter of them of those for int8
NOISE = 16
"""Pictures of noise on which a file is compared where there is no task."""


@with_plain_defaults
def export_network(
    network: str | Path | Sample | nn.Module,
    out: str | Path,
    *,
    to: str | None = None,
    int8: bool = False,
    probabilities: bool = False,
    task: Task | None = None,
    max_loss: float = 1.0,
    facts: Facts | None = None,
) -> Exported:
    """Write a network as a file that runs without Weightloom, and compare the two before it is there.

    Args:
        network: a file that Weightloom wrote, a sample, or any module with ``facts``.
        out: the file to write; ``.onnx``, ``.pt2``, ``.py`` or ``.c``.
        to: the target's name, where the suffix is to be checked against it.
        int8: round weights to 8 bits (``onnx``, ``c``).
        probabilities: a second output with probabilities (``onnx``).
        task: its training pictures calibrate int8, its test pictures say what rounding costs.
        max_loss: points of accuracy that int8 may cost on the task's test pictures.
        facts: what the file says; read from the network's own header where it is left out.

    Returns:
        What was written, what ran it, and how far its answers differ.

    Raises:
        UnsupportedRequestError: the target lacks an operation, a size or an option.
        DataUnavailableError: the packages behind a target are not installed.
        InputError: a file to write is the one that the network was read from.
        WeightloomError: the written file answers otherwise than the network; nothing is in its place then.

    Example:
        >>> import tempfile
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> flat = layout_of(spec).flatten(spec.initialise(0).state_dict()).detach()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export_network(Sample(spec, flat, {}), Path(folder) / "net.pt2")
        >>> done.to, done.checked.split()[0], done.difference < 1e-6
        ('pt2', 'torch', True)
    """
    target, out = _target_for(to, Path(out))
    module, facts = _opened(network, facts)
    if task is not None:
        _check_task(task, facts)
    _check_options(target, module, int8=int8, probabilities=probabilities, task=task)
    with temporary_folder() as folder:
        job = Job(
            network=module,
            facts=facts,
            folder=folder,
            name=out.name,
            int8=int8,
            probabilities=probabilities,
            calibration=_calibration(task) if int8 and target.calibrates else None,
        )
        written = target.write(job)
        places = [out.with_name(file.name) for file in written]
        _check_apart(places, facts.source)
        images, labels = _test_images(task, facts)
        expected = logits_of(module, images)
        checked, unchecked, difference, accuracies = None, None, None, None
        try:
            got, checked = target.run(job, images)
        except NotChecked as reason:
            unchecked = str(reason)
        else:
            difference = difference_of(got, expected)
            _check_difference(target, difference, int8=int8, measured=labels is not None)
            if labels is not None:
                accuracies = (_share(expected, labels), _share(got, labels))
                if int8 and 100 * (accuracies[0] - accuracies[1]) > max_loss:
                    raise WeightloomError(
                        f"int8 costs {100 * (accuracies[0] - accuracies[1]):.1f} points of accuracy on "
                        f"{len(labels):,} test pictures, more than {max_loss:g}; nothing was written "
                        "(leave int8 out, or allow more)"
                    )
        more = target.more(job)
        for file, place in reversed(list(zip(written, places, strict=True))):  # what was asked for is last
            with file.open("rb") as source, atomic_file(place) as handle:
                shutil.copyfileobj(source, handle)
    return Exported(
        to=target.name,
        files=tuple(places),
        checked=checked,
        unchecked=unchecked,
        difference=difference,
        accuracy=accuracies,
        num_images=0 if labels is None else len(labels),
        facts=facts,
        int8=int8,
        more=more,
    )


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """(N, classes) for (N, channels, height, width), some at a time."""
    with torch.inference_mode():
        return torch.cat([network(part) for part in batches(images)]).clone()


def difference_of(got: Tensor, expected: Tensor) -> float:
    """The largest difference of logits ÷ the standard deviation of those expected; inf for no number."""
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    spread = float(expected.double().std(unbiased=False))
    return float((got.double() - expected.double()).abs().max()) / (spread or 1.0)


def _check_difference(target: Target, difference: float, *, int8: bool, measured: bool) -> None:
    """Rounded logits may differ by more, and where accuracy is ``measured`` that decides."""
    most = MOST_DIFFERENCE if not int8 else math.inf if measured else MOST_ROUNDED
    if not (math.isfinite(difference) and difference <= most):
        limit = "they are not all numbers" if math.isinf(most) else f"at most {most:g} is right"
        raise WeightloomError(
            f"the {target.name} file answers otherwise than the network: its logits differ by "
            f"{difference:.2g} of their spread ({limit}); nothing was written"
        )


# -- what is asked for ---------------------------------------------------------------------------


def _target_for(to: str | None, out: Path) -> tuple[Target, Path]:
    known = {targets.get(name).suffix: name for name in targets}
    if to is None:
        if out.suffix.lower() not in known:
            raise InputError(
                f"{out}: the name must end in {', '.join(sorted(known))}, or say what it is to be"
            )
        to = known[out.suffix.lower()]
    target = targets.get(to)
    if out.suffix.lower() != target.suffix:
        raise InputError(f"{out}: the name of a file for {to} must end in {target.suffix}")
    return target, out


def _check_apart(places: Sequence[Path], source: Path | None) -> None:
    for place in places:
        if source is not None and place.exists() and source.exists() and place.samefile(source):
            raise InputError(f"{place} is the network that is exported: give --out another name")


def _opened(network: str | Path | Sample | nn.Module, facts: Facts | None) -> tuple[nn.Module, Facts]:
    """The module in eval mode, and what is known of it."""
    if isinstance(network, nn.Module):
        if facts is None:
            raise InputError("a module does not say what it reads: give facts=Facts(class_names, input)")
        require_finite(network.state_dict(), "this network")
        return network.eval(), facts
    if isinstance(network, Sample):
        known = facts or facts_of(network.card.to_metadata(), network.architecture)
        return network.module, _with_names(known, network.architecture.classes or 0)
    reading = read_checked(network)
    module = reading.spec.build()
    module.load_state_dict(layout_of(reading.spec).unflatten(reading.flat))
    require_finite(module.state_dict(), str(network))
    known = replace(facts or facts_of(reading.metadata, reading.spec), source=Path(network))
    return module.eval(), _with_names(known, reading.spec.classes or 0)


def _with_names(facts: Facts, classes: int) -> Facts:
    checked_names(facts.class_names, classes)
    return facts


def _check_options(
    target: Target, module: nn.Module, *, int8: bool, probabilities: bool, task: Task | None
) -> None:
    able = sorted(name for name in targets if targets.get(name).rounds)
    if int8 and not target.rounds:
        raise UnsupportedRequestError(f"{target.name} has no int8; {' and '.join(able)} have")
    if int8 and target.calibrates and task is None:
        raise InputError(f"int8 for {target.name} is calibrated on examples: give a task or a folder of them")
    if probabilities and not target.gives_probabilities:
        raise UnsupportedRequestError(f"{target.name} gives logits alone; probabilities are for onnx")
    if (reason := target.refusal(module)) is not None:
        raise UnsupportedRequestError(reason)


def _check_task(task: Task, facts: Facts) -> None:
    if (task.num_classes, task.input_shape) != (len(facts.class_names), facts.input):
        raise InputError(
            f"the network reads {'x'.join(map(str, facts.input))} pictures of {len(facts.class_names)} "
            f"classes, but {task} has {task.num_classes} classes at {'x'.join(map(str, task.input_shape))}"
        )


# -- pictures ------------------------------------------------------------------------------------


def _calibration(task: Task | None) -> Tensor:
    assert task is not None
    most = min(CALIBRATION, MOST_VALUES // 4 // math.prod(task.input_shape))
    shots = max(1, min(SHOTS, most // task.num_classes))
    images = task.support(shots, seed=0).images.flatten(0, 1)  # (C, S, ...) -> (C * S, ...)
    return images[torch.randperm(len(images), generator=torch_generator("export", "calibration"))[:most]]


def _test_images(task: Task | None, facts: Facts) -> tuple[Tensor, Tensor | None]:
    """Test pictures and their labels; without a task, noise that is smooth over a few pixels."""
    if task is not None:
        data = task.data("test")
        order = torch.randperm(len(data), generator=torch_generator("export", str(task)))
        order = order[: min(TEST_IMAGES, MOST_VALUES // math.prod(facts.input))]
        images, labels = data.batch(order)
        return images.contiguous(), labels
    generator = torch_generator("export", "noise")
    channels, high, wide = facts.input
    coarse = torch.randn(NOISE, channels, max(1, high // 4), max(1, wide // 4), generator=generator)
    smooth = nn.functional.interpolate(coarse, (high, wide), mode="nearest")
    fine = torch.randn(NOISE, channels, high, wide, generator=generator)
    unit = (0.5 * smooth + 0.2 * fine).clamp(-1, 1)  # [-1, 1]
    return facts.low + (unit + 1) * (facts.high - facts.low) / 2, None


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
