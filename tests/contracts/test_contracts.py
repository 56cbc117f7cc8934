"""One table over every registered generator, weight tokenizer and architecture family.

What is registered keeps these promises, at tiny size and with the real classes. A thing that is registered
and not in the table fails :func:`test_nothing_registered_is_left_out`: add one line for it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weightloom.architectures import (
    ArchitectureSpec,
    architecture_families,
    architecture_from_json,
    parse_architecture,
)
from weightloom.architectures.capture import graph_of
from weightloom.conditioning import TEXT_WIDTH, encode_text, stack_conditions
from weightloom.conditioning.names import encode_names
from weightloom.errors import CheckpointError, InputError, UnsupportedRequestError, WeightloomError
from weightloom.fitting import initial_flats, run_networks
from weightloom.generators import Generator, Sampling, Validity, generators
from weightloom.generators.average import AverageCheckpoint
from weightloom.generators.closed_form import ClosedForm
from weightloom.generators.diffusion import DiffusionConfig, LatentDiffusion
from weightloom.generators.gaussian import GaussianWeights
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.generators.interpolation import AlignedInterpolation, Interpolation
from weightloom.generators.kde import KernelDensity
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.generators.load import load_generator
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.generators.noisy import NoisyCheckpoint
from weightloom.generators.random_init import RandomInit
from weightloom.generators.static_hypernetwork import StaticHypernetwork, StaticHypernetworkConfig
from weightloom.generators.trunks import installed
from weightloom.generators.words import Words, words_validity
from weightloom.generators.words_part import WordsConfig
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.tasks import SupportSet, parse_task
from weightloom.tokenizers import WeightTokenizer, architecture_key, load_tokenizer, tokenizers
from weightloom.weights import WeightStatistics, layout_of

# ------------------------------------------------------------------------------------- the table

ARCHITECTURES = {
    "cnn": "cnn(depth=1,width=4)",
    "deepnet": "deepnet(index=7,width=4)",
    "efficientnet-lite": "efficientnet-lite(scale=10)",
    "mlp": "mlp(depth=1,width=4,norm=batch)",
    "mobilenet": "mobilenet(depth=3,width=4)",
    "mobilenetv2": "mobilenetv2(scale=10)",
    "resnet": "resnet(depth=8,width=2)",
    "tinycnn": "tinycnn(variant=small,classes=10,input=1x28x28)",
    "vgg": "vgg(depth=2,width=4)",
    "vit": "vit(depth=1,width=8)",
}

TOKENIZERS = {
    "fsq": {"chunk": 16, "codes": 4, "vocabulary": 5, "width": 16, "depth": 1},
    "gumbel": {"chunk": 16, "codes": 2, "vocabulary": 8, "code_width": 4, "width": 16, "depth": 1},
}


@dataclass(frozen=True)
class Promise:
    """What a generator says of itself."""

    make: Callable[[], Generator]
    draws: bool
    """Another seed gives other weights; otherwise the same."""
    needs_examples: bool = False
    needs_names: bool = False
    """Without examples it wants the names of the classes."""
    saves: bool = False
    any_architecture: bool = False
    """It makes networks of architectures that it has never seen."""
    architecture: str = "cnn(depth=1,width=4)"
    task: str = "digits[3,1,7]@8c1"


PUBLISHED = "efficientnet-lite(input=3x64x64)"

GENERATORS = {
    "pretrained": Promise(
        lambda: published(),
        draws=False,
        saves=True,
        needs_names=True,
        architecture=PUBLISHED,
        task="digits[3,1,7]@64c3",
    ),
    "igpg": Promise(lambda: tiny_igpg(), draws=True, saves=True),
    "random-init": Promise(lambda: RandomInit.from_generator(tiny_igpg()), draws=True, any_architecture=True),
    "nearest": Promise(
        lambda: NearestCheckpoint.from_generator(tiny_igpg()), draws=False, needs_examples=True
    ),
    "average": Promise(
        lambda: AverageCheckpoint.from_generator(tiny_igpg()), draws=False, needs_examples=True
    ),
    "closed-form": Promise(lambda: ClosedForm.from_generator(tiny_igpg()), draws=False, needs_examples=True),
    "ghn": Promise(lambda: tiny_ghn(), draws=False, saves=True, any_architecture=True),
    "kde": Promise(
        lambda: KernelDensity.from_generator(tiny_igpg(), share=1.0), draws=True, needs_examples=True
    ),
    "static_hypernetwork": Promise(lambda: tiny_static(), draws=False, needs_examples=True, saves=True),
    "layerwise-set": Promise(lambda: tiny_layerwise_set(), draws=True, saves=True, any_architecture=True),
    "layerwise": Promise(lambda: tiny_layerwise(), draws=True, saves=True, any_architecture=True),
    "words": Promise(lambda: tiny_words(), draws=True, saves=True, needs_names=True),
    "diffusion": Promise(lambda: tiny_diffusion("attention"), draws=True, saves=True),
    "diffusion, recurrent": Promise(lambda: tiny_diffusion("recurrent"), draws=True, saves=True),
    "gaussian": Promise(lambda: GaussianWeights.from_generator(tiny_igpg()), draws=True, needs_examples=True),
    "noisy": Promise(lambda: NoisyCheckpoint.from_generator(tiny_igpg()), draws=True, needs_examples=True),
    "interpolation": Promise(
        lambda: Interpolation.from_generator(tiny_igpg()), draws=True, needs_examples=True
    ),
    "aligned-interpolation": Promise(
        lambda: AlignedInterpolation.from_generator(tiny_igpg()), draws=True, needs_examples=True
    ),
}


def test_nothing_registered_is_left_out() -> None:
    assert {kind.split(",")[0] for kind in GENERATORS} == set(generators.names()), (
        "generators: the table and the registry differ"
    )
    assert set(TOKENIZERS) == set(tokenizers.names()), "tokenizers: the table and the registry differ"
    assert set(ARCHITECTURES) == set(architecture_families()), (
        "architectures: the table and the registry differ"
    )


# ------------------------------------------------------------------------------------- tiny things

TASKS = ("digits[3,1,7]@8c1", "digits[0,2,4]+invert@8c1")


def resolved(text: str = "cnn(depth=1,width=4)", classes: int = 3) -> ArchitectureSpec:
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or classes, input=spec.input or (1, 8, 8))


def networks(spec: ArchitectureSpec, count: int = 6) -> torch.Tensor:
    noise = torch.rand(count, layout_of(spec).size, generator=torch.Generator().manual_seed(count))
    return initial_flats(spec, [0]) + 0.3 * noise  # variances stay above zero


def tiny_tokenizer(
    kind: str, texts: tuple[str, ...] = ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)")
) -> WeightTokenizer:
    statistics = {}
    for text in texts:
        groups = [(layout_of(resolved(text, c)), networks(resolved(text, c))) for c in (3, 4)]
        statistics[architecture_key(resolved(text))] = WeightStatistics.measure(groups)
    family = tokenizers.get(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        tokenizer = family(family.config_type(**TOKENIZERS[kind]), statistics)  # type: ignore[attr-defined]
        return moved(tokenizer).eval()


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from its start, so that nothing is zero by construction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


@cache
def tiny_igpg() -> IGPG:
    tokenizer = tiny_tokenizer("fsq")
    validity = Validity(
        architectures=tuple(sorted(tokenizer.statistics)), input=(1, 8, 8), min_classes=2, max_classes=5
    )
    config = IGPGConfig(
        width=16, depth=2, heads=2, context=8, overlap=2, channels=1, image_features=16, image_width=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = moved(IGPG(config, tokenizer, validity, name="tiny")).eval()
    spec = resolved()
    with torch.no_grad():
        described = [model.images.describe(parse_task(task).support(20, seed=1).images) for task in TASKS]
        rows = [
            {"id": f"checkpoint-{i}", "task": TASKS[i // 3], "dataset": "digits", "accuracy": i / 10}
            for i in range(6)
        ]
    classes = torch.stack([described[i // 3] for i in range(6)])
    model.zoo_index = ZooIndex([ZooIndexGroup(spec, networks(spec), classes, rows)])
    return model


@cache
def tiny_static() -> StaticHypernetwork:
    config = StaticHypernetworkConfig(embedding_size=3, block=4, task_size=4, image_features=8, image_width=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return moved(StaticHypernetwork(config, tiny_igpg().validity, name="tiny")).eval()


@cache
def tiny_layerwise() -> Layerwise:
    config = LayerwiseConfig(
        largest=("cnn(depth=4,width=4)", "mlp(depth=3,width=16)"), codes=3, levels=9, spread=0.3,
        experts=2, width=16, depth=1, heads=2, image_features=8, image_width=8, channels=1,
    )  # fmt: skip
    return moved(Layerwise(config, validity_of(config, (1, 8, 8), (2, 6), ("digits",)), name="tiny")).eval()


@cache
def tiny_layerwise_set() -> LayerwiseSet:
    """A part for one architecture before one for any size; the same encoder in both."""
    config = LayerwiseConfig(
        largest=("cnn(depth=1,width=4)",), any_size=False, codes=3, levels=9, spread=0.3,
        width=16, depth=1, heads=2, image_features=8, image_width=8, channels=1,
    )  # fmt: skip
    own = moved(Layerwise(config, validity_of(config, (1, 8, 8), (2, 6), ("digits",)), name="own"))
    whole = copy.deepcopy(tiny_layerwise())
    own.images.load_state_dict(whole.images.state_dict())
    index = tiny_igpg().zoo_index
    assert isinstance(own, Layerwise) and index is not None
    with torch.no_grad():
        described = {
            task: whole.images.describe(parse_task(task).support(20, seed=1).images) for task in TASKS
        }
    groups = [
        replace(group, classes=torch.stack([described[str(row["task"])] for row in group.rows]))
        for group in index.groups.values()
    ]
    return LayerwiseSet([own, whole], ZooIndex(groups), name="tiny-set").eval()


@cache
def tiny_words() -> Words:
    keys = tuple(
        str(replace(resolved(text), classes=None))
        for text in ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)")
    )
    limits = replace(words_validity(keys, ("digits",)), max_classes=5)
    model = moved(Words(WordsConfig(hidden=16, codes=4), limits, name="tiny")).eval()
    assert isinstance(model, Words)
    with torch.no_grad():
        for parameter in model.parameters():  # files hold half precision
            parameter.copy_(parameter.half().float())
    return model


@cache
def tiny_diffusion(mixing: str) -> LatentDiffusion:
    model = tiny_igpg()
    config = DiffusionConfig(
        width=16, depth=1, mixing=mixing, steps=3, channels=1, image_features=16, image_width=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        diffusion = LatentDiffusion(config, model.tokenizer, model.validity, name="tiny-diffusion")
        for name, parameter in diffusion.named_parameters():
            if not name.startswith("tokenizer."):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    texts = ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)")
    diffusion.measure_latents({resolved(text): networks(resolved(text)) for text in texts})
    diffusion.zoo_index = model.zoo_index
    return diffusion.eval()


@cache
def tiny_ghn() -> GHN:
    config = GHNConfig(classes=3, width=8, decoder="coordinate", rank=4, kernel=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = moved(GHN(config, make_validity((1, 8, 8)), name="tiny-ghn"))
    assert isinstance(model, GHN)
    return model.eval()


def published() -> Generator:
    """The bundled one; its trunk is inside a package."""
    if not installed(parse_architecture(PUBLISHED)):
        pytest.skip("the package with the published trunk is not installed")
    return load_generator("pretrained")


@cache
def examples(task: str = TASKS[0]) -> SupportSet:
    return parse_task(task).support(5)


@contextmanager
def streams_untouched() -> Iterator[None]:
    """No global stream of random numbers moves: torch's, numpy's, Python's."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "torch's global stream has moved"
    assert np.array_equal(before[1], np.random.get_state()[1]), "numpy's global stream has moved"  # type: ignore[index]
    assert before[2] == random.getstate(), "Python's global stream has moved"


