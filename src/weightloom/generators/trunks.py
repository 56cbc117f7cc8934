"""Published trunks by architecture: where their weights are, their features, and what their rows say.

Knows no heads and no requests.

Shapes: B images (B, 3, S, S) in [-1, 1], H features, K published classes, P values of a network.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.consolidation.catalogue import Published, published
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, DataUnavailableError, WeightloomError
from weightloom.finite import all_finite
from weightloom.io import cache_dir, load_tensors, save_tensors

PUBLISHED = {"mobilenetv2": "mobilenet-v2", "efficientnet-lite": "efficientnet-lite{size}"}
"""Name of the published checkpoint of each family."""

CHUNK = 64
"""Images whose features are computed, and kept, together."""

MOST_KEPT = 1 << 30
"""Bytes of the cache of features; beyond them the oldest go."""

Progress = Callable[[int, int], None]


def checkpoint_of(spec: ArchitectureSpec) -> Published:
    """What was published for ``spec``. Raises KeyError for a family without a published trunk."""
    options = {key: value for key, value in spec.to_json().items() if key == "size"}
    return published(PUBLISHED[spec.family].format(**options))


def installed(spec: ArchitectureSpec) -> bool:
    """Whether the package with the weights of ``spec`` is there."""
    try:
        checkpoint_of(spec).locate()
    except DataUnavailableError:
        return False
    return True


@dataclass(frozen=True)
class Trunk:
    """A published network without its last layer.

    Attributes:
        published: where it is from, and its licence.
        body: its tensors by name, as the spec's body has them.
        rows: (K, H) its last layer over 1,000 kinds of objects, less the mean row.
        key: tells it from every other trunk and size.
    """

    published: Published
    body: dict[str, Tensor]
    rows: Tensor
    key: str

    @cached_property
    def metric(self) -> Tensor:
        """(H, H): distances after it count most where the rows of the published classes differ.

        A square root of the rows' second moments, of mean 1, plus the identity.
        """
        moments = (self.rows.T @ self.rows).double()
        values, vectors = torch.linalg.eigh(moments / moments.diagonal().mean())
        return (vectors * (values.clamp_min(0) + 1).sqrt()).float()


@with_plain_defaults
def trunk_of(spec: ArchitectureSpec) -> Trunk:
    """The published trunk of ``spec``, read once.

    Raises:
        DataUnavailableError: its package is not installed; the sentence has the command.
        CheckpointError: the package's file is not what was published.
    """
    return _read(replace(spec, classes=2))


@lru_cache(maxsize=4)
def _read(spec: ArchitectureSpec) -> Trunk:
    source = checkpoint_of(spec)
    held = source.read()
    with torch.device("meta"):
        wanted = spec.build().state_dict()
    names = [name for name in wanted if name.startswith("body.")]
    # Both list their tensors in the order in which a picture passes them.
    tensors = list(held.items())
    body: dict[str, Tensor] = {}
    for name, (own, tensor) in zip(names, tensors, strict=False):
        if tensor.shape != wanted[name].shape or own.rpartition(".")[2] != name.rpartition(".")[2]:
            raise CheckpointError(source.locate(), f"tensor {own!r} does not fit {spec.family}'s {name!r}")
        body[name] = tensor
    rest = tensors[len(names) :]
    if len(body) < len(names) or len(rest) != 2 or rest[0][1].ndim != 2:
        raise CheckpointError(source.locate(), f"is not a whole {spec.family}")
    rows = rest[0][1]
    text = f"{source.sha256} {replace(spec, classes=None).full_text()} torch {torch.__version__}"
    return Trunk(source, body, rows - rows.mean(0), hashlib.sha256(text.encode()).hexdigest()[:32])


@torch.no_grad()
@with_plain_defaults
def features_of(
    spec: ArchitectureSpec, images: Tensor, progress: Progress | None = None, *, keep: bool = True
) -> Tensor:
    """(B, H) features of images (B, 3, S, S) in [-1, 1] by the trunk of ``spec``.

    What was computed is kept in the cache by the content of the images, 64 of them together; where nothing
    can be kept, they are computed again the next time.
    """
    trunk = trunk_of(spec)
    made: nn.Module | None = None
    parts = []
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].cpu().contiguous()
        key = hashlib.sha256(trunk.key.encode() + part.numpy().tobytes()).hexdigest()[:40]
        found = _kept(key, (len(part), trunk.rows.shape[1])) if keep else None
        if found is None:
            if made is None:
                made = _fast(replace(spec, classes=2))
            found = made(part.contiguous(memory_format=torch.channels_last)).contiguous()
            if keep:
                _keep(key, found)
        parts.append(found)
        if progress is not None:
            progress(min(start + CHUNK, len(images)), len(images))
    return torch.cat(parts).clone()


@lru_cache(maxsize=2)
def _fast(spec: ArchitectureSpec) -> nn.Module:
    """The body with each batch norm folded into the convolution before it; the same function."""
    trunk = trunk_of(spec)
    with torch.device("meta"):
        module = spec.build().get_submodule("body")
    state = {name.removeprefix("body."): tensor for name, tensor in trunk.body.items()}
    module.load_state_dict(state, assign=True)
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            for place in range(len(parent) - 1):
                conv, norm = parent[place], parent[place + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent[place] = torch.nn.utils.fuse_conv_bn_eval(conv, norm)
                    parent[place + 1] = nn.Identity()
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _kept(key: str, shape: tuple[int, int]) -> Tensor | None:
    path = cache_dir() / "features" / f"{key}.safetensors"
    try:
        if not path.is_file():
            return None
        found = load_tensors(path)[0].get("features")
    except (OSError, WeightloomError):
        return None  # it is made anew
    if found is None or found.shape != shape or found.dtype != torch.float32 or not all_finite(found):
        return None
    return found


def _keep(key: str, features: Tensor) -> None:
    folder = cache_dir() / "features"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / f"{key}.safetensors", {"features": features}, {})
        _prune(folder)
    except (OSError, WeightloomError):
        return  # no room, or no place to write: the next request computes them again


def _prune(folder: Path) -> None:
    """Remove the oldest features where the cache has grown too large."""
    files = [(path, path.stat()) for path in folder.glob("*.safetensors")]
    if sum(stat.st_size for _, stat in files) <= MOST_KEPT:
        return
    for path, _ in sorted(files, key=lambda one: one[1].st_mtime)[: len(files) // 2]:
        path.unlink(missing_ok=True)
