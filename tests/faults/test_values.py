"""Odd values at every border: the right answer, bit for bit, or one sentence of an :class:`InputError`.

Each entry of :data:`BORDERS` is a function that takes a tensor from a caller. It is called with every kind of
:data:`KINDS` made from the tensor that it is meant for, and must give what the plain tensor gives, or refuse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import weightloom as wl
from weightloom.fitting import (
    FitSettings,
    accuracy,
    closed_form_network,
    finetune,
    fit_population,
    initial_flats,
    recalibrate,
    run_networks,
)
from weightloom.generators import Sample
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.random_init import RandomInit
from weightloom.tasks.data import TaskData
from weightloom.tokenizers import architecture_key
from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from weightloom.weights import WeightStatistics, layout_of

WIDE = wl.parse_architecture("cnn(depth=3,width=16,classes=10,input=3x16x16)")
SPEC = wl.parse_architecture("cnn(depth=1,width=4,classes=3,input=1x8x8)")
Plain = torch.Tensor


def _filled(value: float) -> Callable[[Plain], Any]:
    def make(plain: Plain) -> Any:
        made = plain.clone()
        made.view(-1)[0] = value
        return made

    return make


def _scaled(factor: float) -> Callable[[Plain], Any]:
    return lambda plain: (plain * factor).to(plain.dtype)


def _quantised(plain: Plain) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(plain.float(), 0.01, 0, torch.qint8)


def _nested(plain: Plain) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([plain, plain])


def _every_other(plain: Plain) -> Any:
    return plain.repeat_interleave(2, dim=-1)[..., ::2]


def _sparse_rows(plain: Plain) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain.reshape(plain.shape[0], -1).to_sparse_csr()


KINDS: dict[str, Callable[[Plain], Any]] = {
    "plain": lambda plain: plain.clone(),
    "1e18": _filled(1e18),
    "-1e18": _filled(-1e18),
    "3e38": _filled(3e38),
    "nan": _filled(float("nan")),
    "infinite": _filled(float("inf")),
    "a little outside": _filled(1.01),
    "bytes as floats": _scaled(255.0),
    "sparse": lambda plain: plain.to_sparse(),
    "sparse rows": _sparse_rows,
    "quantised": _quantised,
    "nested": _nested,
    "meta": lambda plain: plain.to("meta"),
    "complex": lambda plain: plain.to(torch.complex64),
    "conjugate": lambda plain: plain.to(torch.complex64).conj(),
    "int64": lambda plain: plain.to(torch.int64),
    "uint8": lambda plain: plain.to(torch.uint8),
    "int16": lambda plain: plain.to(torch.int16),
    "bool": lambda plain: plain.to(torch.bool),
    "float64": lambda plain: plain.to(torch.float64),
    "float16": lambda plain: plain.to(torch.float16),
    "bfloat16": lambda plain: plain.to(torch.bfloat16),
    "float8": lambda plain: plain.to(torch.float8_e4m3fn),
    "requires a gradient": lambda plain: plain.clone().requires_grad_(plain.is_floating_point()),
    "parameter": lambda plain: nn.Parameter(plain.clone(), requires_grad=plain.is_floating_point()),
    "not contiguous": _every_other,
    "turned": lambda plain: plain.transpose(0, -1).contiguous().transpose(0, -1),
    "negated view": lambda plain: torch._neg_view(-plain),
    "numpy": lambda plain: plain.numpy(),
    "list": lambda plain: plain.tolist(),
    "none": lambda plain: None,
    "text": lambda plain: "images",
    "number": lambda plain: 3,
    "empty": lambda plain: plain[:0],
    "one dimension less": lambda plain: plain[0],
    "one dimension more": lambda plain: plain[None],
    "no dimension": lambda plain: plain.reshape(-1)[0],
    "larger pictures": lambda plain: torch.cat([plain, plain], dim=-1),
}  # fmt: skip


@cache
def _flats() -> Plain:
    return initial_flats(SPEC, [0, 1])


@cache
def _images() -> Plain:
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _labels() -> Plain:
    return torch.arange(12) % 3


@cache
def _generator() -> GHN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return GHN(
            GHNConfig(classes=3, width=8, block=8, kernel=3), make_validity((1, 8, 8)), name="tiny"
        ).eval()


@cache
def _tokenizer() -> Any:
    statistics = WeightStatistics.measure([(layout_of(WIDE), initial_flats(WIDE, range(4)))])
    config = FSQTokenizerConfig(chunk=64, codes=8, vocabulary=9, width=16, depth=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = FSQTokenizer(config, {architecture_key(WIDE): statistics}).eval()
        for parameter in made.parameters():  # an untrained tokenizer gives every network the same codes
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made.requires_grad_(False)


def _kept(flats: Any, *, imported: bool = False) -> Plain:
    with TemporaryDirectory() as folder:
        zoo = wl.Zoo(folder, create=True)
        facts = {"architecture": SPEC.full_text(), "task": "", "dataset": "", "classes": 3, "split": "train"}
        more = {"step": 1, "final": True, "accuracy": 0.5, "loss": 1.0}
        records = [
            wl.Record(
                id=f"a-{row}",
                shard="a",
                row=row,
                member=row,
                provenance={"sha256": str(row)},
                **facts,
                **more,
            )
            for row in range(2)
        ]
        zoo.add_new(SPEC, flats, records) if imported else zoo.add("a", SPEC, flats, records)
        assert zoo.verify() == []
        return zoo.load(zoo.records())


def _support(images: Any) -> wl.SupportSet:
    return wl.SupportSet(images=images, class_names=("a", "b", "c"))


class _Items(Dataset):
    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], index % 3


def _read(images: Any) -> Any:
    try:
        images[11]
    except (TypeError, IndexError, RuntimeError):
        raise wl.InputError("this is no list of pictures, which is for the dataset to say") from None
    return wl.TorchTask(_Items(images), size=8).data("train").all()[0]


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def _signals() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 3))


def _of_signals(images: Any) -> Plain:
    made = _generator().generate(_signals(), input=(8, 8), images=images).module
    return made(_images()[:, 0]).detach()


def _task() -> wl.Task:
    return wl.parse_task("digits[3,1,7]@8c1")


def _settings() -> FitSettings:
    return FitSettings(steps=1, batch_size=4)


def five(images: Plain) -> Plain:
    return images.reshape(3, 4, 1, 8, 8)


BORDERS: dict[str, tuple[Callable[[], Plain], Callable[[Any], Any]]] = {
    "generate, support": (
        lambda: five(_images()),
        lambda x: _generator().generate("cnn(depth=1,width=4)", support=_support(x)).flat,
    ),
    "baseline, support": (
        lambda: five(_images()),
        lambda x: RandomInit.from_generator(_generator())
        .generate("cnn(depth=1,width=4)", support=_support(x)).report["support_loss"],
    ),
    "labelled, images": (
        _images, lambda x: wl.SupportSet.from_labelled(x, _labels(), ["a", "b", "c"]).images
    ),
    "labelled, labels": (_labels, lambda x: wl.SupportSet.from_labelled(_images(), x).images),
    "accuracy, images": (_images, lambda x: accuracy(SPEC, _flats(), x, _labels())),
    "accuracy, labels": (_labels, lambda x: accuracy(SPEC, _flats(), _images(), x)),
    "accuracy, networks": (_flats, lambda x: accuracy(SPEC, x, _images(), _labels())),
    "recalibrate, images": (_images, lambda x: recalibrate(SPEC, _flats(), x)),
    "recalibrate, networks": (_flats, lambda x: recalibrate(SPEC, x, _images())),
    "run, images": (_images, lambda x: run_networks(SPEC, _flats(), x).detach()),
    "run, networks": (_flats, lambda x: run_networks(SPEC, x, _images()).detach()),
    "finetune, networks": (_flats, lambda x: finetune(SPEC, x, _task(), _settings()).flats.detach()),
    "finetune, test images": (
        _images,
        lambda x: finetune(SPEC, _flats(), _task(), _settings(), test=(x, _labels())).accuracy,
    ),
    "fit, networks": (
        _flats,
        lambda x: next(fit_population(SPEC, x, [_task().data("train")] * 2, _settings())).flats,
    ),
    "closed form, support": (
        lambda: five(_images()), lambda x: closed_form_network(SPEC, _flats()[0], x)
    ),
    "predict, images": (
        _images, lambda x: _generator().generate(_module(), images=x).module(_images()).detach()
    ),
    "predict, signals": (lambda: _images()[:, 0], _of_signals),
    "predict a spec, images": (
        _images, lambda x: _generator().generate("cnn(depth=1,width=4,classes=3)", images=x).flat
    ),
    "torch dataset": (lambda: (_images() + 1) / 2, _read),
    "pixels": (
        lambda: (_images() * 100 + 128).to(torch.uint8),
        lambda x: TaskData(x, torch.arange(12), _labels(), channels=1).all()[0],
    ),
    "sample, weights": (
        lambda: _flats()[0], lambda x: Sample(SPEC, x, {}).module(_images()).detach()
    ),
    "zoo, networks": (_flats, _kept),
    "zoo, imported networks": (_flats, lambda x: _kept(x, imported=True)),
    "encode, networks": (
        lambda: initial_flats(WIDE, [0, 1]), lambda x: _tokenizer().encode(WIDE, x)
    ),
    "decode, codes": (
        lambda: _tokenizer().encode(WIDE, initial_flats(WIDE, [0])),
        lambda x: _tokenizer().decode(WIDE, x).detach(),
    ),
    "batch, index": (lambda: torch.arange(5), lambda x: _task().data("test").batch(x)[0]),
}  # fmt: skip


WEIGHTS = ("1e18", "-1e18", "3e38", "nan", "infinite", "a little outside", "bytes as floats")
"""Other values are other networks."""
ROUNDED = ("float16", "bfloat16", "float8")

DIFFERENT: dict[str, tuple[str, ...]] = {
    "accuracy, labels": ("a little outside",),
    "accuracy, networks": WEIGHTS,
    "baseline, support": ("none",),
    "batch, index": ("a little outside", "empty", "larger pictures"),
    "finetune, networks": WEIGHTS,
    "fit, networks": WEIGHTS,
    "generate, support": ("none",),
    "labelled, images": ("larger pictures",),
    "labelled, labels": ("a little outside",),
    "pixels": ("a little outside", "bytes as floats", "empty", "larger pictures"),
    "predict a spec, images": ("none", *ROUNDED),
    "predict, images": ("none", "a little outside", "larger pictures", *ROUNDED),
    "predict, signals": ("none", "a little outside", "larger pictures", *ROUNDED),
    "recalibrate, networks": WEIGHTS,
    "run, images": WEIGHTS,
    "run, networks": WEIGHTS,
    "sample, weights": WEIGHTS,
    "zoo, networks": WEIGHTS,
    "zoo, imported networks": WEIGHTS,
    "encode, networks": WEIGHTS,
    "decode, codes": ("a little outside", "empty"),
    "torch dataset": ("uint8", "larger pictures", *ROUNDED),
}
"""Where another kind is another request, with a right answer of its own."""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and not other.is_meta and torch.equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize("border", sorted(BORDERS))
def test_odd_values_are_answered_rightly_or_refused_in_a_sentence(border, record_property):
    make, call = BORDERS[border]
    right = call(make())
    wrong, refused = [], 0
    for kind, change in KINDS.items():
        try:
            value = change(make())
        except (RuntimeError, NotImplementedError, TypeError):
            continue  # torch itself makes no such tensor of this type
        try:
            answer = call(value)
        except wl.InputError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) < 15:
                wrong.append(f"{kind}: no sentence: {error}")
        except wl.TrainingError:
            assert kind in WEIGHTS and "networks" in border
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
        else:
            if not _same(right, answer) and kind not in DIFFERENT.get(border, ()):
                wrong.append(f"{kind}: another answer, {str(answer)[:100]}")
            if isinstance(answer, torch.Tensor) and answer.requires_grad:
                wrong.append(f"{kind}: an answer with gradients")
    record_property("kinds", len(KINDS))
    record_property("refused", refused)
    assert not wrong, "\n".join(wrong)
