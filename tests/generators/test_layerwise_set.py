"""Several layer-wise generators as one, and the bundled set."""

from __future__ import annotations

import json

import pytest
import torch

from weightloom.errors import CheckpointError, SpecError, UnsupportedRequestError
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.generators.load import load_generator
from weightloom.io import load_tensors
from weightloom.tasks import parse_task

TASK = "digits[3,1,7]@8c1"
ANY = "cnn(depth=4,width=5)"
OWN = "cnn(depth=2,width=6)"


def part(name, *, any_size, shape=(1, 8, 8), **changes):
    sizes = LayerwiseConfig(
        largest=(OWN,) if not any_size else ("cnn(depth=4,width=8)", "mlp(depth=3,width=16)"),
        any_size=any_size, codes=3, width=16, depth=1, heads=2, image_features=8, image_width=8,
        channels=shape[0], **changes,
    )  # fmt: skip
    made = Layerwise(sizes, validity_of(sizes, shape, (2, 10), ("digits",)), name=name)
    with torch.no_grad():
        for parameter in made.out.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return made.eval()


@pytest.fixture
def parts():
    both = [part("own", any_size=False), part("any", any_size=True)]
    both[1].images.load_state_dict(both[0].images.state_dict())
    return both


@pytest.fixture
def support():
    return parse_task(TASK).support(8)


def test_the_first_part_that_makes_it_answers_and_the_report_names_it(parts, support):
    model = LayerwiseSet(parts)
    for text, number in ((OWN, 0), (ANY, 1), ("mlp(depth=2,width=7)", 1)):
        sample, alone = (m.generate(text, support=support, seed=3) for m in (model, parts[number]))
        assert torch.equal(sample.flat, alone.flat) and sample.report["part"] == parts[number].name
        assert model.part_for(sample.architecture) is parts[number]
    swapped = LayerwiseSet(parts[::-1])
    assert swapped.generate(OWN, support=support).report["part"] == "any"


def test_what_no_part_makes_is_refused_in_the_words_of_the_last(parts, support):
    model = LayerwiseSet(parts)
    with pytest.raises(UnsupportedRequestError, match="any depth and width are made of cnn, mlp only"):
        model.generate("vit(depth=1,width=8)", support=support)
    with pytest.raises(UnsupportedRequestError, match="it makes: cnn"):
        LayerwiseSet(parts[:1]).generate(ANY, support=support)


def test_the_encoder_is_one_module_and_is_kept_once(parts, support, tmp_path):
    model = LayerwiseSet(parts)
    assert parts[1].images is model.images
    model.save_pretrained(tmp_path / "kept")
    names = list(load_tensors(tmp_path / "kept" / "model.safetensors")[0])
    assert any(name.startswith("images.") for name in names)
    assert not any(".images." in name for name in names)
    again = load_generator(tmp_path / "kept")
    assert isinstance(again, LayerwiseSet) and again.validity == model.validity
    for text in (OWN, ANY):
        a, b = (m.generate(text, support=support, seed=1) for m in (model, again))
        assert torch.allclose(a.flat, b.flat, atol=1e-2) and a.report["part"] == b.report["part"]


def test_parts_that_do_not_belong_together_are_refused(parts):
    other = part("other", any_size=True)
    with torch.no_grad():
        next(other.images.parameters()).add_(1)
    wide = part("wide", any_size=True, shape=(3, 16, 16))
    refusals = (([], "1 to 64 parts"), ([parts[0], other], "one image encoder"), ([parts[0], wide], "size"))
    for wrong, said in refusals:
        with pytest.raises(SpecError, match=said):
            LayerwiseSet(wrong)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("parts"),
        lambda held: held.update(parts=[]),
        lambda held: held.update(parts=3),
        lambda held: held["parts"][0].pop("config"),
        lambda held: held["validity"].update(max_classes=11),
        lambda held: held["parts"][0]["config"].update(width="wide"),
        lambda held: held["parts"].append(held["parts"][0]),
    ],
)
def test_a_broken_folder_is_one_sentence(parts, tmp_path, change):
    LayerwiseSet(parts).save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    change(held)
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(CheckpointError):
        load_generator(tmp_path)


def test_the_bundled_one_has_four_parts_and_an_index_of_its_zoo():
    model = load_generator("layerwise-tiny")
    assert isinstance(model, LayerwiseSet) and model.zoo_index is not None
    names = [one.name.removeprefix("layerwise-tiny-") for one in model.ordered]
    assert names == ["cnn", "mlp", "resnet", "any"]
    assert sum(len(group.rows) for group in model.zoo_index.groups.values()) == 396
    support = parse_task("digits@16c3").support(8)
    report = model.generate("cnn(depth=3,width=16)", support=support).report
    assert report["part"] == "layerwise-tiny-cnn" and report["novelty"]["distance"] > 0
