"""A tiny IGPG over real (untrained) networks of scikit-learn's digits, with an index of its zoo."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.fitting import initial_flats
from weightloom.generators import Validity
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.tasks import parse_task
from weightloom.tokenizers import architecture_key
from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from weightloom.weights import WeightStatistics, layout_of

TEXTS = ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)")
TASKS = ("digits[3,1,7]@8c1", "digits[0,2,4]+invert@8c1", "digits[5,6,8]+rot90@8c1")


def resolve(text=TEXTS[0], classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


def make_networks(spec, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return initial_flats(spec, [0]) + 0.3 * torch.rand(count, layout_of(spec).size, generator=generator)


def move(module, scale=0.2):
    """Every parameter away from its start, so that nothing is zero by construction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def make_tokenizer():
    statistics = {}
    for text in TEXTS:
        groups = [(layout_of(resolve(text, c)), make_networks(resolve(text, c))) for c in (3, 4)]
        statistics[architecture_key(resolve(text))] = WeightStatistics.measure(groups)
    config = FSQTokenizerConfig(chunk=16, codes=4, vocabulary=5, width=16, depth=1)
    return move(FSQTokenizer(config, statistics))


def make_igpg(**changes):
    config = {
        "width": 16, "depth": 2, "heads": 2, "context": 64, "overlap": 4, "channels": 1,
        "image_features": 16, "image_width": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        tokenizer = make_tokenizer()
        validity = Validity(
            architectures=tuple(sorted(tokenizer.statistics)), input=(1, 8, 8), min_classes=2, max_classes=5
        )
        model = IGPG(IGPGConfig(**{**config, **changes}), tokenizer, validity, name="tiny")
        move(model.images), move(model.backbone), move(model.out, 0.5)
        for name, parameter in model.named_parameters():
            if name.startswith("no_") or name == "begin":
                torch.nn.init.normal_(parameter)
    return model.eval()


@torch.no_grad()
def make_zoo_index(model):
    """Three tasks of 3 classes: 3 checkpoints of the first, 2 of the second, 1 of the third; none of 4."""
    spec = resolve()
    flats = make_networks(spec, 6, seed=8)
    tasks = [TASKS[i] for i in (0, 0, 0, 1, 1, 2)]
    supports = {t: model.images.describe(parse_task(t).support(40, seed=1).images) for t in TASKS}
    rows = [
        {"id": f"checkpoint-{i}", "task": t, "dataset": "digits", "accuracy": a}
        for i, (t, a) in enumerate(zip(tasks, (0.9, 0.95, 0.8, 0.5, 0.6, 0.7), strict=True))
    ]
    group = ZooIndexGroup(spec, flats, torch.stack([supports[t] for t in tasks]), rows)
    return ZooIndex([group.rounded()])


@pytest.fixture(scope="session")
def resolved():
    return resolve


@pytest.fixture(scope="session")
def build():
    """Make a tiny IGPG; keywords change its config."""
    return make_igpg


@pytest.fixture(scope="session")
def igpg():
    """One shared tiny IGPG with a zoo index; tests leave it as it is."""
    model = make_igpg()
    model.zoo_index = make_zoo_index(model)
    return model


@pytest.fixture(scope="session")
def support():
    return parse_task(TASKS[0]).support(20)


@pytest.fixture(scope="session")
def supports():
    """The support set of each task of the zoo index."""
    return {task: parse_task(task).support(20) for task in TASKS}
