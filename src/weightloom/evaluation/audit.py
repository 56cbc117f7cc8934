"""The novelty audit of a generator against its zoo: does it generalise, or does it replay its checkpoints?

For training tasks of the zoo, samples of the generator stand beside networks that need no generator:
noise-added, averaged, interpolated (aligned and not) and per-value Gaussian checkpoints of the same task,
all measured in the same way. Knows nothing of how any generator works.

Shapes: N checkpoints, M networks, P values of a network, B images.
Source: the protocol of Zeng et al. (arXiv 2506.07998), with alignment before every distance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, UnsupportedRequestError
from weightloom.evaluation.cells import Cells, Result, version_of
from weightloom.evaluation.novelty import (
    LEAST,
    RULE,
    VERDICTS,
    Checkpoints,
    Usual,
    overlap,
    shares,
    verdict_of,
    wrong_answers,
)
from weightloom.fitting import recalibrate
from weightloom.generators import Generator
from weightloom.seeding import check_seed, torch_generator
from weightloom.tasks import Task
from weightloom.weights import WeightStatistics, align, layout_of
from weightloom.weights.mixing import add_noise, gaussian, interpolate
from weightloom.whole import whole_fields
from weightloom.zoo import Record, Zoo

Progress = Callable[[str, int, int], None]
"""Called with what is being audited, networks done and networks in all."""

GENERATED, TRAINING = "generated", "training"
MIXTURES = ("noise", "averaged", "interpolated", "aligned interpolation", "gaussian")
"""Networks made of checkpoints, that a generator has to be better than."""

_NOISE = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_AVERAGED = 16


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How much is measured.

    Attributes:
        samples: networks of the generator for every task, and of every mixture.
        tasks: training tasks for every architecture and class count, those with most checkpoints first.
        architecture: only this one (a spec text; what it leaves open matches any), or all.
        task: only this one, by its text, or those that the zoo has.
        shots: examples a class that the generator is given.
        images: test images at most.
        seed: decides the samples and draws.
    """

    samples: int = 16
    tasks: int = 2
    architecture: str | None = None
    task: str | None = None
    shots: int = 16
    images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"samples": 1024, "tasks": 10_000, "shots": 4096, "images": 10_000_000}
        whole_fields(self, {name: (1, limit) for name, limit in limits.items()})
        object.__setattr__(self, "seed", check_seed(self.seed))


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        generator: its name and kind.
        settings: what was asked for.
        networks: one row a network: group, architecture, task, accuracy, distances, overlap, verdict.
        usual: by architecture, what is usual in the training set.
        notes: what a reader should know, in sentences.
        verdict: the most frequent verdict of the generated networks.
        beaten_by: mixtures that are as accurate and whose errors overlap no more.
    """

    generator: dict[str, str]
    settings: AuditSettings
    networks: list[dict[str, Any]]
    usual: dict[str, dict[str, float]]
    notes: list[str]
    verdict: str
    beaten_by: list[str]
    shares: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """The result in words."""
        count = sum(row["group"] == GENERATED for row in self.networks)
        text = (
            f"{self.generator['name']} {self.verdict}"
            if self.verdict != "novel"
            else (f"{self.generator['name']} makes novel networks")
        )
        text += f" ({self.shares[self.verdict] * 100:.0f} % of {count} samples)"
        if self.beaten_by:
            text += f"; no better than: {', '.join(self.beaten_by)}"
        return text

    def summary(self) -> list[dict[str, Any]]:
        """One row for each group: means of accuracy, overlap and distances, share of every verdict."""
        rows = []
        for group in (GENERATED, TRAINING, *MIXTURES):
            own = [row for row in self.networks if row["group"] == group]
            if not own:
                continue
            entry: dict[str, Any] = {"group": group, "networks": len(own)}
            for name in ("accuracy", "overlap", "distance", "distance_before", "hull", "largest_weight"):
                known = [row[name] for row in own if row[name] is not None]
                entry[name] = sum(known) / len(known) if known else None
            rows.append(entry | {"verdicts": shares([row["verdict"] for row in own])})
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "generator": self.generator,
            "settings": asdict(self.settings),
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "shares": self.shares,
            "beaten_by": self.beaten_by,
            "rule": RULE,
            "notes": self.notes,
            "usual": self.usual,
            "summary": self.summary(),
            "networks": self.networks,
        }


@with_plain_defaults
def audit(
    generator: Generator,
    zoo: Zoo,
    settings: AuditSettings | None = None,
    *,
    work: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> AuditReport:
    """Audit ``generator`` against the final training checkpoints of ``zoo``.

    Args:
        generator: any.
        zoo: what it was trained on.
        settings: how much is measured.
        work: a folder where every task's result is kept as it is done, and taken from when it is there.
        progress: is told of networks.

    Raises:
        InputError: the zoo has too few training checkpoints, or no such task.
        UnsupportedRequestError: the generator makes none of the zoo's architectures.
        CheckpointError: what is kept in ``work`` is broken.
    """
    settings = settings or AuditSettings()
    chosen = subjects(generator, zoo, settings)
    groups = settings.samples * (1 + len(MIXTURES))
    total = sum(min(64, len(subject.records)) + len(subject.tasks) * groups for subject in chosen)
    done = reached = 0

    def step() -> None:
        nonlocal done
        done = min(done + 1, reached)
        progress("audit", done, total)

    def kept(key: dict[str, Any], steps: int, measure: Callable[[], Result]) -> Result:
        nonlocal done, reached
        reached += steps
        found = measure() if work is None else Cells(work).or_measure(key, measure)
        if done < reached:  # what was kept, and mixtures that a single checkpoint does not make
            done = reached
            progress("audit", done, total)
        return found

    rows: list[dict[str, Any]] = []
    usual: dict[str, dict[str, float]] = {}
    for subject, flats, of_usual, of_tasks in keyed(generator, zoo, settings, chosen):
        known = Checkpoints(subject.spec, flats)
        own = kept(of_usual, min(64, len(subject.records)), partial(usual_of, known, step))
        usual[subject.spec.full_text()] = own
        for text, key in of_tasks.items():
            measure = partial(audited, generator, known, subject.records, text, Usual(**own), settings, step)
            rows += kept(key, groups, measure)["rows"]
    share = shares([row["verdict"] for row in rows if row["group"] == GENERATED])
    verdict = max(VERDICTS, key=lambda name: share[name])
    notes = _notes(generator, zoo, chosen)
    about = {"name": generator.name, "kind": generator.kind}
    return AuditReport(about, settings, rows, usual, notes, verdict, _beaten_by(rows), share)


def keyed(
    generator: Generator, zoo: Zoo, settings: AuditSettings, chosen: Sequence[Subject]
) -> Iterator[tuple[Subject, Tensor, dict[str, Any], dict[str, dict[str, Any]]]]:
    """Every subject with its checkpoints (N, P), and what decides results: of what is usual, and by task."""
    asked: dict[str, Any] = {"name": generator.name, "kind": generator.kind, "version": version_of(generator)}
    asked |= {name: getattr(settings, name) for name in ("samples", "shots", "images", "seed")}
    for subject in chosen:
        flats = zoo.load(subject.records)
        of = {"architecture": subject.spec.full_text(), "checkpoints": _digest(subject.records, flats)}
        of_tasks = {text: {"what": "audited", "task": text, **of, **asked} for text in subject.tasks}
        yield subject, flats, {"what": "usual", **of}, of_tasks


def usual_of(known: Checkpoints, step: Callable[[], None]) -> Result:
    """What is usual among the checkpoints of an architecture."""
    return known.usual(step=step).to_json()


def _digest(records: Sequence[Record], flats: Tensor) -> str:
    """Changes with the checkpoints (N, P) that are compared with."""
    digest = hashlib.sha256(flats.numpy().tobytes())
    for record in records:
        digest.update(f"{record.id} {record.task}\n".encode())
    return digest.hexdigest()[:16]


def audited(
    generator: Generator,
    known: Checkpoints,
    records: Sequence[Record],
    text: str,
    usual: Usual,
    settings: AuditSettings,
    step: Callable[[], None],
) -> Result:
    """A row for every checkpoint of the task ``text``, and for every network that is made for it."""
    spec, flats = known.spec, known.flats
    own = [i for i, record in enumerate(records) if record.task == text]
    task = records[own[0]].parsed_task()
    named = _networks(generator, spec, task, flats, own, settings)
    images, labels = _test_images(task, settings.images)
    of_training = wrong_answers(spec, flats[own], images, labels)
    among = overlap(of_training, of_training).fill_diagonal_(0)
    usual_overlap = float(among.max()) if len(own) > 1 else None
    trained = 1 - float(of_training.float().mean())
    facts = {"architecture": spec.full_text(), "task": text}
    unmeasured = dict.fromkeys(("distance", "distance_before", "hull", "largest_weight", "verdict"))
    rows: list[dict[str, Any]] = [
        {
            "group": TRAINING,
            **facts,
            "sample": number,
            "accuracy": 1 - float(of_training[number].float().mean()),
            "overlap": float(among[number].max()) if len(own) > 1 else None,
            **unmeasured,
            "nearest": records[row].id,
        }
        for number, row in enumerate(own)
    ]
    for group, made in named.items():
        wrong = wrong_answers(spec, made, images, labels)
        alike = overlap(wrong, of_training).max(1).values
        for number, one in enumerate(known.compare(made, step=step)):
            accuracy = 1 - float(wrong[number].float().mean())
            enough = int(wrong[number].sum()) >= 10  # of fewer errors an overlap says nothing
            verdict = verdict_of(
                one,
                usual,
                accuracy=accuracy,
                trained=trained,
                chance=1 / task.num_classes,
                overlap=float(alike[number]) if enough else None,
                usual_overlap=usual_overlap,
            )
            rows.append(
                {
                    "group": group,
                    **facts,
                    "sample": number,
                    "accuracy": accuracy,
                    "overlap": float(alike[number]),
                    **asdict(one),
                    "nearest": records[one.nearest].id,
                    "verdict": verdict,
                }
            )
    return {"rows": rows}


# ------------------------------------------------------------------------------------- what is audited


@dataclass(frozen=True)
class Subject:
    """An architecture, its training checkpoints, and the tasks that are tried."""

    spec: ArchitectureSpec
    records: list[Record]
    tasks: list[str]


def subjects(generator: Generator, zoo: Zoo, settings: AuditSettings) -> list[Subject]:
    """What of the zoo the generator makes. Raises as :func:`audit`."""
    wanted = settings.architecture
    if wanted is not None:
        parse_architecture(wanted)
    found, refused, few = [], [], []
    for spec, records in zoo.by_architecture(split="train", final=True, architecture=wanted):
        try:
            generator.validity.check(spec)
        except UnsupportedRequestError as error:
            refused.append(str(error))
            continue
        if len(records) < LEAST:
            few.append(f"{len(records)} of {spec}")
            continue
        counts: dict[str, int] = {}
        for record in records:
            counts[record.task] = counts.get(record.task, 0) + 1
        tasks = sorted(counts, key=lambda text: (-counts[text], text))
        if settings.task is not None:
            tasks = [text for text in tasks if text == settings.task]
        if tasks:
            found.append(Subject(spec, records, tasks[: settings.tasks]))
    if found:
        return found
    if few:
        raise InputError(
            f"{zoo.path} has too few training checkpoints to say what is usual ({'; '.join(few)}); "
            f"at least {LEAST} of an architecture are needed"
        )
    if refused:
        raise UnsupportedRequestError(
            f"{generator.name} makes none of the networks in {zoo.path}: {refused[0]}"
        )
    what = f" of {wanted}" if wanted is not None else ""
    task = f" for task {settings.task!r}" if settings.task is not None else ""
    raise InputError(f"{zoo.path} has no training checkpoints{what}{task}")


def _notes(generator: Generator, zoo: Zoo, chosen: Sequence[Subject]) -> list[str]:
    """What could mislead a reader."""
    notes = []
    if generator.zoo_index is not None:
        own = {(one.spec, record.id, record.task) for one in chosen for record in one.records}
        held, count = generator.zoo_index.held_by(
            lambda spec, row: (spec, row.get("id"), row.get("task")) in own, {one.spec for one in chosen}
        )
        if held < count or not count:
            notes.append(
                f"{zoo.path.name} holds {held or 'none'} of the {count:,} checkpoints of these architectures "
                f"that {generator.name} was trained on: that its networks are new to this zoo says little"
            )
    thin = [
        text for one in chosen for text in one.tasks if sum(record.task == text for record in one.records) < 2
    ]
    if thin:
        notes.append(
            f"one checkpoint only of {len(thin)} task(s): how far two trainings of a task lie apart is not "
            "known there, and a network trained anew may look like a copy"
        )
    return notes


def _test_images(task: Task, limit: int) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("audit", str(task)))
    return data.batch(order[:limit])


def _networks(
    generator: Generator,
    spec: ArchitectureSpec,
    task: Task,
    flats: Tensor,
    own: Sequence[int],
    settings: AuditSettings,
) -> dict[str, Tensor]:
    """(M, P) networks by group: the generator's, and mixtures of the task's checkpoints."""
    support = task.support(settings.shots)
    samples = generator.generate_many(spec, support=support, num_samples=settings.samples, seed=settings.seed)
    named = {GENERATED: torch.stack([sample.flat for sample in samples])}
    count, zoo = settings.samples, flats[list(own)]
    bound = WeightStatistics.measure([(layout_of(spec), flats)]).bind(layout_of(spec))
    images, labels = support.flat()

    def streams(what: str) -> list[torch.Generator]:
        return [torch_generator("audit", what, str(task), settings.seed, index) for index in range(count)]

    def measured(made: Tensor) -> Tensor:
        """With batch norms measured on the examples, as those of samples are."""
        return recalibrate(spec, made, images)

    # Noise of equal accuracy: the most that leaves the networks as good as the generator's on the examples.
    sources = zoo[[index % len(zoo) for index in range(count)]]
    reached = 1 - float(wrong_answers(spec, named[GENERATED], images, labels).float().mean())
    for size in _NOISE:
        noisy = measured(add_noise(bound, sources, streams("noise"), size))
        good = 1 - float(wrong_answers(spec, noisy, images, labels).float().mean()) >= reached - 0.01
        if good or "noise" not in named:
            named["noise"] = noisy
        if not good:
            break
    if len(zoo) < 2:
        return named
    averaged, mixed, aligned = [], [], []
    for stream in streams("mixtures"):
        order = torch.randperm(len(zoo), generator=stream)
        share = 0.25 + 0.5 * float(torch.rand((), generator=stream))
        averaged.append(zoo[order[:_AVERAGED]].mean(0))
        one, other = zoo[order[0]], zoo[order[1]]
        mixed.append(interpolate(one, other, share))
        aligned.append(interpolate(one, align(spec, one, other[None])[0], share))
    named["averaged"] = measured(torch.stack(averaged))
    named["interpolated"] = measured(torch.stack(mixed))
    named["aligned interpolation"] = measured(torch.stack(aligned))
    named["gaussian"] = measured(gaussian(bound, zoo, streams("gaussian")))
    return named


def _beaten_by(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Mixtures that are as accurate as the generated networks, and whose errors overlap no more."""

    def mean(group: str, name: str) -> float | None:
        known = [row[name] for row in rows if row["group"] == group]
        return sum(known) / len(known) if known else None

    good, alike = mean(GENERATED, "accuracy"), mean(GENERATED, "overlap")
    assert good is not None and alike is not None
    found = []
    for group in MIXTURES:
        other, overlapped = mean(group, "accuracy"), mean(group, "overlap")
        if other is not None and overlapped is not None and other >= good and overlapped <= alike:
            found.append(group)
    return found
