"""Not a test: everything at the border under other defaults of torch (see test_defaults.py).

``defaults_worker.py MODE FOLDER``: :func:`calls` are made under MODE first, when nothing is cached, and then
again as usual. Prints one JSON object: for each of both, what every call gave, as a digest, or the
sentence of the :class:`InputError` that it raised.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import Dataset, TensorDataset

import weightloom as wl
from weightloom.engines import open_engine
from weightloom.evaluation import AuditSettings, SelectionSettings, audit, select
from weightloom.evaluation.accuracy import confusion, confusions
from weightloom.evaluation.explain import explain
from weightloom.fitting import FitSettings, accuracy, finetune, fit_population, initial_flats, recalibrate
from weightloom.generators.load import save_generator
from weightloom.generators.random_init import RandomInit
from weightloom.generators.streaming import stream_network
from weightloom.io import load_legacy, load_tensors, save_tensors
from weightloom.tokenizers import architecture_key, load_tokenizer
from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from weightloom.training.run import train_recipe
from weightloom.weights import WeightStatistics, layout_of
from weightloom.weights.alignment import random_permutations
from weightloom.weights.symmetry import permutation_spec_of
from weightloom.zoo.contents import contents_of
from weightloom.zoo.importing import carry_out, import_checkpoints, plan_import
from weightloom.zoo.reading import read_checked
from weightloom.zoo.sources import find_networks

ZOO = {
    "kind": "zoo", "name": "tiny", "salt": "defaults", "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)"), "size": 8, "channels": 1,
    "start": {"tasks": 2, "classes": 3, "steps": 4, "batch_size": 16},
    "fit": {"steps": 4, "batch_size": 16, "snapshots": (2,)},
    "groups": ({"classes": 3, "tasks": 2, "repeats": 2}, {"classes": 4, "tasks": 1}),
}  # fmt: skip
STATIC = {
    "kind": "generator", "generator": "static_hypernetwork", "name": "static-test",
    "config": {"embedding_size": 8, "block": 4, "task_size": 4, "image_features": 8, "image_width": 8},
    "tasks": {3: 4, 4: 4}, "shots": 4, "queries": 8,
    "loop": {"steps": 3, "warmup": 1, "log_every": 1, "save_every": 2},
}  # fmt: skip
SETTINGS = SelectionSettings(budget=2.0, probe_steps=2, shots=4)
FOLDED = "mlp(depth=2,width=4,classes=3,input=1x8x8)"
MODES = ("usual", "float64", "float16", "bfloat16", "default-meta", "default-cpu", "with-meta", "both")


class Pictures(Dataset):
    """A folder's files as PIL images."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.open(self.files[index]), index % 2