@contextmanager
def module_unchanged(module: object) -> Iterator[None]:
    """Weights, gradients' switches and training mode stay as they are."""
    if not isinstance(module, torch.nn.Module):
        yield
        return
    before = {k: v.clone() for k, v in module.state_dict().items()}
    switches = [(p.requires_grad, p.grad) for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    yield
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert switches == [(p.requires_grad, p.grad) for p in module.parameters()]
    assert modes == [m.training for m in module.modules()]


def assert_reached(module: torch.nn.Module) -> None:
    """Every parameter that requires a gradient has a finite one that is not zero throughout."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite"
            assert bool(parameter.grad.abs().sum() > 0), f"the gradient of {name} is zero"


# ------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
class TestArchitecture:
    def spec(self, family: str) -> ArchitectureSpec:
        return resolved(ARCHITECTURES[family])

    def images(self, spec: ArchitectureSpec, count: int = 3) -> torch.Tensor:
        assert spec.input is not None
        return torch.randn(count, *spec.input)

    def test_shapes(self, family):
        spec = self.spec(family)
        module = spec.initialise(0).eval()
        images = self.images(spec)
        assert module(images).shape == (3, spec.classes)
        assert torch.equal(module(images), module.head(module.features(images)))
        assert sum(p.numel() for p in module.parameters()) == spec.num_parameters()

    def test_gradients_reach_every_parameter(self, family):
        spec = self.spec(family)
        module = moved(spec.initialise(0)).train()
        module(self.images(spec, 8)).square().sum().backward()
        assert_reached(module)

    def test_the_same_seed_gives_the_same_weights_and_another_one_others(self, family):
        spec = self.spec(family)
        with streams_untouched():
            a, b, c = initial_flats(spec, [1, 1, 2])
        assert torch.equal(a, b) and not torch.equal(a, c)

    def test_a_batch_equals_its_singles(self, family):
        spec = self.spec(family)
        module, images = spec.initialise(0).eval(), self.images(spec)
        together = module(images)
        for n in range(3):
            assert torch.allclose(module(images[n : n + 1])[0], together[n], atol=1e-5)

    def test_it_comes_back_from_text_and_json(self, family):
        spec = self.spec(family)
        assert parse_architecture(str(spec)) == parse_architecture(spec.full_text()) == spec
        assert architecture_from_json(spec.to_json()) == spec

    def test_weights_survive_a_layout(self, family):
        spec = self.spec(family)
        flat = networks(spec, 1)[0]
        layout, module = layout_of(spec), spec.build().eval()
        module.load_state_dict(layout.unflatten(flat), strict=True)
        assert torch.equal(layout.flatten(module.state_dict()), flat)
        images = self.images(spec)
        assert torch.allclose(run_networks(spec, flat[None], images)[0], module(images), atol=1e-5)

    @pytest.mark.parametrize("option", ["depth=-1", "width=0", "width=1000000", "nonsense=1", "classes=1"])
    def test_bad_options_are_ours_to_refuse(self, family, option):
        with pytest.raises(InputError):
            parse_architecture(f"{family}({option})")


# ------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
class TestTokenizer:
    def test_shapes(self, kind):
        tokenizer = tiny_tokenizer(kind)
        for spec in (resolved(classes=3), resolved(classes=5), resolved("mlp(depth=1,width=4)")):
            flats = networks(spec)
            layout, chunking, _ = tokenizer.bind(spec)
            tokens = chunking.num_tokens
            codes = tokenizer.encode(spec, flats)
            assert codes.shape == (6, tokens, tokenizer.num_codes) and codes.dtype == torch.long
            assert int(codes.min()) >= 0 and int(codes.max()) < tokenizer.vocabulary
            assert tokenizer.embed_codes(codes).shape == (6, tokens, tokenizer.latent_width)
            rebuilt = tokenizer.decode(spec, codes)
            assert rebuilt.shape == (6, layout.size) and bool(torch.isfinite(rebuilt).all())
            assert bool((rebuilt[:, layout.is_variance] > 0).all())
            output = tokenizer(spec, flats)
            assert output.tokens.shape == output.rebuilt.shape == (6, tokens, tokenizer.config.chunk)
            assert output.codes.shape == codes.shape and output.penalty.shape == ()
            assert tokenizer.closeness(codes).shape == (*codes.shape, tokenizer.vocabulary)

    def test_gradients_reach_every_parameter(self, kind):
        tokenizer = tiny_tokenizer(kind).train().requires_grad_(True)
        loss = torch.zeros(())
        for text in ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)"):
            output = tokenizer(resolved(text), networks(resolved(text)))
            loss = loss + output.weight_error() + output.penalty
        loss.backward()
        assert_reached(tokenizer)

    def test_decoding_is_differentiable(self, kind):
        """What training a prior through the decoder needs."""
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        codes = tokenizer.encode(spec, networks(spec))
        soft = F.one_hot(codes, tokenizer.vocabulary).float().requires_grad_()
        tokenizer.decode_latents(spec, tokenizer.embed(soft)).square().sum().backward()
        assert soft.grad is not None and bool(torch.isfinite(soft.grad).all())
        assert bool((soft.grad.abs().sum(-1) > 0).float().mean() > 0.9)

    def test_one_hot_codes_are_the_quantisers_own_latents(self, kind):
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        _, chunking, bound = tokenizer.bind(spec)
        tokens = chunking.to_tokens(bound.normalise(networks(spec)))
        latents, codes, _ = tokenizer.encode_tokens(tokens, tokenizer.describe(spec))
        one_hot = F.one_hot(codes, tokenizer.vocabulary).float()
        assert torch.allclose(tokenizer.embed(one_hot), latents, atol=1e-5)
        assert torch.equal(tokenizer.embed_codes(codes), tokenizer.embed(one_hot))

    def test_a_batch_equals_its_singles(self, kind):
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        flats = networks(spec)
        codes = tokenizer.encode(spec, flats)
        rebuilt = tokenizer.decode(spec, codes)
        for n in range(6):
            assert torch.equal(tokenizer.encode(spec, flats[n : n + 1])[0], codes[n])
            assert torch.allclose(tokenizer.decode(spec, codes[n : n + 1])[0], rebuilt[n], atol=1e-5)

    def test_using_it_leaves_no_trace(self, kind):
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        flats = networks(spec)
        kept = flats.clone()
        with streams_untouched(), module_unchanged(tokenizer):
            codes = tokenizer.encode(spec, flats)
            tokenizer.decode(spec, codes)
            tokenizer.health(codes)
        assert torch.equal(flats, kept)
        assert torch.equal(tokenizer.encode(spec, flats), codes)

    def test_it_comes_back_from_its_files_bit_for_bit(self, kind, tmp_path):
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        tokenizer.save(tmp_path)
        again = load_tokenizer(tmp_path)
        assert type(again) is type(tokenizer) and again.config == tokenizer.config and not again.training
        assert_same_state(tokenizer, again)
        flats = networks(spec)
        codes = tokenizer.encode(spec, flats)
        assert torch.equal(again.encode(spec, flats), codes)
        assert torch.equal(again.decode(spec, codes), tokenizer.decode(spec, codes))

    def test_numbers_that_fit_half_precision_lose_nothing_either(self, kind, tmp_path):
        """Files may be narrower than the model; what comes back is the model."""
        tokenizer, spec = tiny_tokenizer(kind), resolved()
        tokenizer.save(tmp_path / "wide")
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                parameter.copy_(parameter.half().float())
        for statistics in tokenizer.statistics.values():
            for centre in statistics.centres.values():
                centre.copy_(centre.half().float())
        tokenizer._bound.clear()
        tokenizer.save(tmp_path / "narrow")
        again = load_tokenizer(tmp_path / "narrow")
        assert_same_state(tokenizer, again)
        assert all(p.dtype == torch.float32 for p in again.parameters())
        flats = networks(spec)
        codes = tokenizer.encode(spec, flats)
        assert torch.equal(again.encode(spec, flats), codes)
        rebuilt = again.decode(spec, codes)
        assert rebuilt.dtype == torch.float32 and torch.equal(rebuilt, tokenizer.decode(spec, codes))
        sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "narrow")]
        assert sizes[1] <= sizes[0]

    def test_bad_input_is_ours_to_refuse(self, kind, tmp_path):
        tokenizer = tiny_tokenizer(kind)
        with pytest.raises(UnsupportedRequestError):
            tokenizer.encode(resolved("vgg(depth=2,width=4)"), torch.zeros(1, 5))
        with pytest.raises(WeightloomError):
            tokenizer.encode(parse_architecture("cnn(depth=1,width=4)"), torch.zeros(1, 5))
        with pytest.raises(CheckpointError):
            load_tokenizer(tmp_path)


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


# ------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("kind", sorted(GENERATORS))
class TestGenerator:
    def many(self, kind: str, model: Generator | None = None, **options):
        """Samples with batch norms as generated, so that nothing but the generator is seen."""
        promise = GENERATORS[kind]
        model = model or promise.make()
        defaults = {"support": examples(promise.task), "batch_norm": "generated"}
        return model.generate_many(promise.architecture, **{**defaults, **options})

    def test_it_is_what_the_registry_says(self, kind):
        model = GENERATORS[kind].make()
        assert type(model) is generators.get(model.kind) and model.kind == kind.split(",")[0]
        assert isinstance(model.name, str) and model.name and isinstance(model.validity, Validity)

    def test_shapes_and_reports(self, kind):
        samples = self.many(kind, num_samples=3)
        spec = resolved(GENERATORS[kind].architecture)
        for number, sample in enumerate(samples):
            assert sample.architecture == spec
            assert sample.flat.shape == (layout_of(spec).size,) and sample.flat.dtype == torch.float32
            assert bool(torch.isfinite(sample.flat).all()) and not sample.flat.requires_grad
            variances = sample.flat[layout_of(spec).is_variance]
            # Published networks have channels that are always zero.
            assert bool((variances >= 0).all() if kind == "pretrained" else (variances > 0).all())
            assert sample.module(torch.zeros(2, *spec.input)).shape == (2, 3)
            report = sample.report
            assert report["kind"] == kind.split(",")[0] and report["generator"] and report["sample"] == number
            assert report["seconds"] >= 0 and 0 <= report["support_accuracy"] <= 1

    def test_the_same_seed_gives_the_same_weights(self, kind):
        a, b = (self.many(kind, num_samples=2, seed=7) for _ in range(2))
        assert all(torch.equal(x.flat, y.flat) for x, y in zip(a, b, strict=True))

    def test_words_change_nothing_where_none_are_read(self, kind):
        model = GENERATORS[kind].make()
        plain, told = (self.many(kind, model, instruction=text) for text in (None, "three digits"))
        if model.reads_words:
            pytest.skip("an instruction may change what it makes")
        assert torch.equal(plain[0].flat, told[0].flat)

    @pytest.mark.parametrize(
        ("name", "value"), [("temperature", 2.0), ("top_k", 1), ("top_p", 0.01), ("guidance", 5.0)]
    )
    def test_only_options_that_are_heeded_change_anything(self, kind, name, value):
        model = GENERATORS[kind].make()
        warm = {"temperature": 1.0} if "temperature" in model.heeds else {}
        plain, other = (
            torch.stack(
                [s.flat for s in self.many(kind, model, num_samples=3, seed=7, sampling=Sampling(**o))]
            )
            for o in (warm, {**warm, name: value})
        )
        assert torch.equal(plain, other) == (name not in model.heeds)

    def test_another_seed_gives_others_where_something_is_drawn(self, kind):
        warm = Sampling(temperature=1.0)
        a, b = (
            torch.stack([s.flat for s in self.many(kind, num_samples=3, seed=seed, sampling=warm)])
            for seed in (7, 8)
        )
        assert GENERATORS[kind].make().draws == GENERATORS[kind].draws != torch.equal(a, b)
        if GENERATORS[kind].draws:
            assert len({tuple(flat.tolist()) for flat in a}) == 3, "samples of one call must differ"

    def test_a_batch_starts_with_its_singles(self, kind):
        three = self.many(kind, num_samples=3, seed=7)
        for count in (1, 2):
            fewer = self.many(kind, num_samples=count, seed=7)
            for a, b in zip(fewer, three, strict=False):
                assert torch.allclose(a.flat, b.flat, atol=1e-5)

    def test_using_it_leaves_no_trace(self, kind):
        promise = GENERATORS[kind]
        model, kept = promise.make(), examples(promise.task).images.clone()
        global_state = torch.get_rng_state()
        with streams_untouched(), module_unchanged(model):
            samples = self.many(kind, model, num_samples=2)
        assert torch.equal(kept, examples(promise.task).images)
        for sample in samples:
            sample.flat.zero_()
        again = self.many(kind, model, num_samples=2)
        assert all(bool(s.flat.any()) for s in again), "a sample shares its memory with the generator"
        assert torch.equal(global_state, torch.get_rng_state())

    def test_gradients_reach_every_parameter(self, kind):
        model = GENERATORS[kind].make()
        if not isinstance(model, torch.nn.Module):
            return  # nothing in it is learned
        model.zero_grad()
        for text in ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)"):
            spec = resolved(text)
            for parts in ((), ("architecture",)):
                likelihood(model, spec, parts).backward()
        try:
            assert_reached(model)
        finally:
            model.zero_grad(set_to_none=True)

    def test_examples_may_be_missing_or_are_asked_for(self, kind):
        spec = resolved(GENERATORS[kind].architecture)
        if GENERATORS[kind].needs_examples:
            with pytest.raises(InputError, match="give examples of the task"):
                GENERATORS[kind].make().generate_many(spec, seed=1)
        else:
            model = GENERATORS[kind].make()
            names = None
            if GENERATORS[kind].needs_names:
                names = ["cat", "dog", "truck"]
                with pytest.raises(InputError, match="names of its classes"):
                    model.generate_many(spec, seed=1)
            (sample,) = model.generate_many(spec, classes=names, seed=1)
            assert "support_loss" not in sample.report and bool(torch.isfinite(sample.flat).all())

    def test_it_comes_back_from_its_files_bit_for_bit(self, kind, tmp_path):
        model = GENERATORS[kind].make()
        if not GENERATORS[kind].saves:
            assert not hasattr(model, "save_pretrained") and not hasattr(model, "from_pretrained")
            return
        model.save_pretrained(tmp_path)
        again = load_generator(tmp_path)
        assert type(again) is type(model) and again.validity == model.validity and again.name == model.name
        if isinstance(again, torch.nn.Module):
            assert_same_state(model, again)
        for a, b in zip(self.many(kind, num_samples=2), self.many(kind, again, num_samples=2), strict=True):
            assert torch.equal(a.flat, b.flat)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError):
            load_generator(tmp_path)

    @pytest.mark.parametrize(
        ("architecture", "options"),
        [
            ("cnn(depth=2,width=4,classes=3)", {}),
            ("cnn(depth=1,width=4,classes=4)", {}),
            ("cnn(depth=1,width=4,input=3x16x16)", {}),
            ("cnn(depth=1", {}),
            ("cnnn(depth=1)", {}),
            ("", {}),
            (7, {}),
            ("cnn(depth=1,width=4)", {"support": None}),
            ("cnn(depth=1,width=4)", {"support": "digits"}),
            ("cnn(depth=1,width=4)", {"instruction": ""}),
            ("cnn(depth=1,width=4)", {"instruction": "x" * 100_000}),
            ("cnn(depth=1,width=4)", {"instruction": 3}),
            ("cnn(depth=1,width=4)", {"num_samples": 0}),
            ("cnn(depth=1,width=4)", {"num_samples": 10**9}),
            ("cnn(depth=1,width=4,classes=9)", {"support": None}),
        ],
    )
    def test_bad_requests_are_ours_to_refuse(self, kind, architecture, options):
        model = GENERATORS[kind].make()
        if GENERATORS[kind].any_architecture and architecture == "cnn(depth=2,width=4,classes=3)":
            assert model.generate_many(architecture, support=examples())
            return
        with streams_untouched(), pytest.raises(InputError) as caught:
            model.generate_many(architecture, **{"support": examples(), **options})
        message = str(caught.value)
        assert message and "\n" not in message and len(message) < 1000

    def test_it_documents_itself(self, kind):
        family = generators.get(kind.split(",")[0])
        assert family.__doc__ and Path(str(__import__("sys").modules[family.__module__].__file__)).is_file()


def likelihood(model: torch.nn.Module, spec: ArchitectureSpec, without: tuple[str, ...]) -> torch.Tensor:
    """What a learned generator is trained with, over requests with and without each part.

    A new kind of learned generator adds its own branch.
    """
    if isinstance(model, StaticHypernetwork):
        support = examples()
        return model.episode_loss(spec, support.images, *support.flat())[0]
    if isinstance(model, LatentDiffusion):
        return denoising_error(model, spec, without)
    if isinstance(model, GHN):
        images, labels = examples().flat()
        built = spec if "architecture" in without else resolved("resnet(depth=8,width=4)")
        (weights,) = model([graph_of(built)])
        return F.cross_entropy(torch.func.functional_call(built.initialise(0), weights, (images,)), labels)
    if isinstance(model, Layerwise):
        return layerwise_error(model, without)
    if isinstance(model, LayerwiseSet):
        texts = ("cnn(depth=1,width=4)",), ("cnn(depth=4,width=4)", "mlp(depth=4,width=16)")
        errors = [layerwise_error(part, without, own) for part, own in zip(model.ordered, texts, strict=True)]
        return torch.stack(errors).sum()
    if isinstance(model, Words):
        return words_error(model, spec, without)
    assert isinstance(model, IGPG), f"say how {type(model).__name__} learns"
    support = examples().images
    words = F.normalize(torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)
    classes = model.images.describe(support)
    condition = stack_conditions(
        [words, None, words, None],
        [classes, classes, None, None],
        text_width=TEXT_WIDTH,
        shape=(3, classes.shape[1]),
    )
    condition = replace(condition, supports=(support, support, None, None)).without(*without)
    codes = model.tokenizer.encode(spec, networks(spec, 4))
    initial = model.initial_codes(spec, condition, codes)
    likely = F.cross_entropy(model(spec, condition, codes, initial).flatten(0, 2), codes.flatten())
    with torch.no_grad():
        sampled = model.sample_codes(
            spec, condition, [torch.Generator().manual_seed(i) for i in range(4)], Sampling()
        )
    assert sampled.shape == codes.shape
    return likely


def layerwise_error(
    model: Layerwise,
    without: tuple[str, ...],
    texts: tuple[str, ...] = ("cnn(depth=4,width=4)", "mlp(depth=4,width=16)"),
) -> torch.Tensor:
    words = F.normalize(torch.randn(1, TEXT_WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    support = examples().images
    seen = model.images.describe(support)[None]
    loss = torch.zeros(())
    for text in texts:
        spec = resolved(text)
        for told, shown in ((words, None), (None, seen)):
            told = None if "instruction" in without else told
            shown = None if "dataset" in without else shown
            means = model.means(spec, told, shown, has_architecture="architecture" not in without)
            trunks = model.dictionary.decode(spec, means)
            loss = loss + model.episode_loss(spec, trunks, [support[:, :3]], [support[:, 3:]])[0]
    return loss


def words_error(model: Words, spec: ArchitectureSpec, without: tuple[str, ...]) -> torch.Tensor:
    part, support = model.part(spec), examples().images
    sentence = None if without else encode_text(["three digits, upside down"])[0]
    written = part.write(encode_names(["three", "one", "seven"]), sentence)
    images, labels = examples().flat()
    features, measured = part.run(written.trunk, images, None)
    loss = F.cross_entropy(features @ written.rows.T + written.biases, labels)
    if part.norms:
        loss = loss + part.statistics_loss(written.statistics, measured)
    seer, asked = model.seer(spec), support[:, 3:].flatten(0, 1)
    for names in (encode_names(["three", "one", "seven"]), None):
        made = seer.make(names, sentence, support[:, :3])
        shown = torch.cat([support[:, :3].flatten(0, 1), asked])
        statistics = seer.blend(made, shown, seer.weigh(3, 3, torch.zeros(2))[3])
        features, _ = seer.run(made.trunk, shown, statistics)
        rows, biases = seer.head(made, features[:9].unflatten(0, (3, 3)), features[9:])
        logits = features[9:] @ rows.T + biases
        loss = loss + F.cross_entropy(logits, torch.arange(3).repeat_interleave(2))
    return (
        loss if sentence is None else loss - model.turns(sentence[None], ["three digits, upside down"])[0, 2]
    )


def denoising_error(model: LatentDiffusion, spec: ArchitectureSpec, without: tuple[str, ...]) -> torch.Tensor:
    words = F.normalize(torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)
    support = examples().images
    classes = model.images.describe(support)
    condition = stack_conditions(
        [words, None, words, None],
        [classes, classes, None, None],
        text_width=TEXT_WIDTH,
        shape=(3, classes.shape[1]),
        initial=[model.initial_codes(spec, support, classes)[0]] * 2 + [None, None],
    ).without(*without)
    x = model.rescale(spec, model.tokenizer.embed_codes(model.tokenizer.encode(spec, networks(spec, 4))))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    t = model.schedule.times(torch.linspace(0.1, 0.9, 4))
    noisy, wanted = model.schedule.noisy(x, noise, t)
    return (model(model.described(spec, condition), noisy, t) - wanted).square().mean()
