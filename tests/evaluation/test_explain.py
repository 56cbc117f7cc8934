"""What drove a result: parts removed, nearest checkpoints, attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.evaluation.explain import explain, nearest_checkpoints
from weightloom.fitting import accuracy
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import load_generator
from weightloom.generators.random_init import RandomInit
from weightloom.nn.transformer import CausalTransformer
from weightloom.tasks import parse_task

TASK = "digits[3,1,7]@8c1"


@pytest.fixture(scope="module")
def layerwise():
    config = LayerwiseConfig(
        largest=("cnn(depth=3,width=8)",), channels=1, codes=3, width=16, depth=2, heads=2,
        image_features=8, image_width=8,
    )  # fmt: skip
    return Layerwise(config, validity_of(config, (1, 8, 8), (2, 10), ("digits",)), name="tiny").eval()


def asked(model, **changes):
    task = parse_task(TASK)
    images, labels = task.data("test").all()
    spec = parse_architecture("cnn(depth=2,width=6)").resolve(classes=3, input=(1, 8, 8))
    options = {"instruction": None, "support": task.support(8), "images": images, "labels": labels}
    return explain(model, spec, **{**options, **changes})


def test_examples_drive_a_layerwise_network(layerwise):
    found = asked(layerwise)
    assert set(found["removed"]) == {"nothing", "examples"}
    assert found["removed"]["nothing"] > found["removed"]["examples"] + 0.2
    assert found["nearest"] is None and found["starts_from"] is None


def test_class_names_are_a_part_of_their_own(text_encoder):
    task = parse_task("digits[3,1,7]@16c3")
    images, labels = task.data("test").all()
    spec = parse_architecture("cnn(depth=3,width=16)").resolve(classes=3, input=(3, 16, 16))
    model = load_generator("words-small")
    found = explain(model, spec, instruction="Digits", support=task.support(4), images=images, labels=labels)
    assert set(found["removed"]) == {"nothing", "instruction", "examples", "class names"}
    nameless = model.generate(spec, support=replace(task.support(4), class_names=("zzq0", "zzq1", "zzq2")),
                              instruction="Digits")  # fmt: skip
    assert found["removed"]["class names"] == pytest.approx(
        float(accuracy(spec, nameless.flat[None], images, labels)[0])
    )
    alone = model.generate(spec, classes=task.class_names, instruction="Digits")
    assert found["removed"]["examples"] == pytest.approx(
        float(accuracy(spec, alone.flat[None], images, labels)[0])
    )
    assert not found["knows_checkpoints"]
    one = parse_task("digits[3,1,7]@16c3").support(1)
    more = explain(
        model, spec, instruction=None, support=one, unlabelled=images[:50], images=images, labels=labels
    )
    assert "pictures without labels" in more["removed"]
    with_them = model.generate(spec, support=one, unlabelled=images[:50])
    assert more["removed"]["nothing"] == pytest.approx(
        float(accuracy(spec, with_them.flat[None], images, labels)[0])
    )


def test_attention_goes_to_named_parts_and_sums_to_one(layerwise):
    shares = asked(layerwise)["attention"]
    assert set(shares) == {"(no instruction given)", "class 3", "class 1", "class 7"}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0


def test_a_generator_without_a_transformer_has_no_attention(layerwise):
    found = asked(RandomInit.from_generator(layerwise))
    assert found["attention"] is None and found["nearest"] is None


def test_attention_is_that_of_the_forward_pass():
    """Values weighted by it give what the block computes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CausalTransformer(width=8, depth=1, heads=2).eval()
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    share = model.attention(x)
    assert share.shape == (1, 1, 2, 5, 5) and torch.allclose(share.sum(-1), torch.ones(1, 1, 2, 5))
    assert bool((share.triu(1) == 0).all())
    block = model.blocks[0]
    from weightloom.nn.transformer import _angles

    _, _, v = block.queries_keys_values(x, _angles(0, 5, 4, x))
    mixed = (share[0] @ v).transpose(1, 2).reshape(1, 5, 8)
    y = x + block.attention_out(mixed)
    gate, up = block.gate_up(block.feed_norm(y)).chunk(2, dim=-1)
    wanted = model.norm(y + block.feed_out(torch.nn.functional.silu(gate) * up))
    assert torch.allclose(model(x), wanted, atol=1e-5)


def test_the_nearest_checkpoint_of_a_checkpoint_is_itself():
    model = load_generator("layerwise-tiny")
    spec, group = next(iter(model.zoo_index.groups.items()))
    found = nearest_checkpoints(model, spec, group.flats[0])
    assert found[0]["id"] == group.rows[0]["id"]
    distances = [one["distance"] for one in found]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[1]