@contextmanager
def under(mode: str) -> Iterator[None]:
    if mode in ("float64", "float16", "bfloat16", "both"):
        torch.set_default_dtype(getattr(torch, "float64" if mode == "both" else mode))
    if mode in ("default-meta", "default-cpu", "both"):
        torch.set_default_device("cpu" if mode == "default-cpu" else "meta")
    before = torch.get_default_dtype(), torch.get_default_device()
    try:
        if mode == "with-meta":
            with torch.device("meta"):
                yield
        else:
            yield
        assert (torch.get_default_dtype(), torch.get_default_device()) == before, "the defaults were moved"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def digest(value: Any) -> str:
    """The same for the same bits, types and devices."""
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            assert item.device.type == "cpu", f"a result on {item.device}"
            array = item.detach().contiguous()
            sha.update(f"{item.dtype}{tuple(item.shape)}".encode())
            sha.update(array.numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                if key not in ("seconds", "cpu_seconds_writing", "spent", "total_seconds"):
                    sha.update(str(key).encode())
                    feed(item[key])
        elif isinstance(item, (list, tuple)):
            for one in item:
                feed(one)
        else:
            sha.update(f"{type(item).__name__}:{item!r}".encode())

    feed(value)
    return sha.hexdigest()[:16]


def made_beforehand(folder: Path) -> dict[str, Any]:
    """What a caller has before any default is changed: tensors of his own."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(24, 1, 8, 8, generator=draw)
    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    torch.save({"head.weight": images[0, 0], "step": 3}, folder / "foreign.pt")
    tokenizer_of(wide_spec()).save(folder / "tokenizer")
    torch.save({"w": images[0]}, folder / "old.pt", _use_new_zipfile_serialization=False)
    spec = wl.parse_architecture(FOLDED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = spec.initialise(0)
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                weight_norm(layer)
        state = {f"model.module.{name}": value for name, value in net.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, folder / "wrapped.ckpt")
    deep = np.random.default_rng(0).integers(0, 4000, (6, 9, 9)).astype(np.uint16)
    for number, pixels in enumerate(deep):
        (folder / "deep" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "deep" / "ab"[number % 2] / f"{number}.png")
    labels = torch.arange(24) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        module = nn.Sequential(*body, nn.Linear(8, 10))
        half = nn.Sequential(*copy.deepcopy(module)[:5], nn.Linear(8, 7))
    wide = torch.rand(8, 3, 16, 16, generator=draw) * 2 - 1
    own = {"images": images, "labels": labels, "dataset": TensorDataset(images, labels)}
    return {**own, "module": module, "half": half, "wide": wide}


def calls(folder: Path, own: dict[str, Any], mode: str) -> dict[str, Callable[[], Any]]:
    out = folder / mode
    out.mkdir()
    spec = wl.parse_architecture("cnn(depth=2,width=4,classes=3,input=1x8x8)")
    task = wl.parse_task("digits[3,1,7]@8c1")
    wide = wl.parse_task("digits@16c3")
    kept: dict[str, Any] = {}

    def keep(name: str, value: Any) -> Any:
        kept[name] = value
        return value

    def trained() -> Any:
        recipe = out / "static.yaml"
        recipe.write_text(yaml.safe_dump(STATIC))
        model = train_recipe(recipe, out / "zoo", out / "static")
        return keep("static", model).state_dict()

    def imported() -> Any:
        zoo = wl.Zoo(out / "imported", create=True)
        plan = plan_import(
            [find_networks(str(out / "net.safetensors"))], zoo=None, architecture=None, task=task
        )
        records = carry_out(zoo, plan, task=task)
        return zoo.load(records), [record.accuracy for record in records]

    def both(sample: Any) -> Any:
        report = {k: v for k, v in sample.report.items() if k != "seconds"}
        return (
            sample.flat,
            sample.state_dict,
            report,
            sample.module(own["images"][:2, :, :, :].repeat(1, 3, 2, 2)),
        )

    torch_labels = [n % 10 for n in range(8)]
    zoo_records = lambda: wl.Zoo(out / "zoo").records()  # noqa: E731
    return {
        "task": lambda: [task.data(split).all() for split in ("train", "test")],
        "support": lambda: keep("support", task.support(4, seed=3)).images,
        "folder": lambda: wl.FolderTask(folder / "photos", size=8).data("train").all(),
        "folder support": lambda: wl.FolderTask(folder / "photos").support(2).images,
        "deep pictures": lambda: (
            (deep := wl.FolderTask(folder / "deep", size=8)).report()["ranges"],
            deep.data("train").all()
        ),
        "pictures of PIL": lambda: wl.TorchTask(Pictures(folder / "deep"), size=8).data("train").all(),
        "torch dataset": lambda: wl.TorchTask(own["dataset"], size=8).data("test").all(),
        "labelled": lambda: wl.SupportSet.from_labelled(own["images"] * 2 - 1, own["labels"].tolist()).flat(),
        "initialise": lambda: keep("flats", initial_flats(spec, [0, 1])),
        "permutations": lambda: random_permutations(spec, 3),
        "build": lambda: [tuple(p.shape) for p in spec.initialise(0).parameters()],
        "accuracy": lambda: accuracy(spec, kept["flats"], *task.data("test").all()),
        "recalibrate": lambda: recalibrate(spec, kept["flats"], own["images"] * 2 - 1),
        "finetune": lambda: vars(finetune(spec, kept["flats"], task, FitSettings(steps=3, snapshots=(2,)))),
        "fit": lambda: [
            (s.step, s.flats, s.loss)
            for s in fit_population(spec, kept["flats"], [task.data("train")] * 2, FitSettings(steps=2))
        ],
        "confusion": lambda: confusion(spec, kept["flats"][0], task),
        "build zoo": lambda: (z := wl.build_zoo(wl.ZooRecipe(**ZOO), out / "zoo")).load(
            z.records(architecture="cnn(depth=1,width=4)", classes=3)
        ),
        "zoo": lambda: (wl.Zoo(out / "zoo").verify(), [r.accuracy for r in zoo_records()]),
        "train": trained,
        "load generator": lambda: wl.load_generator(out / "static").state_dict(),
        "generate, trained": lambda: wl.load_generator(out / "static").generate(
            "cnn(depth=1,width=4)", support=kept["support"]
        ).flat,
        "random": lambda: RandomInit.from_generator(kept["static"]).generate(
            "cnn(depth=1,width=4)", support=kept["support"]
        ).flat,
        "load": lambda: [*keep("set", wl.load_generator("layerwise-tiny")).state_dict().values()],
        "generate": lambda: both(
            kept["set"].generate("cnn(depth=3,width=16)", support=wide.support(4), num_samples=2, seed=1)
        ),
        "generate by words": lambda: both(
            kept["set"].generate("mlp(depth=2,width=32,classes=10)", instruction="Read digits", seed=1)
        ),
        "stream": lambda: stream_network(
            kept["set"], "cnn(depth=3,width=20)", out / "stream", support=wide.support(4)
        )["support_loss"],
        "hypernetwork": lambda: [*keep("ghn", wl.load_generator("ghn-cifar10-tiny")).state_dict().values()],
        "predict": lambda: kept["ghn"].generate("cnn(depth=2,width=8,classes=10)").flat,
        "predict a module": lambda: kept["ghn"].generate(own["module"], images=own["wide"]).state_dict,
        "predict half of a module": lambda: kept["ghn"].generate_module(
            own["half"], images=own["wide"], partial=True
        ).report["statistics"],
        "symmetries of a module": lambda: permutation_spec_of(own["module"].eval(), own["wide"]).sizes,
        "graph": lambda: wl.capture_graph(own["module"], (3, 32, 32)).structure,
        "select": lambda: str(select(kept["static"], task, ["cnn(depth=1,width=4)"], SETTINGS).winner.spec),
        "explain": lambda: explain(
            kept["set"], wide_spec(), instruction="Read digits", support=wide.support(4),
            images=own["wide"], labels=torch_labels, seed=1,
        )["removed"],
        "save": lambda: load_tensors(
            RandomInit.from_generator(kept["static"])
            .generate("cnn(depth=1,width=4)", support=kept["support"])
            .save(out / "net.safetensors")
        )[0],
        "load network": lambda: wl.load_network(out / "net.safetensors")(own["images"]),
        "import": imported,
        "tensors": lambda: (
            save_tensors(out / "t.safetensors", {"a": own["images"]}),
            load_tensors(out / "t.safetensors")[0],
        ),
        "legacy": lambda: load_legacy(folder / "foreign.pt"),
        "before the zip format": lambda: load_legacy(folder / "old.pt"),
        "contents": lambda: list(contents_of(folder / "wrapped.ckpt").not_finite()),
        "folded": lambda: read_checked(folder / "wrapped.ckpt", wl.parse_architecture(FOLDED)).flat,
        "import checkpoints": lambda: import_checkpoints(
            z := wl.Zoo(out / "checkpoints", create=True), [folder / "wrapped.ckpt"],
            architecture=wl.parse_architecture(FOLDED),
        ) and z.load(z.records()),
        "keep": lambda: (
            save_generator(kept["static"], out / "again"),
            wl.load_generator(out / "again").state_dict(),
        )[1],
        "tokenizer": lambda: (
            tok := load_tokenizer(folder / "tokenizer"),
            codes := tok.encode(wide_spec(), initial_flats(wide_spec(), [0])),
            tok.decode(wide_spec(), codes),
        )[1:],
        "audit": lambda: audited(wl.Zoo(out / "zoo"), kept["static"]),
        "engine": lambda: engine_counts(spec, kept["flats"], task),
    }  # fmt: skip


def wide_spec() -> wl.ArchitectureSpec:
    return wl.parse_architecture("cnn(depth=3,width=16,classes=10,input=3x16x16)")


def tokenizer_of(spec: wl.ArchitectureSpec) -> FSQTokenizer:
    """An untrained tokenizer over a few networks of ``spec``."""
    statistics = WeightStatistics.measure([(layout_of(spec), initial_flats(spec, range(4)))])
    config = FSQTokenizerConfig(chunk=64, codes=8, vocabulary=9, width=16, depth=1)
    return FSQTokenizer(config, {architecture_key(spec): statistics}).eval()


def engine_counts(spec: Any, flats: torch.Tensor, task: Any) -> Any:
    with open_engine("local") as engine:
        return confusions([(spec, flats[0], task), (spec, flats[1], task)], engine)


def audited(zoo: wl.Zoo, model: Any) -> Any:
    settings = AuditSettings(samples=2, tasks=1, images=50, shots=4)
    return audit(model, zoo, settings).to_json()["networks"]


def answers(folder: Path, own: dict[str, Any], mode: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, call in calls(folder, own, mode).items():
        try:
            found[name] = digest(call())
        except wl.InputError as error:
            found[name] = f"InputError: {error}"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return found


def main(mode: str, place: str) -> None:
    torch.set_num_threads(1)
    folder = Path(place)
    own = made_beforehand(folder)
    with under(mode):
        inside = answers(folder, own, "inside")
    print(json.dumps({"inside": inside, "after": answers(folder, own, "after")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
