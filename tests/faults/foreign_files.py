"""Not a test: files that are not read as a network, each with the words that have to say what it is.

Real files where the code that writes them is at hand (TorchScript, torch.export, NumPy, joblib, tar); of
others the first bytes, as their own writers put them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import safetensors.torch
import torch
import torch.package
from PIL import Image
from tests.faults.checkpoints import other, saved, state_of, under
from torch import nn
from torch.nn.utils import parametrizations

Make = Callable[[nn.Module, Path], Path]
KINDS: dict[str, tuple[Make, str]] = {}

SAVE = "where it was made"
"""Words of every sentence that says how to save a network again."""


def kind(name: str, words: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        assert name not in KINDS
        KINDS[name] = (make, words)
        return make

    return keep


def holds(name: str, words: str, data: bytes, file: str = "x.pt") -> None:
    """A kind that is known by its bytes."""

    def make(_: nn.Module, folder: Path) -> Path:
        (folder / file).write_bytes(data)
        return folder / file

    kind(name, words)(make)


class Runs:
    """Unpickled, it makes a folder: the sign that a file's code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


# -- PyTorch's own files that are no checkpoints -------------------------------------------------


@kind("TorchScript, traced", f"is a TorchScript program.*{SAVE}")
def _(net, folder):
    example = torch.zeros(2, *net.example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, example), folder / "x.pt")
    return folder / "x.pt"


@kind("TorchScript, scripted", f"is a TorchScript program.*{SAVE}")
def _(net, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "x.bin")
    return folder / "x.bin"


@kind("TorchScript of the first releases", "is a TorchScript program")
def _(net, folder):
    return _zipped(folder / "x.pt", {"x/model.json": b"{}", "x/code/x.py": b"", "x/tensors/0": bytes(8)})


@kind("exported program", f"is an exported program.*{SAVE}")
def _(net, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), folder / "x.pt2")
    return folder / "x.pt2"


@kind("torch.package", "is a torch.package archive, which holds code")
def _(net, folder):
    with warnings.catch_warnings(), torch.package.PackageExporter(folder / "x.pt") as exporter:
        warnings.simplefilter("ignore")
        exporter.save_pickle("model", "model.pkl", {"w": torch.ones(2)})
    return folder / "x.pt"


@kind("whole module", f"is a pickled object of the class .*Linear.*{SAVE}")
def _(net, folder):
    return saved(folder, nn.Linear(2, 2))


