"""Not a test: a network in every form in which people hand on checkpoints, for test_checkpoints.py.

Where torch has the code that makes a form, that code makes it here (DataParallel, torch.compile,
AveragedModel, weight norm, pruning, the format before 1.6); others have the layout of the library whose name
they have.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """A file of a network.

    Attributes:
        path: the file or folder.
        key: what has to be said to choose the network in it.
        match: how its tensors are matched.
        dtype: the type in which the file keeps its numbers.
        weights: what the network computes with, if not the module's own state.
    """

    path: Path
    key: str | None = None
    match: str = "names"
    dtype: torch.dtype = torch.float32
    weights: State | None = field(default=None, repr=False)


Make = Callable[[nn.Module, Path], Form]
FORMS: dict[str, Make] = {}


def form(name: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        assert name not in FORMS
        FORMS[name] = make
        return make

    return keep


def state_of(net: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Other numbers under the same names."""
    return {name: value + 1 for name, value in state.items()}


def saved(folder: Path, value: Any, name: str = "x.pt", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def optimizer_of(net: nn.Module) -> dict[str, Any]:
    """A real optimizer's state, with moments."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def simple(name: str, wrap: Callable[[State], Any], file: str = "x.pt", **about: Any) -> None:
    """A form that is a function of the state dict alone."""

    def make(net: nn.Module, folder: Path) -> Form:
        value = wrap(state_of(net))
        if not file.endswith(".safetensors"):
            return Form(saved(folder, value, file), **about)
        safetensors.torch.save_file({k: v.contiguous() for k, v in value.items()}, folder / file)
        return Form(folder / file, **about)

    FORMS[name] = make


# -- files and their names ---------------------------------------------------------------------

for _file in (
    "x.pt",
    "x.pth",
    "x.ckpt",
    "x.bin",
    "x.pkl",
    "x.pth.tar",
    "x.model",
    "weights",
    "x.safetensors",
):
    simple(f"bare, called {_file}", lambda state: state, _file)


@form("safetensors called .pt")
def _(net, folder):
    safetensors.torch.save_file(state_of(net), folder / "x.pt")
    return Form(folder / "x.pt")


@form("PyTorch called .safetensors")
def _(net, folder):
    return Form(saved(folder, state_of(net), "x.safetensors"))


@form("before PyTorch 1.6")
def _(net, folder):
    return Form(saved(folder, state_of(net), _use_new_zipfile_serialization=False))


@form("before PyTorch 1.6, wrapped")
def _(net, folder):
    value = {"epoch": 3, "state_dict": under("module.", state_of(net)), "optimizer": optimizer_of(net)}
    return Form(saved(folder, value, "checkpoint.pth.tar", _use_new_zipfile_serialization=False))


@form("pickle protocol 3")
def _(net, folder):
    return Form(saved(folder, state_of(net), pickle_protocol=3))


@form("written on another device")
def _(net, folder):
    source, path = saved(folder, state_of(net), "source.pt"), folder / "x.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            new.writestr(entry.filename, data)
    return Form(path)


@form("folder: safetensors in parts")
def _(net, folder):
    state = state_of(net)
    names = list(state)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.torch.save_file({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Form(folder)


@form("folder: PyTorch parts")
def _(net, folder):
    state = state_of(net)
    names = list(state)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return Form(folder / "pytorch_model.bin.index.json")


@form("folder: pytorch_model.bin")
def _(net, folder):
    return Form(saved(folder, under("model.", state_of(net)), "pytorch_model.bin").parent)


# -- prefixes ----------------------------------------------------------------------------------

for _prefix in (
    "module.", "model.", "net.", "network.", "_orig_mod.", "_forward_module.", "student.", "ema.",
    "backbone.", "module.module.", "_orig_mod.module.model.", "something.nobody.thought.of.",
):  # fmt: skip
    simple(f"prefix {_prefix}", lambda state, prefix=_prefix: under(prefix, state))
    simple(
        f"prefix {_prefix} in safetensors",
        lambda state, prefix=_prefix: under(prefix, state),
        "x.safetensors",
    )
simple("prefix with slashes", lambda state: under("scope/net/", state), "x.safetensors")


@form("DataParallel")
def _(net, folder):
    return Form(saved(folder, nn.DataParallel(net).state_dict()))


@form("DistributedDataParallel")
def _(net, folder):
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        return Form(saved(folder, wrapped.state_dict()))
    finally:
        dist.destroy_process_group()


@form("torch.compile")
def _(net, folder):
    return Form(saved(folder, torch.compile(net, backend="eager").state_dict()))


@form("torch.compile of DataParallel")
def _(net, folder):
    return Form(saved(folder, torch.compile(nn.DataParallel(net), backend="eager").state_dict()))


@form("torch.compile of parts")
def _(net, folder):
    net = copy.deepcopy(net)
    for name, child in list(net.named_children()):
        setattr(net, name, torch.compile(child, backend="eager"))
    state = net.state_dict()
    assert all("._orig_mod." in name for name in state)
    return Form(saved(folder, state))


@form("FullyShardedDataParallel")
def _(net, folder):
    inner = {name.replace(".", "._fsdp_wrapped_module.", 1): value for name, value in state_of(net).items()}
    return Form(saved(folder, under("_fsdp_wrapped_module.", inner)))


@form("activation checkpointing")
def _(net, folder):
    inner = {
        name.replace(".", "._checkpoint_wrapped_module.", 1): value for name, value in state_of(net).items()
    }
    return Form(saved(folder, inner))


@form("AveragedModel")
def _(net, folder):
    return Form(saved(folder, AveragedModel(net).state_dict()))


@form("AveragedModel in safetensors")
def _(net, folder):
    safetensors.torch.save_file(AveragedModel(net).state_dict(), folder / "x.safetensors")
    return Form(folder / "x.safetensors")


@form("AveragedModel of a compiled one")
def _(net, folder):
    averaged = AveragedModel(
        torch.compile(net, backend="eager"), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    return Form(saved(folder, averaged.state_dict()))


# -- dictionaries ------------------------------------------------------------------------------

for _keys in (
    ("state_dict",), ("model",), ("model_ema",), ("ema_state_dict",), ("params_ema",), ("model_state_dict",),
    ("weights",), ("model", "state_dict"), ("checkpoint", "model", "module"), ("generator", "ema", "shadow"),
):  # fmt: skip

    def _wrap(state: State, keys: tuple[str, ...] = _keys) -> Any:
        value: Any = state
        for key in reversed(keys):
            value = {key: value, "epoch": 3}
        return value

    simple(f"in {' / '.join(_keys)}", _wrap)
simple("params and params_ema alike", lambda s: {"params": s, "params_ema": dict(s)})
simple("student and teacher alike", lambda s: {"student": under("module.", s), "teacher": s})
simple("epochs by number, alike", lambda s: {0: s, 1: dict(s)})
simple("bare beside an optimizer", lambda s: {**s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}})
simple("list of dictionaries", lambda s: [{"step": 3}, {"weights": s}])
simple("tuple", lambda s: (s, {"lr": 0.1}, 3))
simple("30 dictionaries deep", lambda s: _deep(s, 30))
simple("student and teacher that differ", lambda s: {"student": other(s), "teacher": s}, key="teacher")
simple("model and model_ema that differ", lambda s: {"model": other(s), "model_ema": under("module.", s)},
       key="model_ema")  # fmt: skip
simple("EMA by prefix, differing", lambda s: {**under("online_model.", other(s)), **under("ema_model.", s)},
       "x.safetensors", key="ema_model")  # fmt: skip
simple("bare and EMA that differ", lambda s: {**s, "ema": other(s)}, key=".")
simple("epochs by number that differ", lambda s: {0: other(s), 1: s}, key="1")
simple("in order", lambda s: {f"layers.{i}": v for i, v in enumerate(_floats(s))}, match="order")
simple("in order, in a dictionary", lambda s: {"net": {f"a{i}": v for i, v in enumerate(_floats(s))},
       "optimizer": {"moments": [torch.ones(2)]}}, match="order")  # fmt: skip
simple("list of parameters in order", lambda s: _floats(s), match="order")


def _floats(state: State) -> list[Tensor]:
    return [value for value in state.values() if value.is_floating_point()]


def _deep(value: Any, times: int) -> Any:
    return value if times == 0 else {"inner": _deep(value, times - 1)}


@form("a dictionary for each module")
def _(net, folder):
    value: dict[str, Any] = {}
    for name, tensor in state_of(net).items():
        *parents, last = name.split(".")
        place = value
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return Form(saved(folder, {"params": value, "step": 3}))


@form("PyTorch's ImageNet example")
def _(net, folder):
    value = {
        "epoch": 90, "arch": "resnet18", "state_dict": nn.DataParallel(net).state_dict(),
        "best_acc1": torch.tensor(55.0), "optimizer": optimizer_of(net), "scheduler": {"last_epoch": 90},
    }  # fmt: skip
    return Form(saved(folder, value, "model_best.pth.tar"))


@form("Lightning")
def _(net, folder):
    score = torch.tensor(0.5)
    value = {
        "epoch": 3, "global_step": 400, "pytorch-lightning_version": "2.5.0",
        "state_dict": {**under("model.", state_of(net)), "criterion.pos_weight": torch.ones(4)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": score, "best_k_models": {}}},
        "optimizer_states": [optimizer_of(net)], "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "layers": [1, 2]},
    }  # fmt: skip
    return Form(saved(folder, value, "epoch=3-step=400.ckpt"))


@form("timm")
def _(net, folder):
    state = state_of(net)
    value = {
        "epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": optimizer_of(net), "version": 2,
        "state_dict_ema": {name: tensor.clone() for name, tensor in state.items()}, "metric": 71.5,
    }  # fmt: skip
    return Form(saved(folder, value, "model_best.pth.tar"))


@form("mmcv")
def _(net, folder):
    meta = {
        "env_info": "sys.platform: linux",
        "hook_msgs": {},
        "epoch": 12,
        "iter": 100,
        "CLASSES": ("a", "b"),
    }
    return Form(saved(folder, {"meta": meta, "state_dict": under("backbone.", state_of(net)),
                               "optimizer": optimizer_of(net)}, "latest.pth"))  # fmt: skip


@form("detectron2")
def _(net, folder):
    value = {
        "model": state_of(net),
        "optimizer": optimizer_of(net),
        "iteration": 100,
        "__author__": "somebody",
    }
    return Form(saved(folder, value, "model_final.pth"))


@form("DeepSpeed")
def _(net, folder):
    value = {
        "module": state_of(net), "buffer_names": ["a"], "optimizer": None, "lr_scheduler": None,
        "csr_tensor_module_names": set(), "sparse_tensor_module_names": {"a"}, "skipped_steps": 0,
        "dp_world_size": 1, "ds_version": "0.15", "global_steps": 10,
        "param_shapes": [{"a": torch.Size([2])}],
    }  # fmt: skip
    return Form(saved(folder, value, "mp_rank_00_model_states.pt"))


@form("fairseq")
def _(net, folder):
    value = {
        "cfg": {"common": {"seed": 1}, "model": {"_name": "x"}}, "model": state_of(net), "criterion": {},
        "optimizer_history": [{"num_updates": 10}], "extra_state": {"train_iterator": {"epoch": 2}},
        "last_optimizer_state": optimizer_of(net), "task_state": {},
    }  # fmt: skip
    return Form(saved(folder, value, "checkpoint_best.pt"))


@form("gradients and moments beside")
def _(net, folder):
    state = state_of(net)
    masks = {name: value > 0 for name, value in state.items()}
    return Form(saved(folder, {"model": state, "masks": masks, "grads": list(state.values())}))
