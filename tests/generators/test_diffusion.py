from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightloom.conditioning import TEXT_WIDTH, stack_conditions
from weightloom.errors import CheckpointError, SpecError
from weightloom.fitting import closed_form_network, initial_flats
from weightloom.generators import Sampling, Validity
from weightloom.generators.diffusion import DiffusionConfig, LatentDiffusion
from weightloom.tokenizers import architecture_key
from weightloom.weights import layout_of

CONFIG = {"width": 16, "depth": 1, "steps": 4, "image_features": 16, "image_width": 8, "channels": 1}
CNN, MLP = "cnn(depth=1,width=4)", "mlp(depth=1,width=4)"


@pytest.fixture
def make(igpg, resolved):
    """Make a tiny diffusion over the latents of the tiny tokenizer, scaled to six networks of each kind."""

    def build(**changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = LatentDiffusion(
                DiffusionConfig(**{**CONFIG, **changes}), igpg.tokenizer, igpg.validity, name="tiny"
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        model.measure_latents({resolved(text): networks(resolved(text)) for text in (CNN, MLP)})
        return model.eval()

    return build


def networks(spec, count=6):
    noise = torch.rand(count, layout_of(spec).size, generator=torch.Generator().manual_seed(count))
    return initial_flats(spec, [0]) + 0.3 * noise


def latents_of(model, spec):
    return model.tokenizer.embed_codes(model.tokenizer.encode(spec, networks(spec)))


def initial_of(model, spec, support):
    """Initial codes (T, D) for examples, and what they are."""
    return model.initial_codes(spec, support.images, model.images.describe(support.images))


def test_latents_are_rescaled_and_come_back(make, resolved):
    model = make()
    for text in (CNN, MLP):
        spec = resolved(text)
        latents = latents_of(model, spec)
        x = model.rescale(spec, latents)
        held = x[..., model.latent_mask(spec)]
        assert float(held.mean()) == pytest.approx(0, abs=0.05)
        assert float(held.std()) == pytest.approx(1, abs=0.1)
        assert torch.allclose(model.restore(spec, x), latents, atol=1e-5)


def test_head_tokens_share_a_scale_whatever_their_class(make, resolved):
    model = make()
    _, chunking, _ = model.tokenizer.bind(resolved(CNN))
    places = model._places(resolved(CNN))
    head = chunking.slots.class_index >= 0
    assert len(set(places[head].tolist())) == 1 and len(set(places[~head].tolist())) == int((~head).sum())
    wide = resolved(CNN, 4)
    zeros = torch.zeros(1, len(model._places(wide)), model.tokenizer.latent_width)
    four = model.restore(wide, zeros)
    assert torch.equal(four[0, -1], four[0, -2])


def test_what_does_not_vary_stays_as_it_is(make, resolved):
    model, spec = make(), resolved(CNN)
    mean, spread = model._scale(architecture_key(spec))
    spread[0] = 0.0
    streams = [torch.Generator().manual_seed(1)]
    x = model.sample_latents(spec, model.condition(spec, [None], [None]), streams)
    assert not bool(x[0, 0].any()) and bool(x[0, 1:].any())
    assert torch.allclose(model.restore(spec, x)[0, 0], mean[0])
    spread[0] = 1.0


def test_nothing_is_decoded_from_beyond_what_latents_can_be(make, resolved):
    model, spec = make(), resolved(CNN)
    far = torch.full((1, len(model._places(spec)), model.tokenizer.latent_width), 1e6)
    assert torch.equal(model.to_flats(spec, far), model.to_flats(spec, far.clamp(max=4)))


@pytest.mark.parametrize("mixing", ["attention", "recurrent"])
def test_every_part_of_the_condition_is_heard(make, resolved, support, mixing):
    model, spec = make(mixing=mixing), resolved(CNN)
    x = torch.randn(1, len(model._places(spec)), model.tokenizer.latent_width)
    words = torch.nn.functional.normalize(torch.ones(TEXT_WIDTH), dim=0)
    whole = stack_conditions(
        [words],
        [model.images.describe(support.images)],
        text_width=TEXT_WIDTH,
        shape=(3, 2 * model.config.image_features),
        initial=[initial_of(model, spec, support)[0]],
    )
    t = torch.tensor([0.5])
    with torch.no_grad():
        full = model(model.described(spec, whole), x, t)
        for part in ("instruction", "dataset", "architecture"):
            assert not torch.allclose(
                full, model(model.described(spec, whole.without(part)), x, t), atol=1e-5
            )
        assert not torch.allclose(
            full, model(model.described(spec, whole), x, torch.tensor([0.9])), atol=1e-5
        )


def test_initial_codes_are_heard_and_are_the_closed_form(make, resolved, support):
    model, spec = make(), resolved(CNN)
    condition = model.condition(spec, [None], [support.images])
    wanted = initial_of(model, spec, support)[0]
    assert torch.equal(condition.initial[0], wanted) and bool(condition.has_initial.all())
    flat = model.tokenizer.decode(spec, wanted[None])[0]
    closed = closed_form_network(
        spec, model.tokenizer.centre(spec), support.images, head_rms=model.tokenizer.head_rms(spec)
    )
    assert float(torch.corrcoef(torch.stack([flat, closed]))[0, 1]) > 0.5
    other = replace(condition, initial=(condition.initial + 1) % model.tokenizer.vocabulary)
    a, b = (model.described(spec, one) for one in (condition, other))
    assert not torch.allclose(a.tokens, b.tokens, atol=1e-4) and not torch.allclose(a.mean, b.mean)
    assert model.condition(spec, [None], [None]).initial is None


@pytest.mark.parametrize("best", ["known", "closed form"])
def test_what_does_best_on_examples_is_started_from_and_the_report_says_so(
    make, igpg, resolved, support, monkeypatch, best
):
    """In training it is the closed form in either case: the checkpoint is what has to be learned."""
    model, spec = make(), resolved(CNN)
    model.zoo_index = igpg.zoo_index
    seen = model.images.describe(support.images)
    _, flat = model.zoo_index.nearest(spec, seen)

    def scores(spec, flats, images, labels):
        made = torch.zeros(len(flats))
        made[-1 if best == "known" else 0] = 1.0  # the checkpoint is the last that is tried
        return made

    monkeypatch.setattr("weightloom.generators.initial_codes.accuracy", scores)
    codes, words = model.initial_codes(spec, support.images, seen)
    kept = model.tokenizer.encode(spec, flat[None])[0]
    assert torch.equal(codes, kept) == (best == "known")
    assert torch.equal(model.condition(spec, [None], [support.images]).initial[0], codes)
    assert model.generate(CNN, support=support).report["initial_codes"] == words
    assert words.startswith("checkpoint") == (best == "known")
    assert not torch.equal(model.training_codes(spec, support.images, seen), kept)


def test_an_untrained_denoiser_draws_around_its_initial_codes(make, resolved, support):
    """As far around it as checkpoints lie around theirs; without noise these come back."""
    model, spec = make(steps=50), resolved(CNN)
    torch.nn.init.zeros_(model.denoiser.outward.weight), torch.nn.init.zeros_(model.denoiser.outward.bias)
    own = model.tokenizer.encode(spec, networks(spec, 40))
    initial = initial_of(model, spec, support)[0]
    model.measure_initial({spec: (own, own)})
    assert not bool(model.described(spec, model.condition(spec, [None], [support.images])).spread.any())
    model.measure_initial({spec: (own, initial.expand_as(own))})
    condition = model.condition(spec, [None], [support.images])
    mask, wanted = model.latent_mask(spec), model.described(spec, condition)
    assert 0 < float(wanted.spread[0][mask].mean()) <= 1
    streams = [torch.Generator().manual_seed(i) for i in range(60)]
    drawn = model.sample_latents(spec, condition.repeat(60), streams)
    assert torch.allclose(drawn.mean(0)[mask], wanted.mean[0][mask], atol=0.6)
    assert float((drawn.std(0) - wanted.spread[0])[mask].abs().mean()) < 0.2
    cold = model.sample_latents(spec, condition, streams[:1], temperature=0.0)
    assert torch.allclose(cold[0][mask], wanted.mean[0][mask], atol=0.02)
    free = model.described(spec, model.condition(spec, [None], [None]))
    assert not bool(free.mean.any()) and bool((free.spread == 1).all())


def test_guidance_goes_beyond_the_conditional_answer(make, resolved, support):
    """One is the conditional draw, zero the unconditional one; between them lies a line."""
    model, spec = make(steps=1), resolved(CNN)
    condition = model.condition(spec, [None], [support.images])
    bare = condition.without("instruction", "dataset")

    def draw(condition, guidance):
        streams = [torch.Generator().manual_seed(3)]
        return model.sample_latents(spec, condition, streams, guidance=guidance)

    told, untold = draw(condition, 1.0), draw(bare, 1.0)
    assert not torch.allclose(told, untold, atol=1e-4)
    assert torch.allclose(draw(condition, 0.0), untold, atol=1e-5)
    assert torch.allclose(draw(condition, 3.0), untold + 3 * (told - untold), atol=1e-4)


def test_it_draws_with_and_without_a_condition(make, resolved, support):
    model = make()
    told = model.generate(CNN, support=support, sampling=Sampling(guidance=2.0))
    assert told.report["told"] == ["examples"] and told.report["guidance"] == 2.0
    free = model.generate("cnn(depth=1,width=4,classes=3)")
    assert free.report["told"] == [] and free.report["steps"] == 4 and free.report["schedule"] == "flow"


def test_only_the_chosen_tensors_are_generated(make, resolved, support):
    model, spec = make(tensors=("head.*",)), resolved(CNN)
    samples = model.generate_many(spec, support=support, num_samples=2, batch_norm="generated")
    centre = layout_of(spec).unflatten(model.tokenizer.centre(spec))
    for sample in samples:
        for name, value in sample.state_dict.items():
            if value.is_floating_point():
                assert torch.equal(value, centre[name]) != name.startswith("head."), name
    assert not torch.equal(samples[0].flat, samples[1].flat)
    _, chunking, _ = model.tokenizer.bind(spec)
    assert not bool(model.latent_mask(spec)[chunking.slots.class_index < 0].any())
    with pytest.raises(SpecError, match="no tensor of"):
        make(tensors=("tail.*",)).generate(spec, support=support)


def test_many_samples_are_denoised_in_parts(make, resolved, monkeypatch):
    monkeypatch.setattr("weightloom.generators.diffusion._AT_ONCE", 2)
    model = make()
    parts = model.generate_many("cnn(depth=1,width=4,classes=3)", num_samples=5, seed=1)
    monkeypatch.setattr("weightloom.generators.diffusion._AT_ONCE", 64)
    whole = model.generate_many("cnn(depth=1,width=4,classes=3)", num_samples=5, seed=1)
    for a, b in zip(parts, whole, strict=True):
        assert torch.allclose(a.flat, b.flat, atol=1e-5)


def test_a_recurrent_one_reads_tokens_in_order_and_denoises_them_in_pieces(make, resolved, monkeypatch):
    model, spec = make(mixing="recurrent"), resolved(CNN)
    condition = model.condition(spec, [None], [None])
    told = model.described(spec, condition)
    x = torch.randn(1, *told.tokens.shape[1:2], model.tokenizer.latent_width)
    t = torch.tensor([0.5])
    with torch.no_grad():
        whole = model(told, x, t)
        changed = x.clone()
        changed[:, 1] += 1
        assert (model(told, changed, t) - whole).abs().sum(-1)[0].nonzero().flatten().tolist() == [1]
        later = [torch.zeros_like(told.tokens) for _ in range(2)]
        later[1][:, 1] = 1
        moved = (model._mixed(later[1]) - model._mixed(later[0])).abs().sum(-1)[0]
        assert not bool(moved[0]) and bool((moved[1:] > 0).all())
        monkeypatch.setattr("weightloom.generators.diffusion._PIECE", 2)
        assert torch.allclose(model(told, x, t), whole, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"mixing": "loud"},
        {"width": 18},
        {"depth": 0},
        {"schedule": "cosine"},
        {"steps": 0},
        {"steps": 2.5},
        {"tensors": ()},
        {"tensors": (3,)},
    ],
)
def test_bad_options_are_refused(bad):
    with pytest.raises(SpecError):
        DiffusionConfig(**bad)


def test_too_many_classes_are_refused(igpg):
    wide = Validity(architectures=(CNN,), input=(1, 8, 8), min_classes=2, max_classes=1000)
    with pytest.raises(SpecError, match="at most 64 classes"):
        LatentDiffusion(DiffusionConfig(**CONFIG), igpg.tokenizer, wide)


def test_a_broken_folder_is_refused(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"flow"', '"wrong"'))
    with pytest.raises(CheckpointError, match="not the config of a diffusion"):
        LatentDiffusion.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        LatentDiffusion.from_pretrained(tmp_path)
