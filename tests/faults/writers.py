"""Not a test: a process whose children write artefacts and are killed (see test_kill.py and test_places.py).

Each line on stdin is ``FOLDER KIND VERSION INSTANT``, between tabs: a child writes version VERSION of the
artefact KIND into the folder, and kills itself with SIGKILL at INSTANT. ``never`` lets it live; so does
``count``, which tells how many instants there are; a number is one of them: just before or just after a call
of Python that touches the disk. ``calls`` and ``call:N`` are the same with the system's calls, before each
(see tracer.py). ``after:S`` kills it from outside after S seconds. ``nobody`` lets it live as a user
who may not write everywhere. ``cross:M:N`` and ``cross-kill:M:N`` are for several at once, of ``KIND|KIND``
and ``VERSION|VERSION`` (see crossing.py). The answer is a line: ``killed``, ``done``, ``count N`` or
``error TYPE: TEXT``.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.cli.main import app
from weightloom.errors import WeightloomError
from weightloom.fitting import initial_flats
from weightloom.generators import Sample
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import save_generator
from weightloom.io import write_json, write_text
from weightloom.training.loop import LoopSettings, run_loop
from weightloom.zoo import Record, Zoo
from weightloom.zoo.opening import discard_empty

# Calls of Python into C that change what is on the disk, or are about to.
TOUCHES = {
    "write", "flush", "close", "fsync", "open", "replace", "rename", "mkdir", "rmdir", "unlink", "execute",
    "executemany", "executescript", "connect", "flock",
}  # fmt: skip

SPEC = parse_architecture("mlp(depth=1,width=4,classes=3,input=1x8x8)")
STEPS = 6


def flat_of(version: int) -> torch.Tensor:
    """(P,) the network that version ``version`` of an artefact holds."""
    return torch.full_like(initial_flats(SPEC, [0])[0], float(version))


def record_of(spec: ArchitectureSpec, shard: str, version: int, row: int = 0) -> Record:
    return Record(
        id=f"{shard}-{row}", shard=shard, row=row, architecture=spec.full_text(), task="digits[3,1,7]@8c1",
        dataset="digits", classes=3, split="train", member=0, step=1, final=True, accuracy=0.5, loss=1.0,
        provenance={"version": version},
    )  # fmt: skip


def tiny_generator(version: int) -> Layerwise:
    sizes = {"codes": 2, "width": 8, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8}
    config = LayerwiseConfig(largest=("mlp(depth=2,width=4)",), channels=1, **sizes)
    model = Layerwise(config, validity_of(config, (1, 8, 8), (2, 10), ("digits",)), name=f"version-{version}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(version))
    return model.eval()


def write_sample(folder: Path, version: int) -> None:
    Sample(SPEC, flat_of(version), {"version": version}).save(folder / "network.safetensors")


def write_result(folder: Path, version: int) -> None:
    write_json(folder / "result.json", {"version": version, "rows": [version] * 500})


def write_generator(folder: Path, version: int) -> None:
    save_generator(tiny_generator(version), folder / "generator")


def write_zoo(folder: Path, version: int) -> None:
    zoo = Zoo(folder / "zoo", create=True)
    zoo.add(f"s{version}", SPEC, flat_of(version)[None], [record_of(SPEC, f"s{version}", version)])


def write_planned(folder: Path, version: int) -> None:
    """As :func:`write_zoo`, in a zoo that is made by what is added first."""
    zoo = Zoo.planned(folder / "zoo")
    zoo.add(f"s{version}", SPEC, flat_of(version)[None], [record_of(SPEC, f"s{version}", version)])


def write_same_shard(folder: Path, version: int) -> None:
    """Another content under the name of a shard that is there."""
    Zoo(folder / "zoo", create=True).add(
        "same", SPEC, flat_of(version)[None], [record_of(SPEC, "same", version)]
    )


def train(folder: Path, version: int) -> None:
    """A training run that keeps its state after every step, in a folder of its version."""
    torch.manual_seed(0)
    model = nn.Linear(8, 3)

    def objective(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        images = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        return model(images).square().mean(), {}

    settings = LoopSettings(steps=STEPS, warmup=0, log_every=1, save_every=1)
    run_loop("a line", model, objective, settings, folder=folder / f"run-{version}")


def at_once(works: Sequence[Callable[[], None]], kill_first: float | None = None) -> None:
    """Each of ``works`` in a process of its own, all at once; the first is killed after so many seconds.

    Raises:
        AssertionError: another one did not end well; with the traceback that it ended with.
    """
    children = []
    for work in works:
        words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=words)
                words.flush()
                os._exit(1)
        children.append((pid, words))
    if kill_first is not None:
        time.sleep(kill_first)
        os.kill(children[0][0], signal.SIGKILL)
    failures = []
    for number, (pid, words) in enumerate(children):
        state = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        words.seek(0)
        if state not in (0, -signal.SIGKILL if kill_first is not None and number == 0 else 0):
            failures.append(f"process {number} ended with {state}: {words.read()}")
    assert not failures, "; ".join(failures)


def write_crowd(folder: Path, version: int) -> None:
    """Three processes at once add shards of their own and one that all have.

    The first is killed after VERSION milliseconds, if that is not 0.
    """
    Zoo(folder / "zoo", create=True)

    def add(number: int) -> None:
        zoo = Zoo(folder / "zoo", create=True)
        for turn in range(4):
            name, value = f"w{number}-{turn}", 10 * number + turn
            zoo.add(name, SPEC, flat_of(value)[None], [record_of(SPEC, name, value)])
            zoo.add("all", SPEC, flat_of(99)[None], [record_of(SPEC, "all", 99)])

    at_once([partial(add, number) for number in range(3)], version / 1000 if version else None)


RECIPE = {
    "kind": "zoo", "name": "killed", "salt": "kills", "datasets": ["digits"],
    "architectures": ["mlp(depth=1,width=4)"], "size": 8, "channels": 1, "initialisation": "independent",
    "fit": {"steps": 1, "batch_size": 4}, "groups": [{"classes": 3, "tasks": 2}], "members_at_once": 1,
}  # fmt: skip


def command(*arguments: object) -> None:
    """What a user gives, in this process."""
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="weightloom")
    if answer.exit_code:
        raise WeightloomError(answer.stderr)


def write_sources(folder: Path, version: int) -> None:
    """A recipe, and networks of two architectures, for the next two."""
    write_text(folder / "recipe.yaml", yaml.safe_dump(RECIPE))
    for number in range(4):
        spec = SPEC if number % 2 else parse_architecture("mlp(depth=1,width=5,classes=3,input=1x8x8)")
        flat = torch.full_like(initial_flats(spec, [0])[0], float(number))
        Sample(spec, flat, {"version": number}).save(folder / "in" / f"{number}.safetensors")


def build(folder: Path, version: int) -> None:
    command("zoo", "build", folder / "recipe.yaml", "--out", folder / "zoo")


def import_networks(folder: Path, version: int) -> None:
    """Version 2 imports less, version 3 the rest: an import into a zoo that is there."""
    sources = sorted((folder / "in").iterdir())[2:] if version == 2 else [folder / "in"]
    command("zoo", "import", folder / "zoo", *sources, "--task", "digits[3,1,7]@8c1")


def import_at_once(folder: Path, version: int) -> None:
    """Three processes make one zoo at once, of sources of which each has some that another one has too."""
    sources = sorted((folder / "in").iterdir())
    at_once([partial(command, "zoo", "import", folder / "zoo", *sources[n : n + 2]) for n in range(3)])


def write_note(folder: Path, version: int) -> None:
    Zoo(folder / "zoo").set_about("note", version)


def repair_zoo(folder: Path, version: int) -> None:
    command("zoo", "repair", folder / "zoo")


def read_crowd(folder: Path, version: int) -> None:
    """Whatever is there is whole, while others write; version 0 is for a zoo that may not be there."""
    zoo = Zoo.planned(folder / "zoo")
    for record in zoo.records():
        assert bool((zoo.load([record]) == record.provenance["version"]).all()), record
    if version:
        problems = zoo.verify()
        assert problems == [], problems


def make_and_discard(folder: Path, version: int) -> None:
    """What a build does that cannot go on."""
    zoo = Zoo.planned(folder / "zoo")
    zoo.set_about("note", 1)
    discard_empty(zoo.path, keep_folder=version == 1)


def read_zoo(folder: Path, version: int) -> None:
    zoo = Zoo(folder / "zoo")
    assert bool((zoo.load(zoo.records()) == version).all()) and zoo.verify() == []


WRITERS = {
    "sample": write_sample,
    "result": write_result,
    "generator": write_generator,
    "zoo": write_zoo,
    "planned": write_planned,
    "same-shard": write_same_shard,
    "training": train,
    "crowd": write_crowd,
    "sources": write_sources,
    "build": build,
    "import": import_networks,
    "imports at once": import_at_once,
    "note": write_note,
    "repair": repair_zoo,
    "read-crowd": read_crowd,
    "discard": make_and_discard,
    "read-zoo": read_zoo,
}


class Instants:
    """Counts the calls that touch the disk, before and after each, and ends the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.last, self.count = last, 0

    def __call__(self, frame: Any, event: str, function: Any) -> None:
        if event in ("c_call", "c_return") and function.__name__ in TOUCHES:
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def child(folder: Path, kind: str, version: int, instant: str) -> None:
    instants = Instants(int(instant) if instant.isdigit() else None)
    if instant == "count" or instant.isdigit():
        sys.setprofile(instants)
    if instant.startswith("call"):
        from tests.faults import tracer

        tracer.offer()
    if instant == "nobody" and os.getuid() == 0:
        os.setuid(65534)
    WRITERS[kind](folder, version)
    sys.setprofile(None)
    if instant != "calls":  # which the one that traces answers
        print(f"count {instants.count}" if instant == "count" else "done", flush=True)
    os._exit(0)


