"""Cells of a leaderboard and parts of an audit, measured by an engine: side by side, or on a cluster.

Workers load the generators by name and the zoo by path, so both have to be where every machine finds them;
what they measure comes back and is kept here. Timings are left out: they want a machine for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.engines import Engine, Payload, job
from weightloom.engines.base import Job
from weightloom.errors import InputError
from weightloom.evaluation.audit import AuditSettings, Subject, audited, keyed, subjects, usual_of
from weightloom.evaluation.cells import Cells, Result
from weightloom.evaluation.ground import Ground, Trial
from weightloom.evaluation.leaderboard import (
    Bench,
    Cell,
    Contestant,
    LeaderboardSettings,
    Progress,
    check_any,
    contestants,
)
from weightloom.evaluation.novelty import Checkpoints, Usual
from weightloom.generators import Generator
from weightloom.generators.load import load_generator
from weightloom.io import dump_json, parse_json
from weightloom.tasks import parse_task
from weightloom.zoo import Zoo, ZooRecipe

Wanted = tuple[dict[str, Any], Payload]
"""The key of a result, and what a worker has to know beside it."""


@dataclass(frozen=True)
class Source:
    """What a worker loads: generators by name, and a zoo's folder, or its recipe alone."""

    generators: tuple[str, ...]
    zoo: Path | ZooRecipe

    def text(self) -> str:
        """Plain data, as one text."""
        by_path = isinstance(self.zoo, Path)
        zoo = str(self.zoo) if isinstance(self.zoo, Path) else self.zoo.model_dump(mode="json")
        return dump_json({"generators": self.generators, "path" if by_path else "recipe": zoo})


def ground_of(zoo: Path | ZooRecipe, first: Generator) -> Ground:
    """The ground of a zoo's folder, or of a recipe with the checkpoints that the first generator carries.

    Raises:
        InputError: it carries none, or those of another zoo.
    """
    if isinstance(zoo, Path):
        return Ground.from_zoo(Zoo(zoo))
    if first.zoo_index is None:
        raise InputError(f"{first.name} carries no checkpoints; name a zoo's folder")
    return Ground.from_zoo_index(zoo, first.zoo_index)


def spread_cells(
    source: Source,
    given: Sequence[Generator],
    ground: Ground,
    folder: str | Path,
    settings: LeaderboardSettings,
    engine: Engine,
    *,
    progress: Progress = lambda *_: None,
) -> None:
    """Measure what ``folder`` does not hold yet, but for timings; ``run_leaderboard`` finds it there.

    Args:
        source: what workers load; ``given`` and ``ground`` here.
        given: the generators of ``source``.
        ground: of its zoo.
        folder: where cells are kept.
        settings: how much is measured.
        engine: where it is measured.
        progress: told of every cell.
    """
    bench = Bench(ground, settings, Cells(Path(folder) / "cells"))
    trials = bench.trials()
    for model in given:
        check_any(model, trials)
    common = {"source": source.text(), "settings": asdict(settings)}

    def measure(wanted: Sequence[Wanted]) -> None:
        _measure(
            bench.cells, engine, measure_cell, common, wanted, lambda key: f"cells, {key['what']}", progress
        )

    try:
        # What trained networks reach comes first: the others are measured against it.
        measure([(bench.trained_key(trial), _plain(trial)) for trial in trials if trial.trained is None])
        trained = {str(trial.key()): replace(trial, trained=bench.trained(trial)) for trial in trials}
        measure(
            [
                (
                    cell.key,
                    {
                        "contestant": cell.contestant.name,
                        "version": cell.contestant.version,
                        "zoo": ground.digest,
                        "seed": cell.seed,
                        **_plain(trained[str(cell.trial.key())]),
                    },
                )
                for cell in bench.plan(contestants(given), trials)
                if cell.what != "speed"
            ]
        )
    finally:
        _open.cache_clear()  # jobs may have been done in this process


def spread_audit(
    name: str,
    generator: Generator,
    zoo: Zoo,
    work: str | Path,
    settings: AuditSettings,
    engine: Engine,
    *,
    progress: Progress = lambda *_: None,
) -> None:
    """Measure what ``work`` does not hold yet of an audit, which finds it there.

    Args:
        name: what workers load the generator by.
        generator: the same, here.
        zoo: workers open it by its path.
        work: where results are kept.
        settings: how much is measured.
        engine: where it is measured.
        progress: told of architectures, and of tasks.

    Raises:
        InputError: a worker loads another generator or other checkpoints than are here.
    """
    cells = Cells(work)
    chosen = [
        (subject.spec.full_text(), of_usual, of_tasks)
        for subject, _, of_usual, of_tasks in keyed(
            generator, zoo, settings, subjects(generator, zoo, settings)
        )
    ]
    common = {"generator": name, "zoo": str(zoo.path.absolute()), "settings": asdict(settings)}

    def measure(what: str, wanted: Sequence[Wanted]) -> None:
        _measure(cells, engine, measure_audit, common, wanted, lambda _: what, progress)

    try:
        measure("architectures", [(key, {"architecture": text}) for text, key, _ in chosen])
        measure(
            "tasks",
            [
                (key, {"architecture": text, "usual": cells.get(of_usual)})
                for text, of_usual, of_tasks in chosen
                for key in of_tasks.values()
            ],
        )
    finally:
        _subject.cache_clear()  # jobs may have been done in this process


