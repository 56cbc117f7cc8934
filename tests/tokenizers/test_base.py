"""What all weight tokenizers do alike: numbers about codes, binding, files that are broken."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightloom.errors import CheckpointError, SpecError, UnsupportedRequestError
from weightloom.tokenizers import architecture_key, load_tokenizer, tokenizers


def test_health_counts_codes(tiny):
    tokenizer = tiny("fsq")  # 4 code positions of 5 codes
    codes = torch.zeros(10, 7, 4, dtype=torch.long)
    health = tokenizer.health(codes)
    assert health.total == 20 and health.dead == 16
    assert health.perplexity.tolist() == pytest.approx([1.0] * 4)
    assert health.used.tolist() == pytest.approx([0.2] * 4)
    even = torch.arange(5).repeat(4)[:, None].expand(-1, 4)
    health = tokenizer.health(even)
    assert health.dead == 0 and health.perplexity.tolist() == pytest.approx([5.0] * 4, rel=1e-4)
    half = torch.tensor([0, 1])[:, None].expand(-1, 4)
    summary = tokenizer.health(half).summary()
    assert summary == {
        "used": pytest.approx(0.4),
        "perplexity": pytest.approx(2.0, rel=1e-4),
        "dead_codes": 12,
        "codes": 20,
    }


def test_bits_per_weight(tiny, resolved, kind):
    tokenizer, spec = tiny(kind), resolved()
    layout, chunking, _ = tokenizer.bind(spec)
    bits = chunking.num_tokens * tokenizer.num_codes * math.log2(tokenizer.vocabulary)
    assert tokenizer.bits_per_weight(spec) == pytest.approx(bits / layout.size)


def test_an_unknown_architecture_is_refused_with_those_known(tiny, resolved, kind):
    with pytest.raises(UnsupportedRequestError, match=r"knows no weights of vgg.*it knows: cnn.*; mlp"):
        tiny(kind).bind(resolved("vgg(depth=2,width=4)"))


def test_keys_leave_the_classes_out(resolved):
    assert architecture_key(resolved(classes=3)) == architecture_key(resolved(classes=9))
    assert architecture_key(resolved("mlp(depth=1,width=4)")) != architecture_key(resolved())


def test_the_centre_is_the_mean_network(tiny, resolved, networks):
    spec = resolved(classes=3)
    tokenizer = tiny("fsq")
    layout = tokenizer.bind(spec)[0]
    state = layout.unflatten(tokenizer.centre(spec))
    # The mean over both class counts; the head's rows are all alike.
    assert torch.equal(state["head.weight"], state["head.weight"][:1].expand_as(state["head.weight"]))
    pooled = torch.cat([networks(resolved(classes=c)) for c in (3,)])
    trunk = layout.slot_of_value < 2  # both class counts were made from the same noise up to the head
    assert torch.allclose(tokenizer.centre(spec)[trunk], pooled.mean(0)[trunk], atol=0.2)


def test_closeness_is_zero_for_the_same_code_and_negative_for_others(tiny, kind):
    tokenizer = tiny(kind)
    codes = torch.randint(tokenizer.vocabulary, (3, 5, tokenizer.num_codes))
    near = tokenizer.closeness(codes).detach()
    assert near.shape == (*codes.shape, tokenizer.vocabulary)
    assert torch.equal(near.argmax(-1), codes)
    own = near.gather(-1, codes[..., None])
    assert torch.allclose(own, torch.zeros_like(own), atol=1e-3)
    assert bool((near.sort(-1).values[..., :-1] < 0).all())


@pytest.mark.parametrize(
    "bad",
    [
        {"chunk": 0},
        {"chunk": 10**6},
        {"codes": 0},
        {"codes": 2.5},
        {"vocabulary": 1},
        {"width": 18},
        {"depth": 0},
        {"depth": "2"},
    ],
)
def test_sizes_out_of_range_are_refused(kind, bad):
    with pytest.raises(SpecError):
        tokenizers.get(kind).config_type(**bad)


class TestBrokenFiles:
    @pytest.fixture
    def saved(self, tiny, kind, tmp_path):
        tiny(kind).save(tmp_path / "one")
        return tmp_path / "one"

    def edit_config(self, folder, **changes):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    def edit_tensors(self, folder, change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")  # our own writer refuses what some tests want

    def check(self, folder):
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(folder)
        assert str(folder) in str(caught.value)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_file_is_missing_or_cut(self, saved, name):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: len(whole) // 2])
        self.check(saved)
        (saved / name).unlink()
        self.check(saved)

    @pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "{}"])
    def test_a_config_of_something_else(self, saved, text):
        (saved / "config.json").write_text(text)
        self.check(saved)

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "other"},
            {"kind": ["fsq"]},
            {"config": {"chunk": -1}},
            {"config": {"surprise": 1}},
            {"config": 7},
            {"architectures": [{"family": "cnn", "depth": 0}]},
            {"architectures": [{"family": "nope"}]},
            {"architectures": 5},
            {"architectures": []},
            {"architectures": [{"family": "cnn", "depth": 1, "width": 4}]},
        ],
    )
    def test_a_config_that_does_not_fit(self, saved, change):
        self.edit_config(saved, **change)
        self.check(saved)

    def test_another_size_in_the_config(self, saved, kind):
        config = json.loads((saved / "config.json").read_text())["config"]
        self.edit_config(saved, config={**config, "width": 32})
        self.check(saved)

    @pytest.mark.parametrize("prefix", ["model.", "statistics.0.centre.", "statistics.1.scale."])
    def test_a_tensor_is_missing(self, saved, prefix):
        def drop(tensors):
            del tensors[min(name for name in tensors if name.startswith(prefix))]

        self.edit_tensors(saved, drop)
        self.check(saved)

    @pytest.mark.parametrize("name", ["model.surprise", "statistics.0.surprise", "surprise"])
    def test_a_tensor_too_many(self, saved, name):
        self.edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(2)}))
        self.check(saved)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("prefix", ["model.", "statistics.0.centre."])
    def test_a_value_that_is_not_finite(self, saved, prefix, bad):
        def spoil(tensors):
            name = min(n for n in tensors if n.startswith(prefix) and tensors[n].is_floating_point())
            tensors[name] = torch.full_like(tensors[name], bad)

        self.edit_tensors(saved, spoil)
        self.check(saved)
