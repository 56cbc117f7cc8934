"""What a file is, by its first bytes: weights that are read here, or something else.

A name says nothing: ``model.pt`` may be a program, and ``checkpoint.pth.tar`` is a PyTorch file. Of what
cannot be read, the reason says what it is and how to save its weights so that they can be. Reads a file's
first and last bytes and the directory of a zip archive; knows nothing of tensors, and runs nothing.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from weightloom.errors import CheckpointError
from weightloom.io.files import open_regular

Name = Literal["safetensors", "pytorch", "pytorch before 1.6", "other"]

MAX_ENTRIES = 65_600  # each tensor is one, and there are at most 65,536
MAX_DIRECTORY_BYTES = 32 << 20
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickle that files of ``torch.save`` began with before PyTorch 1.6."""

_HEAD, _TAIL = 4096, 65_557  # a zip archive's directory ends in its last 65,557 bytes
_END_OF_DIRECTORY, _ZIP64_LOCATOR, _ZIP64_END = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
        name: how it is read, or ``other``.
        reason: of ``other`` ones a sentence: what it is, and how to save its weights to be read.
        weights: false where nobody would take the file for weights (a text, a picture).
        what: of ``other`` ones that are known the kind in a word, such as ``npz``.
    """

    name: Name
    reason: str = ""
    weights: bool = True
    what: str = ""


# -- sentences: what a file is, and how to save its weights so that they can be read -------------

STATE_DICT = "save the weights alone where it was made: torch.save(model.state_dict(), 'weights.pt')"
_ARRAYS = (
    "save its arrays where it was made, under the names and shapes of the PyTorch network: "
    "safetensors.numpy.save_file({name: array, ...}, 'weights.safetensors')"
)
_AGAIN = "download it again"
_UNPACK = "unpack it, and name the file of weights in it"

_SENTENCES: dict[str, str] = {
    "torchscript": f"is a TorchScript program, not a checkpoint; {STATE_DICT}",
    "exported": f"is an exported program (torch.export), not a checkpoint; {STATE_DICT}",
    "package": f"is a torch.package archive, which holds code; {STATE_DICT}",
    "executorch": f"is an ExecuTorch program, not a checkpoint; {STATE_DICT}",
    "distributed": (
        "is a part of a distributed checkpoint; make one file of its folder where it was made: python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt"
    ),
    "torch tar": f"is a PyTorch file from before 0.1.10, which no safe reader takes; {STATE_DICT}",
    "pickle protocol": (
        "was written with a pickle protocol that is not PyTorch's own; save it again where it was made, "
        "without pickle_protocol: torch.save(model.state_dict(), 'weights.pt')"
    ),
    "mar": f"is a TorchServe archive, a zip archive with code; {_UNPACK}",
    "npz": (
        "is an archive of NumPy arrays (.npz); save them as safetensors: "
        "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')"
    ),
    "npy": (
        "is one NumPy array (.npy), not a network; save its arrays by name: "
        "safetensors.numpy.save_file({name: array, ...}, 'weights.safetensors')"
    ),
    "keras": f"is a Keras model (.keras); {_ARRAYS}, from model.weights",
    "keras h5": f"is a Keras file of weights (HDF5); {_ARRAYS}, from model.weights",
    "hdf5": f"is an HDF5 file; {_ARRAYS}",
    "onnx": (
        f"is an ONNX model; {STATE_DICT}, or take the arrays of its initializers "
        "(onnx.numpy_helper.to_array) and save them with safetensors.numpy.save_file"
    ),
    "gguf": f"is a GGUF file, of a language model for llama.cpp; {STATE_DICT}",
    "ggml": f"is a GGML file, of a language model for llama.cpp; {STATE_DICT}",
    "tflite": f"is a TensorFlow Lite model; {_ARRAYS}",
    "savedmodel": f"is a TensorFlow SavedModel; {_ARRAYS}",
    "tensorflow graph": f"is a TensorFlow graph (.pb); {_ARRAYS}",
    "tensorflow index": f"is the index of a TensorFlow checkpoint; {_ARRAYS}, from tf.train.load_checkpoint",
    "tensorflow data": (f"is the data of a TensorFlow checkpoint; {_ARRAYS}, from tf.train.load_checkpoint"),
    "coreml": f"is a Core ML model, a program; {STATE_DICT}",
    "caffe": f"is a Caffe model; {_ARRAYS}",
    "darknet": f"is a Darknet file of weights; {STATE_DICT}",
    "torch7": f"is a file of Torch7 (Lua); {_ARRAYS}",
    "mxnet": f"is an MXNet file of parameters; {_ARRAYS}",
    "msgpack": f"is a MessagePack file, as Flax writes them; {_ARRAYS}",
    "tensorrt": f"is a TensorRT engine, a program for one processor; {STATE_DICT}",
    "openvino": f"is the description of an OpenVINO model; {STATE_DICT}",
    "matlab": f"is a MATLAB file; {_ARRAYS}",
    "parquet": f"is a Parquet table; {_ARRAYS}",
    "arrow": f"is an Arrow table; {_ARRAYS}",
    "tar": f"is a tar archive; {_UNPACK}",
    "compressed": f"is a compressed file; {_UNPACK}",
    "zlib": f"is compressed with zlib, as joblib writes pickles; {_ARRAYS}",
    "lfs": (
        "is a Git LFS pointer: the weights themselves were not downloaded; `git lfs pull` in the repository "
        "fetches them"
    ),
    "html": f"is an HTML page that was saved in place of the file; {_AGAIN} by the address of the file",
    "xml": f"is an XML text, perhaps the error of a server in place of the file; {_AGAIN}",
    "index": (
        "is the index of a network in several files; name the folder that holds it together with these files"
    ),
    "json": "is a JSON text, not a file of weights",
    "yaml or text": "is a text, not a file of weights",
    "sqlite": "is an SQLite database; a zoo is named by its folder",
    "picture": "is a picture, not a file of weights",
    "pdf": "is a PDF document, not a file of weights",
    "executable": "is an executable program, not a file of weights",
    "office": "is an office document, not a file of weights",
    "wheel": f"is a Python package (a wheel); {_UNPACK}",
    "jar": "is a Java or Android archive, not a file of weights",
    "empty": f"is empty; {_AGAIN}",
    "empty zip": f"is a zip archive without entries; {_AGAIN}",
    "cut zip": f"is cut off: it begins as a zip archive and lacks its end; {_AGAIN}",
    "zeros": f"begins with zeros alone, as a download does that was not finished; {_AGAIN}",
    "hidden": "is a note of the file system (AppleDouble), not a file of weights",
}
_NO_WEIGHTS = frozenset(
    {
        "index",
        "json",
        "yaml or text",
        "sqlite",
        "picture",
        "pdf",
        "executable",
        "office",
        "jar",
        "xml",
        "hidden",
    }
)

# Offset, bytes, kind. The longest of those with a common beginning stand first.
_SIGNS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"GGUF", "gguf"),
    (0, b"lmgg", "ggml"), (0, b"fmgg", "ggml"), (0, b"tjgg", "ggml"), (0, b"algg", "ggml"),
    (4, b"TFL3", "tflite"),
    (4, b"ET12", "executorch"), (4, b"ET13", "executorch"),
    (257, b"ustar", "tar"),
    (0, b"\x1f\x8b", "compressed"), (0, b"BZh", "compressed"), (0, b"\xfd7zXZ\x00", "compressed"),
    (0, b"\x28\xb5\x2f\xfd", "compressed"), (0, b"\x04\x22\x4d\x18", "compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "compressed"), (0, b"Rar!\x1a\x07", "compressed"),
    (0, b"x\x01", "zlib"), (0, b"x^", "zlib"), (0, b"x\x9c", "zlib"), (0, b"x\xda", "zlib"),
    (0, b"SQLite format 3\0", "sqlite"),
    (0, b"\x89PNG\r\n", "picture"), (0, b"\xff\xd8\xff", "picture"), (0, b"GIF8", "picture"),
    (0, b"II*\0", "picture"), (0, b"MM\0*", "picture"), (8, b"WEBP", "picture"),
    (0, b"%PDF-", "pdf"),
    (0, b"\x7fELF", "executable"), (0, b"MZ", "executable"), (0, b"\xcf\xfa\xed\xfe", "executable"),
    (0, b"\xca\xfe\xba\xbe", "executable"),
    (0, b"MATLAB 5.0 MAT-file", "matlab"),
    (0, b"PAR1", "parquet"), (0, b"ARROW1", "arrow"),
    (0, b"\x12\x01\0\0\0\0\0\0", "mxnet"),
    (0, b"\0\0\0\0\x02\0\0\0\0\0\0\0", "darknet"), (0, b"\0\0\0\0\x02\0\0\0\x05\0\0\0", "darknet"),
    (0, b"ftrt", "tensorrt"), (0, b"ptrt", "tensorrt"),
    (0, b"\x00\x05\x16\x07", "hidden"), (0, b"\x00\x00\x00\x01Bud1", "hidden"),
)  # fmt: skip
# For what has no bytes of its own; asked last.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.data-\d{5}-of-\d{5}$"), "tensorflow data"),
    (re.compile(r"\.pb$"), "tensorflow graph"),
    (re.compile(r"\.caffemodel$"), "caffe"),
    (re.compile(r"\.mlmodel$"), "coreml"),
    (re.compile(r"\.(t7|th)$"), "torch7"),
    (re.compile(r"\.weights$"), "darknet"),
    (re.compile(r"\.onnx$"), "onnx"),
    (re.compile(r"\.(engine|plan|trt)$"), "tensorrt"),
    (re.compile(r"\.distcp$"), "distributed"),
)


def file_kind(path: str | Path) -> FileKind:
    """What the file at ``path`` is.

    Raises:
        CheckpointError: it is missing, cannot be read, or is no regular file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"w": torch.ones(2)}, folder / "model_best.pth.tar")
        >>> file_kind(folder / "model_best.pth.tar").name
        'pytorch'
        >>> _ = (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
        >>> file_kind(folder / "model.safetensors").reason
        'is a Git LFS pointer: the weights themselves were not downloaded; `git lfs pull` in ...'
    """
    with open_regular(path) as (handle, size):
        head = handle.read(_HEAD)
        if head.startswith((b"PK\x03\x04", _END_OF_DIRECTORY)):
            return _zip_kind(handle, size, Path(path).name)
        handle.seek(max(0, size - 8))
        return _plain_kind(head, handle.read(8), Path(path).name, size)


def folder_reason(path: Path) -> str:
    """What a folder without weights that are read here is, and what to do."""
    if (path / "saved_model.pb").exists():
        return f"is a folder, a TensorFlow SavedModel; {_ARRAYS}"
    if (path / ".metadata").exists():
        return f"is a folder, {_SENTENCES['distributed'].removeprefix('is a part of ')}"
    if (path / "Manifest.json").exists() and (path / "Data").is_dir():
        return f"is a folder, a Core ML model; {STATE_DICT}"
    if (path / "zoo.sqlite3").exists():
        return "is a folder, a zoo; `weightloom zoo export` writes its networks as files"
    return "is a folder"


def _other(kind: str) -> FileKind:
    return FileKind("other", _SENTENCES[kind], kind not in _NO_WEIGHTS, kind)


def _plain_kind(head: bytes, tail: bytes, name: str, size: int) -> FileKind:
    if not head:
        return _other("empty")
    # A length below 4 GB, and the brace that the header begins with.
    if head[4:8] == b"\0\0\0\0" and head[8:9] == b"{":
        return FileKind("safetensors")
    if head.startswith(OLD_MAGIC):
        return FileKind("pytorch before 1.6")
    if OLD_MAGIC[2:-1] in head[:64] and head[:1] == b"\x80":
        return _other("pickle protocol")
    if (kind_of_text := _text_kind(head, size)) is not None:
        return _other(kind_of_text)
    for offset, sign, kind in _SIGNS:
        if head[offset : offset + len(sign)] == sign:
            if kind == "tar" and any(
                head.startswith(part) for part in (b"sys_info\0", b"pickle\0", b"storages\0")
            ):
                return _other("torch tar")
            words = (b"keras", b"layer_names", b"model_weights")
            if kind == "hdf5" and (
                name.lower().endswith(".weights.h5") or any(word in head for word in words)
            ):
                return _other("keras h5")
            return _other(kind)
    if tail == bytes.fromhex("57fb808b247547db"):
        return _other("tensorflow index")
    if _is_pickle(head, size):
        return FileKind("other", _pickle_reason(head))
    if (kind_of_message := _message_kind(head, name)) is not None:
        return _other(kind_of_message)
    if head[0] in (0xDE, 0xDF, *range(0x81, 0x90)) and 0xA1 <= (head[1:2] or b"\0")[0] <= 0xDB:
        return _other("msgpack")
    for pattern, kind in _NAMES:
        if pattern.search(name.lower()):
            return _other(kind)
    if not any(head):
        return _other("zeros")
    return FileKind(
        "other",
        "is no file of weights: it begins neither as safetensors nor as a PyTorch file, so it is damaged, "
        "cut off or of another kind; download it again, or save it again where it was made",
    )


def _text_kind(head: bytes, size: int) -> str | None:
    """Which text the file is, or None where its beginning is no text."""
    try:
        text = head.decode("utf-8-sig" if head.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or size <= len(head):  # a letter that is cut in two is no reason
            return None
        text = head[: error.start].decode("utf-8")
    if any(character < " " and character not in "\t\n\r\f\x1b" for character in text):
        return None
    begin = text.lstrip()[:200].lower()
    if begin.startswith(("version https://git-lfs", "version https://hawser")):
        return "lfs"
    if begin.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "html"
    if begin.startswith("<"):
        return "openvino" if "<net" in text else ("html" if "<html" in text.lower() else "xml")
    if begin.startswith(("{", "[")):
        return "index" if '"weight_map"' in text else "json"
    if begin.startswith("model_checkpoint_path"):
        return "tensorflow index"
    if _is_pickle(head, size):  # that of protocol 0 is text, too
        return None
    return "yaml or text"


def _message_kind(head: bytes, name: str) -> str | None:
    """Which protocol buffer the file is: those of ONNX, TensorFlow and Core ML begin with their version."""
    if head[:1] != b"\x08" or len(head) < 4:
        return None
    if name.lower().endswith(".mlmodel"):
        return "coreml"
    if head[1:3] == b"\x01\x12":
        return "savedmodel"
    # ONNX: the version (3 or more), then the producer's name, the graph or the operator sets.
    if 3 <= head[1] <= 31 and head[2] in (0x12, 0x3A, 0x42):
        return "coreml" if head[2] == 0x12 and head[4:5] == b"\x0a" else "onnx"
    return None


def _is_pickle(head: bytes, size: int) -> bool:
    """Whether a file is a pickle; older protocols have no sign, and their instructions have to make sense."""
    if head[:1] == b"\x80":
        return head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if head[:1] not in (b"(", b"c", b"}", b"]", b")"):
        return False
    place = 0
    try:
        for _, _, at in pickletools.genops(io.BytesIO(head)):
            place = at or place
    except Exception:  # half an instruction, or none
        return size > len(head) and place > len(head) // 2
    return True


def _pickle_reason(head: bytes) -> str:
    """That a file is a pickle, and whose class it names first."""
    named = first_class(head)
    of = f" of the class {named}" if named else ""
    return (
        f"is a pickle{of}, a program that runs when it is opened; save its arrays where it was made: "
        "safetensors.numpy.save_file({name: array, ...}, 'weights.safetensors'), or of a PyTorch network "
        "torch.save(model.state_dict(), 'weights.pt')"
    )


def first_class(pickled: bytes) -> str:
    r"""The first class or function that a pickle names, as far as its beginning tells; ``""`` if none.

    Example:
        >>> first_class(b"cos\nsystem\n(S'ls'\ntR.")
        'os.system'
    """
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(pickled)):
            if opcode.name == "GLOBAL":
                return plain_words(str(argument).replace(" ", "."))
            if opcode.name == "STACK_GLOBAL":
                return plain_words(".".join(texts[-2:]))
            if "UNICODE" in opcode.name:
                texts.append(str(argument)[:100])
    except Exception:  # the beginning of a pickle, or of something else, ends anywhere
        pass
    return ""


def plain_words(text: str, limit: int = 100) -> str:
    r"""``text`` cut to ``limit`` letters, with characters that a terminal would obey written out.

    Example:
        >>> plain_words("a\x1b[2J")
        'a\\x1b[2J'
    """
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown
    )


def quoted(text: object, limit: int = 100) -> str:
    r"""A name from a file in quotes, cut to ``limit`` letters, without characters that a terminal would obey.

    Example:
        >>> print(quoted("a\x1b[2J"))
        'a\x1b[2J'
    """
    shown = text if not isinstance(text, str) or len(text) <= limit else text[: limit - 3] + "..."
    return plain_words(repr(shown), limit + 20)


# -- zip archives ------------------------------------------------------------------------------


def _zip_kind(handle: BinaryIO, size: int, name: str) -> FileKind:
    if name.endswith(".distcp"):  # several archives one after another
        return _other("distributed")
    handle.seek(max(0, size - _TAIL))
    tail = handle.read(_TAIL)
    at = tail.rfind(_END_OF_DIRECTORY)
    if at < 0:
        return _other("cut zip")
    try:
        check_directory(name, handle, size, tail[at:], max(0, size - _TAIL) + at)
        with zipfile.ZipFile(handle) as archive:
            names = [entry.filename for entry in archive.infolist()]
    except CheckpointError as error:
        return FileKind("other", error.reason)
    except Exception:  # zipfile has five kinds of errors, and some of Python's own
        return FileKind("other", f"is a zip archive whose directory is damaged; {_AGAIN}")
    return _kind_of_entries(names)


def check_directory(path: str | Path, handle: BinaryIO, size: int, end: bytes, place: int) -> None:
    """That a zip archive's directory is small, before a list of its entries is made.

    Args:
        path: the file, for the error.
        handle: the open file.
        size: its size in bytes.
        end: from the record that ends the directory on.
        place: where in the file that record begins.

    Raises:
        CheckpointError: it is not.
    """
    count, nbytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    handle.seek(max(0, place - 20))
    locator = handle.read(20)
    if place >= 20 and locator.startswith(_ZIP64_LOCATOR):
        handle.seek(min(size, int.from_bytes(locator[8:16], "little")))
        record = handle.read(56)
        if record.startswith(_ZIP64_END):
            count, nbytes = int.from_bytes(record[32:40], "little"), int.from_bytes(record[40:48], "little")
    if count > MAX_ENTRIES:
        raise CheckpointError(path, f"has {count:,} entries where {MAX_ENTRIES:,} are allowed")
    if nbytes > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            path, f"has a directory of {nbytes:,} bytes where {MAX_DIRECTORY_BYTES:,} are allowed"
        )


def _kind_of_entries(names: list[str]) -> FileKind:
    if not names:
        return _other("empty zip")
    folder = names[0].partition("/")[0] + "/"
    inside = {name.removeprefix(folder) for name in names}
    if "constants.pkl" in inside or "bytecode.pkl" in inside or any(n.startswith("code/") for n in inside):
        return _other("torchscript")
    if "archive_format" in inside or "serialized_exported_program.json" in inside | set(names):
        return _other("exported")
    if ".data/extern_modules" in inside:
        return _other("package")
    if "data.pkl" in inside:
        return FileKind("pytorch")
    if all(name.endswith(".npy") for name in names):
        return _other("npz")
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return _other("keras")
    for sign, kind in (
        ("MAR-INF/", "mar"), ("[Content_Types].xml", "office"), ("META-INF/", "jar"),
        (".dist-info/", "wheel"), (".mlmodel", "coreml"), ("saved_model.pb", "savedmodel"),
    ):  # fmt: skip
        if any(sign in name for name in names):
            return _other(kind)
    shown = ", ".join(quoted(name, 60) for name in sorted(names)[:3])
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return FileKind("other", f"is a zip archive of other files ({shown}{more}), with no data.pkl; {_UNPACK}")
