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
from weightloom.generators.fingerprint import Fingerprint
from weightloom.generators.load import load_generator
from weightloom.io import dump_json, parse_json, write_json
from weightloom.tasks import parse_task
from weightloom.zoo import Zoo, ZooRecipe


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
    fingerprint = getattr(first, "fingerprint", None)
    if not isinstance(fingerprint, Fingerprint):
        raise InputError(f"{first.name} carries no checkpoints; name a zoo's folder")
    return Ground.from_fingerprint(zoo, fingerprint)


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
    text, sizes = source.text(), asdict(settings)

    def measure(cells: list[tuple[dict[str, Any], Payload]]) -> None:
        wanted = [(key, payload) for key, payload in cells if bench.cells.get(key) is None]
        common = {"source": text, "settings": sizes}
        answers = engine.map(measure_cell, [{**common, **payload} for _, payload in wanted])
        for done, (number, result) in enumerate(answers, 1):
            key = wanted[number][0]
            write_json(bench.cells.path(key), {"key": key, "result": result})
            progress(f"cells, {key['what']}", done, len(wanted))

    # What trained networks reach comes first: the others are measured against it.
    measure([(bench.trained_key(t), {"what": "trained", **_plain(t)}) for t in trials if t.trained is None])
    trained = {str(trial.key()): replace(trial, trained=bench.trained(trial)) for trial in trials}
    measure(
        [
            (
                cell.key,
                {
                    "what": cell.what,
                    "contestant": cell.contestant.name,
                    "seed": cell.seed,
                    **_plain(trained[str(cell.trial.key())]),
                },
            )
            for cell in bench.plan(contestants(given), trials)
            if cell.what != "speed"
        ]
    )


def spread_audit(
    source: Source,
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
        source: what workers load; ``generator`` and ``zoo`` here.
        generator: that of ``source``.
        zoo: that of ``source``.
        work: where results are kept.
        settings: how much is measured.
        engine: where it is measured.
        progress: told of architectures, and of tasks.

    Raises:
        InputError: a worker finds another generator or other checkpoints under their names.
    """
    cells = Cells(work)
    chosen = [
        (subject.spec.full_text(), of_usual, of_tasks)
        for subject, _, of_usual, of_tasks in keyed(
            generator, zoo, settings, subjects(generator, zoo, settings)
        )
    ]
    common = {"source": source.text(), "settings": asdict(settings)}

    def measure(what: str, wanted: list[Payload]) -> None:
        wanted = [payload for payload in wanted if cells.get(payload["key"]) is None]
        answers = engine.map(measure_audit, [{**common, **payload} for payload in wanted])
        for done, (number, result) in enumerate(answers, 1):
            key = wanted[number]["key"]
            write_json(cells.path(key), {"key": key, "result": result})
            progress(what, done, len(wanted))

    measure("architectures", [{"architecture": text, "key": key, "usual": None} for text, key, _ in chosen])
    measure(
        "tasks",
        [
            {"architecture": text, "key": key, "usual": cells.get(of_usual)}
            for text, of_usual, of_tasks in chosen
            for key in of_tasks.values()
        ],
    )


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
    opened = _open(payload["source"])
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
    if payload["what"] == "trained":
        return {"accuracy": bench.trained(trial)}
    (person,) = [one for one in opened.people if one.name == payload["contestant"]]
    return bench.answer(Cell(payload["what"], person, trial, payload["seed"], 1, {}))


@lru_cache(maxsize=1)
def _load(source: str) -> tuple[Generator, Zoo]:
    said = parse_json("source", source)
    (name,) = said["generators"]
    return load_generator(name), Zoo(said["path"])


@lru_cache(maxsize=1)
def _subject(source: str, text: str) -> tuple[AuditSettings, Subject, Checkpoints, list[dict[str, Any]]]:
    """One architecture of an audit, and the keys of its results."""
    settings = AuditSettings(**parse_json("settings", text))
    model, zoo = _load(source)
    ((subject, flats, of_usual, of_tasks),) = keyed(model, zoo, settings, subjects(model, zoo, settings))
    return settings, subject, Checkpoints(subject.spec, flats), [of_usual, *of_tasks.values()]


@job
def measure_audit(payload: Payload, step: Callable[[int], None]) -> Result:
    """What is usual in an architecture, or, where that is given, the networks of a task."""
    text = dump_json({**payload["settings"], "architecture": payload["architecture"]})
    settings, subject, known, keys = _subject(payload["source"], text)
    if payload["key"] not in keys:
        raise InputError("a worker finds another generator, or other checkpoints, where these are here")
    if payload["usual"] is None:
        return usual_of(known, lambda: None)
    model, _ = _load(payload["source"])
    task, usual = payload["key"]["task"], Usual(**payload["usual"])
    return audited(model, known, subject.records, task, usual, settings, lambda: None)