@kind("whole module before PyTorch 1.6", f"is a pickled object of the class .*Linear.*{SAVE}")
def _(net, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(folder, nn.Linear(2, 2), _use_new_zipfile_serialization=False)


@kind("module in a dictionary, as YOLO has it", f"holds objects of a program.*{SAVE}")
def _(net, folder):
    return saved(folder, {"epoch": 3, "model": nn.Linear(2, 2), "ema": None})


@kind("arguments of a program beside", f"names argparse.Namespace: it holds objects.*{SAVE}")
def _(net, folder):
    return saved(folder, {"args": Namespace(lr=0.1), "model": state_of(net)})


@kind(
    "NumPy values beside",
    "holds NumPy values beside its tensors; save it again where it was made, with float",
)
def _(net, folder):
    return saved(folder, {"state_dict": state_of(net), "best_acc": np.float64(0.5)})


@kind("a program in a pickle", "names (posix|nt).mkdir, which is no part of a checkpoint")
def _(net, folder):
    return saved(folder, {"state_dict": state_of(net), "x": Runs(folder / "ran")})


@kind("a newer pickle protocol", "newer pickle protocol than PyTorch's own; save it again where it was made")
def _(net, folder):
    return saved(folder, state_of(net), pickle_protocol=4)


@kind("a newer pickle protocol before 1.6", "pickle protocol that is not PyTorch's own")
def _(net, folder):
    return saved(folder, state_of(net), pickle_protocol=4, _use_new_zipfile_serialization=False)


@kind("sparse tensors", "holds a sparse tensor; save to_dense")
def _(net, folder):
    return saved(folder, {**state_of(net), "adjacency": torch.eye(3).to_sparse()})


@kind("quantised tensors", "holds a quantised tensor; save dequantize")
def _(net, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(folder, {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


@kind("tensors without values", "holds a tensor on the meta device, which has no values")
def _(net, folder):
    return saved(folder, {"w": torch.ones(2, device="meta")})


@kind("distributed checkpoint", "is a part of a distributed checkpoint; make one file .*dcp_to_torch")
def _(net, folder):
    _distributed(net, folder)
    return folder / "dcp" / "__0_0.distcp"


@kind(
    "folder of a distributed checkpoint",
    "is a folder, a distributed checkpoint; make one file .*dcp_to_torch",
)
def _(net, folder):
    _distributed(net, folder)
    return folder / "dcp"


def _distributed(net: nn.Module, folder: Path) -> None:
    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state_of(net), checkpoint_id=folder / "dcp", no_dist=True)


# -- networks that are another one, or several ----------------------------------------------------


@kind(
    "student and teacher that differ",
    "holds 2 networks of .* that differ: 'student.module', 'teacher'; choose",
)
def _(net, folder):
    state = state_of(net)
    return saved(folder, {"student": under("module.", other(state)), "teacher": state})


@kind("one layer more", "does not belong to this architecture")
def _(net, folder):
    state = state_of(net)
    return saved(folder, {**state, "body.9.weight": torch.ones(4, 4), "body.9.bias": torch.ones(4)})


@kind("one tensor less", "tensor 'module.head.bias' is missing")
def _(net, folder):
    state = state_of(net)
    del state["head.bias"]
    return saved(folder, {"module." + name: value for name, value in state.items()})


@kind("another shape", "tensor 'net.head.bias' has shape .9,., wanted")
def _(net, folder):
    return saved(folder, {"net": {**state_of(net), "head.bias": torch.ones(9)}})


@kind("whole numbers", "tensor 'head.bias' holds torch.int64, not floats")
def _(net, folder):
    state = state_of(net)
    return saved(folder, {**state, "head.bias": state["head.bias"].long()})


@kind("values that are not finite", "tensor 'state_dict.head.bias' has values that are not finite")
def _(net, folder):
    state = state_of(net)
    state["head.bias"][0] = torch.nan
    return saved(folder, {"state_dict": state})


@kind("spectral norm", "is part of a parametrization that cannot be folded: remove it where it was made")
def _(net, folder):
    layers = [child for child in net.modules() if isinstance(child, nn.Conv2d | nn.Linear)]
    parametrizations.spectral_norm(layers[0])
    return saved(folder, net.state_dict())


@kind("an optimizer alone", "is missing, as are all others; it holds")
def _(net, folder):
    return saved(folder, {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]})


@kind("no tensors", "holds no tensors")
def _(net, folder):
    return saved(folder, {"epoch": 3, "lr": [0.1]})


@kind("two tensors of one name", "has two tensors of one name")
def _(net, folder):
    return saved(folder, {1: torch.ones(2), "1": torch.zeros(2)})


# -- files of other libraries --------------------------------------------------------------------


@kind("pickle of arrays", f"is a pickle of the class numpy.*a program that runs when it is opened.*{SAVE}")
def _(net, folder):
    (folder / "x.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}))
    return folder / "x.pkl"


@kind("pickle that runs a program", "is a pickle of the class (posix|nt).mkdir, a program")
def _(net, folder):
    (folder / "x.pt").write_bytes(pickle.dumps(Runs(folder / "ran")))
    return folder / "x.pt"


@kind("pickle of the first protocol", "is a pickle, a program that runs")
def _(net, folder):
    (folder / "x.pkl").write_bytes(pickle.dumps({"a": [1, 2]}, protocol=0))
    return folder / "x.pkl"


@kind("joblib", f"is a pickle of the class joblib.*{SAVE}")
def _(net, folder):
    joblib.dump({"w": np.ones(3)}, folder / "x.joblib")
    return folder / "x.joblib"


@kind("joblib, compressed", f"is compressed with zlib, as joblib writes pickles.*{SAVE}")
def _(net, folder):
    joblib.dump({"w": np.ones(3)}, folder / "x.joblib", compress=3)
    return folder / "x.joblib"


@kind("npz", r"is an archive of NumPy arrays \(.npz\); save them as safetensors")
def _(net, folder):
    np.savez(folder / "x.npz", **{name: value.numpy() for name, value in state_of(net).items()})
    return folder / "x.npz"


@kind("npz called .safetensors", r"is an archive of NumPy arrays \(.npz\)")
def _(net, folder):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.ones(3))
    (folder / "x.safetensors").write_bytes(buffer.getvalue())
    return folder / "x.safetensors"


@kind("npy", "is one NumPy array")
def _(net, folder):
    np.save(folder / "x.npy", np.ones(3))
    return folder / "x.npy"


@kind("safetensors, cut off", "announces")
def _(net, folder):
    safetensors.torch.save_file(state_of(net), folder / "x.safetensors")
    os.truncate(folder / "x.safetensors", (folder / "x.safetensors").stat().st_size - 9)
    return folder / "x.safetensors"


@kind("PyTorch, cut off", "is cut off: it begins as a zip archive and lacks its end; download it again")
def _(net, folder):
    path = saved(folder, state_of(net))
    os.truncate(path, path.stat().st_size // 2)
    return path


@kind("PyTorch, compressed again", "is a compressed file; unpack it")
def _(net, folder):
    (folder / "x.pt.gz").write_bytes(gzip.compress(saved(folder, state_of(net)).read_bytes()))
    return folder / "x.pt.gz"


@kind("tar", "is a tar archive; unpack it, and name the file of weights in it")
def _(net, folder):
    with tarfile.open(folder / "x.tar", "w") as archive:
        archive.add(saved(folder, state_of(net)), "x.pt")
    return folder / "x.tar"


@kind("PyTorch before 0.1.10", f"is a PyTorch file from before 0.1.10.*{SAVE}")
def _(net, folder):
    with tarfile.open(folder / "x.pt", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return folder / "x.pt"


@kind("zip of other files", "is a zip archive of other files .'data', 'policy.pth'.*; unpack it")
def _(net, folder):
    return _zipped(folder / "x.zip", {"data": b"{}", "policy.pth": saved(folder, state_of(net)).read_bytes()})


@kind("Keras archive", f"is a Keras model.*{SAVE}")
def _(net, folder):
    parts = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"\x89HDF\r\n\x1a\n"}
    return _zipped(folder / "x.keras", parts)


@kind("TorchServe archive", "is a TorchServe archive")
def _(net, folder):
    return _zipped(folder / "x.mar", {"MAR-INF/MANIFEST.json": b"{}", "model.pt": b""})


@kind("Core ML package, zipped", "is a Core ML model")
def _(net, folder):
    return _zipped(folder / "x.zip", {"a/Manifest.json": b"{}", "a/Data/com.apple.CoreML/model.mlmodel": b""})


@kind("a zip archive without entries", "is a zip archive without entries")
def _(net, folder):
    return _zipped(folder / "x.pt", {})


def _zipped(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


holds(
    "Keras weights",
    f"is a Keras file of weights.*{SAVE}",
    b"\x89HDF\r\n\x1a\n" + bytes(90) + b"layer_names",
    "x.h5",
)
holds("HDF5", f"is an HDF5 file.*{SAVE}", b"\x89HDF\r\n\x1a\n" + bytes(90), "x.h5")
holds(
    "ONNX",
    f"is an ONNX model.*{SAVE}",
    b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xf4\x01" + bytes(99),
    "x.onnx",
)
holds("GGUF", f"is a GGUF file.*{SAVE}", b"GGUF\x03\0\0\0" + bytes(40), "x.gguf")
holds("GGML", "is a GGML file", b"tjgg\x03\0\0\0" + bytes(40), "ggml-model.bin")
holds("TensorFlow Lite", f"is a TensorFlow Lite model.*{SAVE}", b"\x1c\0\0\0TFL3" + bytes(40), "x.tflite")
holds(
    "SavedModel",
    f"is a TensorFlow SavedModel.*{SAVE}",
    b"\x08\x01\x12\xb6\x9a\x02\n\xd2" + bytes(40),
    "saved_model.pb",
)
holds(
    "TensorFlow graph",
    "is a TensorFlow graph",
    b"\n\x1e\n\x05input\x12\x0bPlaceholder" + bytes(40),
    "graph.pb",
)
holds("TensorFlow checkpoint, index", f"is the index of a TensorFlow checkpoint.*{SAVE}",
      bytes(99) + bytes.fromhex("57fb808b247547db"), "model.ckpt-1000.index")  # fmt: skip
holds("TensorFlow checkpoint, data", "is the data of a TensorFlow checkpoint",
      b"\x11\x9e\x3f" * 90, "model.ckpt-1000.data-00000-of-00001")  # fmt: skip
holds("TensorFlow checkpoint, note", "is the index of a TensorFlow checkpoint",
      b'model_checkpoint_path: "model.ckpt-1000"\n', "checkpoint")  # fmt: skip
holds("Core ML", "is a Core ML model", b"\x08\x04\x12\x99\x01\n\x20\n\x05image" + bytes(40), "x.mlmodel")
holds("ExecuTorch", "is an ExecuTorch program", b"\x30\0\0\0ET12" + bytes(40), "x.pte")
holds("TensorRT", "is a TensorRT engine", b"ftrt" + bytes(40), "x.engine")
holds(
    "OpenVINO", "is the description of an OpenVINO model", b'<?xml version="1.0"?>\n<net name="a">', "x.xml"
)
holds("MXNet", "is an MXNet file", b"\x12\x01\0\0\0\0\0\0" + bytes(40), "x.params")
holds("Darknet", "is a Darknet file", b"\0\0\0\0\x02\0\0\0\0\0\0\0" + b"\x01" * 40, "yolov3.weights")
holds("Flax", f"is a MessagePack file, as Flax writes them.*{SAVE}",
      b"\x81\xa6params\x81\xa6kernel\xc7" + b"\xc4" * 60, "x.msgpack")  # fmt: skip
holds(
    "MATLAB",
    "is a MATLAB file",
    b"MATLAB 5.0 MAT-file, Platform: PCWIN64".ljust(124) + b"\0\1IM" + bytes(8),
    "x.mat",
)
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"
holds("Git LFS pointer", "is a Git LFS pointer: .*`git lfs pull`", _POINTER)
holds("Git LFS pointer, safetensors", "is a Git LFS pointer", _POINTER, "x.safetensors")
holds("HTML page", "is an HTML page .* download it again", b"\n<!DOCTYPE html><html><head>")
holds("XML error", "is an XML text", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
holds("JSON", "is a JSON text", json.dumps({"error": "not found"}).encode(), "x.safetensors")
holds("index without parts", "is the index of a network in several files; name the folder",
      json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), "x.index.json")  # fmt: skip
holds("text", "is a text, not a file of weights", b"accuracy: 0.9\n", "x.txt")
holds("empty", "is empty; download it again", b"")
holds("zeros", "begins with zeros alone", bytes(9000))
holds("noise", "is no file of weights: it begins neither as", b"\xfe\x9b\x07\xe1" * 99, "x.safetensors")
holds("SQLite", "is an SQLite database", b"SQLite format 3\0" + bytes(90), "zoo.sqlite3")
holds("executable", "is an executable program", b"\x7fELF\x02\x01\x01" + bytes(90))
holds("PDF", "is a PDF document", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
holds(
    "AppleDouble",
    "is a note of the file system",
    b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(20),
    "_model.pt",
)


@kind("picture", "is a picture")
def _(net, folder):
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    return folder / "x.png"


@kind("folder of a SavedModel", "is a folder, a TensorFlow SavedModel")
def _(net, folder):
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"")
    return folder / "saved"
