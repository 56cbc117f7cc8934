"""The layer-wise generator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightloom.errors import CheckpointError, InputError, SpecError, UnsupportedRequestError
from weightloom.fitting import accuracy
from weightloom.generators import Sampling
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import load_generator
from weightloom.tasks import parse_task

TASK = "digits[3,1,7]@8c1"
LARGEST = ("cnn(depth=4,width=8)", "mlp(depth=3,width=16)")


def config(**changes):
    sizes = {"codes": 3, "width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8}
    return LayerwiseConfig(**{"largest": LARGEST, "channels": 1, **sizes, **changes})


@pytest.fixture(scope="module")
def model():
    made = Layerwise(config(), validity_of(config(), (1, 8, 8), (2, 10), ("digits",)), name="tiny")
    with torch.no_grad():
        for parameter in made.out.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def support():
    return parse_task(TASK).support(8)


@pytest.mark.parametrize("text", ["cnn(depth=2,width=5)", "cnn(depth=7,width=20)", "mlp(depth=2,width=9)"])
def test_sizes_that_were_never_named_are_made(model, support, text):
    (sample,) = model.generate_many(text, support=support)
    images, labels = parse_task(TASK).data("test").all()
    assert (
        float(accuracy(sample.architecture, sample.flat[None], images, labels)) > 0.45
    )  # untrained; chance is 0.33
    assert sample.report["head"] == "closed form" and sample.report["tokens"] >= 2


def test_without_examples_there_is_a_network_and_the_report_says_what_its_head_is(model):
    (sample,) = model.generate_many("cnn(depth=2,width=4,classes=5)")
    assert sample.report["head"] == "random" and sample.module(torch.zeros(1, 1, 8, 8)).shape == (1, 5)


def test_tokens_do_not_grow_with_the_width(model, support):
    counts = {
        model.generate(f"cnn(depth=3,width={width})", support=support).report["tokens"] for width in (4, 64)
    }
    assert counts == {3}


def test_experts_are_mixed_in_shares_that_examples_decide():
    sizes = config(experts=2)
    made = Layerwise(sizes, validity_of(sizes, (1, 8, 8), (2, 10), ("digits",))).eval()
    with torch.no_grad():
        made.expert[-1].bias.copy_(torch.tensor([9.0, -9.0]))
        for name, table in made.dictionary.tables.items():
            if name.endswith("/experts"):
                table[1] += 1.0  # the second expert alone is anything else than the first
    asked = parse_task(TASK).support(4)
    spec = made.check("cnn(depth=3,width=4)", None, asked, 1, 0, None).architecture
    means = made.means(spec, None, made.images.describe(asked.images)[None])
    assert means.shape == (1, 3, 5) and torch.allclose(means[0, :, 3], torch.ones(3), atol=1e-4)
    first = made.dictionary.decode(spec, means)
    means[..., 3:] = torch.tensor([0.0, 1.0])
    assert not torch.allclose(first, made.dictionary.decode(spec, means))
    bare = made.means(spec, None, None)
    assert torch.allclose(bare[..., 3:], torch.full((1, 3, 2), 0.5))


def test_temperature_0_is_the_mean_rounded_to_a_level(model, support):
    request = model.check("cnn(depth=3,width=4)", None, support, 2, 0, Sampling(temperature=0.0))
    means = model.describe(request)
    codes = model.sample_codes(means, [torch.Generator(), torch.Generator()], request.sampling)
    step = 2 / (model.config.levels - 1)
    assert torch.equal(codes[0], codes[1])
    assert float((model.latents(codes[0]) - means[0]).abs().max()) <= step / 2 + 1e-6


def test_guidance_moves_codes_away_from_those_of_no_condition(model, support):
    plain = model.check("cnn(depth=3,width=4)", None, support, 1, 0, Sampling())
    guided = replace(plain, sampling=Sampling(guidance=2.0))
    bare = model.means(plain.architecture, None, None)
    told = model.describe(plain)
    assert torch.allclose(model.describe(guided), (bare + 2 * (told - bare)).clamp(-1, 1))


def test_what_cannot_be_made_is_refused(model, support):
    for text in ("vit(depth=1,width=8)", "cnn(depth=3,width=8,norm=none)"):
        with pytest.raises(UnsupportedRequestError):
            model.generate(text, support=support)
    with pytest.raises(InputError):
        model.generate("cnn(depth=200,width=4000)", support=support)


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": 0},
        {"levels": 4},
        {"levels": 1},
        {"spread": 0.0},
        {"width": 15},
        {"depth": True},
        {"channels": 3},
    ],
)
def test_settings_that_make_no_sense(changes):
    with pytest.raises(SpecError):
        Layerwise(config(**changes), validity_of(config(), (1, 8, 8), (2, 10), ("digits",)))


def test_a_broken_folder_is_one_sentence(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    again = load_generator(tmp_path / "whole")
    assert isinstance(again, Layerwise) and again.config == model.config
    (tmp_path / "whole" / "config.json").write_text('{"kind": "layerwise", "name": "x"}')
    with pytest.raises(CheckpointError, match="layer-wise"):
        load_generator(tmp_path / "whole")
