"""A small network of its own, published in a package that exists for one test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.consolidation import catalogue
from weightloom.consolidation.catalogue import Published
from weightloom.consolidation.inputs import inputs
from weightloom.consolidation.networks import networks
from weightloom.io import save_tensors, sha256_of
from weightloom.seeding import torch_generator


def small_forward(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(B, 10) of (B, 4, 6, 6): a plain and a depthwise convolution, two linear layers."""
    x = F.relu(F.conv2d(x, w["first.weight"], w["first.bias"], 1, 1))
    x = F.relu(F.conv2d(x, w["depthwise.weight"], None, 2, 1, 1, 16))
    x = F.relu(F.linear(x.flatten(1), w["hidden.weight"], w["hidden.bias"]))
    return F.linear(x, w["last.weight"])


def small_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch_generator("small network", seed)
    shapes = {
        "first.weight": (16, 4, 3, 3),
        "first.bias": (16,),
        "depthwise.weight": (16, 1, 3, 3),
        "hidden.weight": (32, 144),
        "hidden.bias": (32,),
        "last.weight": (10, 32),
    }
    state = {
        name: torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in shapes.items()
    }
    return {**state, "steps": torch.tensor([7]), "copy.weight": state["hidden.weight"].clone()}


def small_inputs(part: str, count: int, speech: Path | None, weights: Mapping[str, Tensor]) -> Tensor:
    """Smooth pictures, so that neighbours are alike as they are in real ones."""
    noise = torch.randn(count, 4, 12, 12, generator=torch_generator("small inputs", part))
    return F.avg_pool2d(noise.cumsum(2).cumsum(3), 2) / 10


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Published]]:
    """Three checkpoints in a package; ``near`` rests on ``small``, only ``small`` has a forward pass."""
    folder = tmp_path / "packages" / "weightloom_small_zoo"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('nothing of a package is run')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    state = small_state()
    near = {k: v + 0.02 * v.abs().mean() if v.is_floating_point() else v for k, v in state.items()}
    entries = {}
    words = {
        "small": ("a small network that recognises birds", "the bird network"),
        "near": ("the same network after more training on birds at night",),
        "plain": ("predict tomorrow's weather from air pressure",),
    }
    for name, tensors in {"small": state, "near": near, "plain": small_state(1)}.items():
        save_tensors(folder / f"{name}.safetensors", tensors)
        entries[name] = Published(
            name=name,
            package="weightloom-small-zoo==1.0",
            file=f"weightloom_small_zoo/{name}.safetensors",
            sha256=sha256_of(folder / f"{name}.safetensors"),
            licence="Apache-2.0",
            wordings=words[name],
            network="small" if name == "small" else None,
            inputs="small" if name == "small" else None,
            base="small" if name == "near" else None,
        )
    monkeypatch.setattr(catalogue, "CATALOGUE", entries)
    monkeypatch.setitem(networks._things, "small", small_forward)
    monkeypatch.setitem(inputs._things, "small", small_inputs)
    yield entries