def _measure(
    cells: Cells,
    engine: Engine,
    function: Job,
    common: Payload,
    wanted: Sequence[Wanted],
    what: Callable[[dict[str, Any]], str],
    progress: Progress,
) -> None:
    """Have ``function`` answer every key that ``cells`` does not hold, and keep its answers."""
    missing = [(key, payload) for key, payload in wanted if cells.get(key) is None]
    payloads = [{**common, **payload, "key": key} for key, payload in missing]
    for done, (number, result) in enumerate(engine.map(function, payloads), 1):
        key = missing[number][0]
        cells.keep(key, result)
        progress(what(key), done, len(missing))


def _plain(trial: Trial) -> Payload:
    return {**trial.key(), "trained": trial.trained}


# ------------------------------------------------------------------------------------ in a worker


class _Remembered(Cells):
    """Cells that a worker needs on the way; nothing is written."""

    def __init__(self) -> None:
        super().__init__("")
        self.held: dict[str, Result] = {}

    def or_measure(self, key: dict[str, Any], measure: Callable[[], Result]) -> Result:
        """As of :class:`Cells`."""
        name = dump_json(key)
        if name not in self.held:
            self.held[name] = measure()
        return self.held[name]


@dataclass(frozen=True)
class _Opened:
    people: list[Contestant]
    ground: Ground
    cells: _Remembered
    known: dict[ArchitectureSpec, Checkpoints | None]


@lru_cache(maxsize=1)
def _open(source: str) -> _Opened:
    """What every job of a run needs, loaded once a worker."""
    said = parse_json("source", source)
    models = [load_generator(name) for name in said["generators"]]
    zoo = Path(said["path"]) if "path" in said else ZooRecipe(**said["recipe"])
    return _Opened(contestants(models), ground_of(zoo, models[0]), _Remembered(), {})


@job
def measure_cell(payload: Payload, step: Callable[[int], None]) -> Result:
    """One cell, or what a trained network reaches."""
    opened, key = _open(payload["source"]), payload["key"]
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in payload["settings"].items()
    }
    bench = Bench(opened.ground, LeaderboardSettings(**options), opened.cells, opened.known)
    trial = Trial(
        payload["group"],
        parse_architecture(payload["architecture"]),
        parse_task(payload["task"]),
        payload["trained"],
    )
    if key["what"] == "trained":
        return {"accuracy": bench.trained(trial)}
    (person,) = [one for one in opened.people if one.name == payload["contestant"]]
    if (person.version, opened.ground.digest) != (payload["version"], payload["zoo"]):
        raise _another(person.name, opened.ground.name)
    return bench.answer(Cell(key["what"], person, trial, payload["seed"], 1, {}))


@dataclass(frozen=True)
class _Audited:
    """One architecture of an audit, and the keys of its results."""

    model: Generator
    settings: AuditSettings
    subject: Subject
    known: Checkpoints
    keys: list[dict[str, Any]]


@lru_cache(maxsize=1)
def _subject(name: str, path: str, settings_text: str) -> _Audited:
    settings = AuditSettings(**parse_json("settings", settings_text))
    model, zoo = load_generator(name), Zoo(path)
    ((subject, flats, of_usual, of_tasks),) = keyed(model, zoo, settings, subjects(model, zoo, settings))
    known = Checkpoints(subject.spec, flats)
    return _Audited(model, settings, subject, known, [of_usual, *of_tasks.values()])


@job
def measure_audit(payload: Payload, step: Callable[[int], None]) -> Result:
    """What is usual in an architecture, or the networks of a task."""
    settings = dump_json({**payload["settings"], "architecture": payload["architecture"]})
    held, key = _subject(payload["generator"], payload["zoo"], settings), payload["key"]
    if key not in held.keys:
        raise _another(payload["generator"], payload["zoo"])
    if key["what"] == "usual":
        return usual_of(held.known, lambda: None)
    usual = Usual(**payload["usual"])
    return audited(
        held.model, held.known, held.subject.records, key["task"], usual, held.settings, lambda: None
    )


def _another(generator: str, zoo: str) -> InputError:
    return InputError(
        f"a worker finds another generator under {generator}, or other checkpoints under {zoo}, "
        "than this process does"
    )