def works(folder: Path, kinds: str, versions: str) -> list[Callable[[], None]]:
    """What several processes do, of ``KIND|KIND`` and ``VERSION|VERSION``."""
    pairs = zip(kinds.split("|"), versions.split("|"), strict=True)
    return [partial(WRITERS[kind], folder, int(version)) for kind, version in pairs]


def main(warm: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.faults import crossing, tracer

    torch.set_num_threads(1)
    # What is imported late is imported before the first fork.
    for kind in ("generator", "zoo", "training", "sources", "import", "repair"):
        WRITERS[kind](warm, 0)
    for line in sys.stdin:
        folder, kind, version, instant = line.rstrip("\n").split("\t")
        # One answer for each question: a child may be killed after its own "done" and before its end.
        ear, mouth = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(mouth, sys.stdout.fileno())
            try:
                if instant.startswith("cross"):
                    crossing.main_of(works(Path(folder), kind, version), instant)
                    os._exit(0)
                child(Path(folder), kind, int(version), instant)
            except BaseException as error:
                sys.setprofile(None)
                print(f"error {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
                os._exit(1)
        if instant.startswith("call"):
            made = tracer.follow(pid, int(instant[5:]) if instant.startswith("call:") else None)
            if instant == "calls":
                os.write(mouth, f"count {made}".encode())
        if instant.startswith("after:"):
            time.sleep(float(instant.removeprefix("after:")))
            os.kill(pid, signal.SIGKILL)
        os.close(mouth)
        if not instant.startswith("call"):
            os.waitpid(pid, 0)
        with open(ear) as answer:
            print(answer.read().strip() or "killed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
