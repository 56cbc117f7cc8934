"""The contract itself: samples, reports, refusals, files."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError, SpecError, UnsupportedRequestError
from weightloom.fitting import recalibrate, run_networks
from weightloom.generators import Generator, Sample, Sampling, Validity, best_of
from weightloom.generators.base import MAX_SAMPLES
from weightloom.io import load_tensors
from weightloom.tasks import SupportSet
from weightloom.weights import layout_of


@pytest.fixture
def sample(igpg, resolved, support):
    return igpg.generate(resolved(), support=support, seed=1)


class TestSample:
    def test_its_module_is_an_ordinary_one(self, sample, resolved):
        module = sample.module
        assert not module.training and all(p.requires_grad for p in module.parameters())
        images = torch.randn(4, 1, 8, 8)
        wanted = run_networks(resolved(), sample.flat[None], images)[0]
        assert torch.allclose(module(images), wanted, atol=1e-5)
        module(images).sum().backward()
        assert module is sample.module

    def test_training_its_module_does_not_change_the_sample(self, sample):
        kept = sample.flat.clone()
        module = sample.module
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert torch.equal(sample.flat, kept)
        assert torch.equal(layout_of(sample.architecture).flatten(sample.state_dict), kept)

    def test_it_is_saved_with_its_provenance(self, sample, tmp_path):
        path = sample.save(tmp_path / "deep" / "net.safetensors")
        tensors, metadata = load_tensors(path)
        assert tensors.keys() == sample.state_dict.keys()
        assert all(torch.equal(v, sample.state_dict[k]) for k, v in tensors.items())
        assert metadata["architecture"] == sample.architecture.full_text() and metadata["weightloom"]
        report = json.loads(metadata["report"])
        assert report["generator"] == "tiny" and report["kind"] == "igpg" and report["seed"] == 1

    def test_weights_that_are_not_finite_are_never_written(self, resolved, tmp_path):
        flat = torch.zeros(layout_of(resolved()).size)
        flat[0] = torch.nan
        with pytest.raises(InputError, match="this sample: tensor"):
            Sample(resolved(), flat, {}).save(tmp_path / "net.safetensors")
        assert not list(tmp_path.iterdir())

    def test_a_file_that_cannot_be_written(self, sample, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError):
            sample.save(tmp_path / "file" / "net.safetensors")


class TestGenerate:
    def test_the_best_on_the_examples_is_chosen(self, igpg, resolved, support):
        many = igpg.generate_many(resolved(), support=support, num_samples=6, seed=2)
        best = igpg.generate(resolved(), support=support, num_samples=6, seed=2)
        losses = [one.report["support_loss"] for one in many]
        assert best.report["support_loss"] == min(losses) and len(set(losses)) > 1
        assert [one.report["sample"] for one in many] == list(range(6))
        first = igpg.generate(resolved(), num_samples=3, seed=2)
        assert first.report["sample"] == 0

    def test_scores_are_those_of_the_examples(self, sample, support):
        images, labels = support.flat()
        logits = sample.module(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert sample.report["support_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        right = (logits.argmax(-1) == labels).float().mean()
        assert sample.report["support_accuracy"] == pytest.approx(float(right))
        assert sample.report["seconds"] > 0

    def test_batch_norms_are_measured_where_it_says_so(self, igpg, resolved, support):
        kept = igpg.generate(resolved(), support=support, seed=1, batch_norm="generated")
        measured = igpg.generate(resolved(), support=support, seed=1)
        assert kept.report["batch_norm"] == "generated"
        assert measured.report["batch_norm"] == "re-estimated on the support set"
        wanted = recalibrate(resolved(), kept.flat[None], support.flat()[0])[0]
        assert torch.equal(measured.flat, wanted)
        bare = igpg.generate(resolved("mlp(depth=1,width=4)"), support=support)
        assert bare.report["batch_norm"] == "none"
        assert igpg.generate(resolved()).report["batch_norm"] == "generated"
        with pytest.raises(InputError, match="batch_norm is"):
            igpg.generate(resolved(), batch_norm="magic")

    def test_text_and_spec_ask_for_the_same(self, igpg, resolved, support):
        a = igpg.generate("CNN( depth=1, width = 4 )", support=support)
        assert torch.equal(a.flat, igpg.generate(resolved(), support=support).flat)

    def test_a_generator_that_makes_nonsense_is_stopped(self, igpg, resolved):
        class Broken(Generator):
            kind = name = "broken"
            validity = igpg.validity

            def sample_flats(self, request):
                flats = torch.zeros(request.num_samples, layout_of(request.architecture).size)
                flats[-1, 3] = torch.inf
                return flats, [{}] * request.num_samples

        with pytest.raises(InputError, match="generator broken: tensor 'sample 1' holds 1 of"):
            Broken().generate_many(resolved(), num_samples=2)

    def test_best_of_without_scores_is_the_first(self, resolved):
        samples = [Sample(resolved(), torch.zeros(1), {"n": n}) for n in range(3)]
        assert best_of(samples) is samples[0]


class TestBadRequests:
    @pytest.mark.parametrize("count", [0, -1, MAX_SAMPLES + 1, 1.0, "2", None, True])
    def test_numbers_of_samples(self, igpg, resolved, count):
        with pytest.raises(InputError, match="number of samples"):
            igpg.generate(resolved(), num_samples=count)

    @pytest.mark.parametrize("architecture", [None, 3, ["cnn"], {"family": "cnn"}, b"cnn"])
    def test_architectures_that_are_no_text(self, igpg, architecture):
        with pytest.raises(InputError):
            igpg.generate(architecture)

    @pytest.mark.parametrize("shots", [1, 5])
    def test_examples_of_one_class(self, igpg, resolved, support, shots):
        lone = SupportSet(images=support.images[:1, :shots], class_names=("one",))
        with pytest.raises(InputError, match=f"at least two classes, but the examples are {shots} of one"):
            igpg.generate("cnn(depth=1,width=4)", support=lone)

    def test_examples_that_are_none(self, igpg, resolved, support):
        with pytest.raises(InputError, match="must be a SupportSet, not Tensor"):
            igpg.generate(resolved(), support=support.images)
        for dtype in (torch.uint8, torch.float64):
            other = SupportSet(images=support.images.to(dtype), class_names=support.class_names)
            with pytest.raises(InputError, match="must be float32 images"):
                igpg.generate(resolved(), support=other)
        for bad in (torch.nan, torch.inf):
            images = support.images.clone()
            images[1, 0, 0, 3, 3] = bad
            with pytest.raises(InputError, match="not finite"):
                igpg.generate(resolved(), support=SupportSet(images=images, class_names=support.class_names))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": 11},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"guidance": -1},
        {"guidance": 21},
    ],
)
def test_bad_sampling_is_refused(bad):
    with pytest.raises(SpecError):
        Sampling(**bad)


def test_validity_says_what_can_be_done(resolved):
    validity = Validity(
        architectures=("cnn(depth=1,width=4,input=1x8x8)", "mlp(input=1x8x8)"),
        input=(1, 8, 8),
        min_classes=2,
        max_classes=4,
    )
    validity.check(resolved())
    with pytest.raises(UnsupportedRequestError, match="for 1x8x8 images, not 3x16x16"):
        validity.check(resolved().__class__(depth=1, width=4, classes=3, input=(3, 16, 16)))
    with pytest.raises(
        UnsupportedRequestError,
        match=r"it makes: cnn\(depth=1,width=4\); mlp\(depth=2,width=32\)$",
    ):
        validity.check(resolved("cnn(depth=2,width=4)"))
    with pytest.raises(UnsupportedRequestError, match="2 to 4 classes, not 5"):
        validity.check(resolved(classes=5))


def test_validity_for_any_size():
    validity = Validity(
        architectures=("mlp",), input=(3, 32, 32), min_classes=2, max_classes=4, sizes=(16, 64)
    )
    spec = parse_architecture("mlp").resolve(classes=3)
    assert validity.input_for(spec) == (3, 32, 32)
    for side in (16, 33, 64):
        validity.check(spec.resolve(input=(3, side, side)))
    for shape in ((3, 15, 15), (3, 65, 65), (3, 16, 32), (1, 32, 32)):
        with pytest.raises(UnsupportedRequestError, match="of 16 to 64 pixels with 3 channels, not"):
            validity.check(spec.resolve(input=shape))
    with pytest.raises(UnsupportedRequestError, match="it makes: mlp"):
        validity.check(parse_architecture("cnn").resolve(classes=3, input=(3, 32, 32)))
    assert Validity.from_json(json.loads(json.dumps(asdict(validity)))) == validity


def test_checkpoint_errors_are_input_errors():
    assert issubclass(CheckpointError, InputError)


@pytest.mark.parametrize(
    "change",
    [
        {"input": ()}, {"input": (1, 8)}, {"input": (1, 8, 0)}, {"input": (1, 8, "8")}, {"min_classes": 0},
        {"max_classes": 1}, {"max_classes": 2.5}, {"architectures": (3,)},
        {"sizes": (64,)}, {"sizes": (64, 32)}, {"sizes": (0, 32)}, {"sizes": (64, "256")}, {"sizes": "64"},
    ],
)  # fmt: skip
def test_what_can_be_asked_for_makes_sense_or_is_refused(change):
    """A generator's config may say anything."""
    good = {"architectures": ("cnn",), "input": (1, 8, 8), "min_classes": 2, "max_classes": 10}
    assert Validity(**good).max_classes == 10
    with pytest.raises(SpecError):
        Validity(**{**good, **change})
