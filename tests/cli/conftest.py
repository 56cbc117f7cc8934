"""A tiny zoo, a tiny untrained generator and ways to call the command line, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from typer.testing import CliRunner

from weightloom.cli.main import app

ARCH = "mlp(depth=1,width=4)"

RECIPE = {
    "kind": "zoo",
    "name": "test-zoo",
    "salt": "cli-tests",
    "datasets": ["digits"],
    "architectures": [ARCH],
    "size": 8,
    "channels": 3,
    "initialisation": "independent",
    "fit": {"steps": 5, "batch_size": 16, "snapshots": [2]},
    "groups": [{"classes": 10, "tasks": 1, "repeats": 3, "canonical": True}, {"classes": 4, "tasks": 2}],
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1 and self.out.startswith("{"), self.out
        return json.loads(self.out)

    def sentence(self, code: int) -> str:
        """The one sentence of a failure: nothing on stdout, no traceback."""
        assert self.code == code, (self.code, self.out, self.err)
        assert self.out == "", self.out
        lines = [line for line in self.err.splitlines() if line.startswith("weightloom: ")]
        assert len(lines) == 1 and self.err.strip().endswith(lines[0]), self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("weightloom: ")


Call = Callable[..., Answer]


@pytest.fixture(scope="session")
def call() -> Call:
    """``call("generate", "--task", ...)`` runs the command line in this process; ``stdin`` are bytes."""
    runner = CliRunner()

    def run(*arguments: str | Path, stdin: bytes | None = None) -> Answer:
        result = runner.invoke(app, [str(a) for a in arguments], input=stdin, prog_name="weightloom")
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="session")
def zoo(call: Call, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of 5 networks, 10 checkpoints; tests only read it."""
    path = tmp_path_factory.mktemp("zoo") / "zoo"
    built = call("zoo", "build", recipe, "--out", path, "--json").json
    assert (built["networks"], built["checkpoints"]) == (5, 10)
    return path


@pytest.fixture(scope="session")
def generator(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IGPG generator that was never trained, with an index of the tiny zoo."""
    from weightloom.generators import Validity
    from weightloom.generators.igpg import IGPG, IGPGConfig
    from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
    from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
    from weightloom.weights import WeightStatistics, layout_of
    from weightloom.zoo import Zoo

    groups = [
        (spec, records, Zoo(zoo).load(records)) for spec, records in Zoo(zoo).by_architecture(final=True)
    ]
    statistics = WeightStatistics.measure((layout_of(spec), flats) for spec, _, flats in groups)
    key = f"{ARCH[:-1]},input=3x8x8)"
    tokenizer = FSQTokenizer(
        FSQTokenizerConfig(chunk=128, codes=4, vocabulary=5, width=16, depth=1), {key: statistics}
    ).eval()
    validity = Validity(architectures=(key,), input=(3, 8, 8), min_classes=4, max_classes=10)
    sizes = {"width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = IGPG(IGPGConfig(**sizes), tokenizer, validity, name="tiny-test").eval()
    found = []
    for spec, records, flats in groups:
        with torch.no_grad():
            classes = [model.images.describe(r.parsed_task().support(4).images) for r in records]
        facts = [{"id": r.id, "task": r.task, "accuracy": r.accuracy} for r in records]
        found.append(ZooIndexGroup(spec, flats, torch.stack(classes), facts))
    model.zoo_index = ZooIndex(found)
    path = tmp_path_factory.mktemp("generator") / "tiny-test"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def network(zoo: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of the tiny zoo as a file: the digits at 3 x 8 x 8."""
    path = tmp_path_factory.mktemp("network") / "digits.safetensors"
    listed = call("zoo", "list", zoo, "--classes", "10", "--final", "--json").json
    call("zoo", "export", zoo, listed["checkpoints"][0]["id"], "--out", path, "--json").json
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images: four classes of six noisy pictures."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label, name in enumerate(("ants", "bees", "cats", "dogs")):
        (folder / name).mkdir()
        for number in range(6):
            pixels = random.integers(0, 64, (20, 24, 3)) + 48 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder
