"""One network in a file: what decides, what is left out, and what is said where nothing fits."""

from __future__ import annotations

import pytest
import torch
from tests.zoo.foreign import SPEC, tensors_of

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError
from weightloom.io import save_tensors
from weightloom.weights import layout_of
from weightloom.zoo.reading import load_network, read_checked


@pytest.fixture
def state():
    return tensors_of(SPEC, 0)[1]


@pytest.fixture
def save(tmp_path):
    def keep(value):
        torch.save(value, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    return keep


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def other(state, by=1.0):
    return {name: value + by for name, value in state.items()}


def test_what_is_left_out_is_named(save, state):
    value = {
        "net": {**under("module.", state), "loss.weight": torch.ones(3)},
        "step": torch.tensor(4),
        "epoch": 2,
    }
    reading = read_checked(save(value), SPEC)
    assert reading.key == "net.module" and set(reading.left_out) == {"net.loss.weight", "step"}
    assert reading.facts == {"epoch": 2, "step": 4} and reading.folded == ()


def test_a_deeper_network_is_no_shallower_one(save):
    """Tensors that nothing asks for, in the network's own dictionary, make it another network."""
    deep = parse_architecture("mlp(depth=2,width=4,classes=10,input=3x8x8)")
    own = tensors_of(deep, 0)[1]
    for prefix in ("", "module."):
        with pytest.raises(CheckpointError, match=r"does not belong to this architecture"):
            read_checked(save({"state_dict": under(prefix, own)}), SPEC)
    nested = {}
    for name, value in own.items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    with pytest.raises(CheckpointError, match=r"does not belong to this architecture"):
        read_checked(save(nested), SPEC)
    assert read_checked(save(nested), deep).key == "."


@pytest.mark.parametrize("extra", [torch.ones(2), torch.ones(1), torch.tensor(0.5)])
def test_a_number_may_be_a_weight(save, state, extra):
    with pytest.raises(CheckpointError, match=r"'logit_scale' does not belong"):
        read_checked(save({**state, "logit_scale": extra}), SPEC)


def test_two_that_differ_have_to_be_chosen_from(save, state):
    path = save({"student": under("module.", other(state)), "teacher": state, "copy": dict(state)})
    with pytest.raises(CheckpointError) as caught:
        load_network(path, SPEC)
    assert "2 networks" in caught.value.reason and "'student.module', 'teacher'" in caught.value.reason
    assert "--key student.module" in caught.value.reason
    flat = layout_of(SPEC).flatten(state)
    for key, wanted in {
        "teacher": flat,
        "copy": flat,
        "student": flat + 1,
        "student.module.": flat + 1,
    }.items():
        reading = read_checked(path, SPEC, key=key)
        assert torch.equal(reading.flat, wanted) and reading.key.startswith(key.rstrip("."))
    for key in ("pupil", ".", "stud", "student.mod"):
        with pytest.raises(CheckpointError) as caught:
            read_checked(path, SPEC, key=key)
        assert "'student' (4), 'teacher' (4), 'copy' (4)" in caught.value.reason


def test_a_folded_one_beside_a_plain_one(save, state):
    pruned = {}
    for name, value in state.items():
        pruned |= {f"{name}_orig": value, f"{name}_mask": torch.ones_like(value)}
    assert read_checked(save({"model": pruned, "ema": state}), SPEC).key == "ema", "they are alike"
    path = save({"model": other(pruned), "ema": state})
    with pytest.raises(CheckpointError, match=r"differ: 'ema', 'model'"):
        read_checked(path, SPEC)
    reading = read_checked(path, SPEC, key="model")
    assert reading.folded[0] == "body.1.weight (pruning)" and len(reading.left_out) == 4
    compiled = under("_orig_mod.", state)
    assert read_checked(save(compiled), SPEC).key == "_orig_mod", "one network, and not two"


def test_many_that_differ(save, state):
    path = save([other(state, n) for n in range(20)])
    with pytest.raises(CheckpointError, match=r"20 networks .* '7' and 12 more"):
        read_checked(path, SPEC)
    assert torch.equal(read_checked(path, SPEC, key="13").flat, layout_of(SPEC).flatten(other(state, 13)))


def test_the_outermost_is_chosen_by_a_dot(save, state):
    path = save({**state, "ema": other(state)})
    with pytest.raises(CheckpointError, match=r"'.', 'ema'"):
        read_checked(path, SPEC)
    assert torch.equal(read_checked(path, SPEC, key=".").flat, layout_of(SPEC).flatten(state))


def test_masks_and_moments_are_no_networks(save, state):
    value = {
        "w": state,
        "mask": {k: v > 0 for k, v in state.items()},
        "step": {k: v.long() for k, v in state.items()},
    }
    assert read_checked(save(value), SPEC).key == "w"


def test_in_order(save, state):
    renamed = {f"a.{number}": value for number, value in enumerate(state.values())}
    flat = layout_of(SPEC).flatten(state)
    for value, key in (
        ({"epoch": 1, "net": renamed, "optimizer": {"m": [torch.ones(2)] * 4}}, "net.a"),
        ({"net": renamed, "more": dict(renamed)}, "net.a"),
        (list(state.values()), "."),
        ([{"w": list(state.values())}], "0.w"),
    ):
        reading = read_checked(save(value), SPEC, match=r"order")
        assert torch.equal(reading.flat, flat) and reading.key == key
    with pytest.raises(CheckpointError, match=r"2 networks .* differ: 'net.a', 'more.a'"):
        read_checked(save({"net": renamed, "more": other(renamed)}), SPEC, match=r"order")
    with pytest.raises(CheckpointError, match=r"'a.0' has shape \(10,\), but 'body.1.weight'"):
        read_checked(save(dict(zip(renamed, reversed(renamed.values()), strict=True))), SPEC, match=r"order")


def test_what_is_said_where_nothing_fits(save, state):
    renamed = {"layer" + name: value for name, value in state.items()}
    for value, words in (
        (
            {"a": under("module.", {**state, "head.bias": torch.ones(3)})},
            "'a.module.head.bias' has shape (3,), wanted",
        ),
        (
            {"a": {"x": torch.ones(2)}, "b": {"y": torch.ones(2)}},
            "its dictionaries with tensors are 'a' (1), 'b' (1)",
        ),
        ({"a": renamed}, "one after another its tensors fit (--match order"),
        ({"\x1b[2J": torch.ones(2)}, "it holds '\\x1b[2J'"),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_checked(save(value), SPEC)
        assert words in caught.value.reason, caught.value.reason
        assert "\x1b" not in str(caught.value)


def test_another_librarys_word_for_its_architecture(tmp_path, state):
    path = tmp_path / "x.safetensors"
    save_tensors(path, state, {"architecture": "ResNet-18", "format": "pt"})
    assert read_checked(path, SPEC).spec == SPEC
    with pytest.raises(CheckpointError, match="names an architecture that is none"):
        read_checked(path)
    save_tensors(path, state, {"architecture": "ResNet-18", "weightloom": "0.1.0"})
    with pytest.raises(CheckpointError, match="names an architecture that is none"):
        read_checked(path, SPEC)


def test_one_part_of_several_files(tmp_path, state):
    torch.save({"head.bias": state["head.bias"]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"name the folder of all of them"):
        read_checked(tmp_path / "pytorch_model-00001-of-00002.bin", SPEC)
