"""A static hypernetwork as a generator: one network makes the layers of all architectures, for any task.

The paper's generator of blocks makes every convolution and linear layer of every architecture's body, from
learned layer embeddings. What is added here is the task: the examples are summed up in one small vector,
which moves the embeddings, so that another task gets other weights. The head is solved in closed form on the
features that the made body gives the examples. All is trained end to end on tasks; no checkpoint is needed.

Knows nothing of how it is trained. Shapes: M samples, P values of a network, C classes, S examples a class,
K embeddings of an architecture, Z their width, E width of a task's vector, H features of a body.
Source: Ha, Dai and Le, "HyperNetworks" (arXiv 1609.09106), section 3.1, equations 1 to 3; embeddings moved by
the task, von Oswald et al., "Continual learning with hypernetworks" (arXiv 1906.00695), section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import SupportEncoder
from weightloom.errors import CheckpointError, InputError, SpecError, WeightloomError
from weightloom.fitting import closed_form_network, discriminant
from weightloom.generators.base import (
    Generator,
    Request,
    Validity,
    generators,
    measured_on_support,
    merge_reports,
)
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.nn import HyperLayer, hyperize_together, materialize
from weightloom.seeding import check_seed, seed_for
from weightloom.weights import layout_of
from weightloom.whole import whole_fields


@dataclass(frozen=True, kw_only=True)
class StaticHypernetworkConfig:
    """Sizes. ``block`` and ``activation`` as in :class:`weightloom.nn.BlockGenerator`."""

    embedding_size: int = 16
    block: int = 8
    activation: str | None = None
    task_size: int = 16
    image_features: int = 32
    image_width: int = 16

    def __post_init__(self) -> None:
        sizes = ("embedding_size", "block", "task_size", "image_features", "image_width")
        whole_fields(self, dict.fromkeys(sizes, (1, 4096)))


@generators.register("static_hypernetwork")
class StaticHypernetwork(nn.Module, Generator):
    """One hypernetwork for several architectures and any task; nothing is drawn.

    Example:
        >>> from weightloom.tasks import parse_task
        >>> keys = architecture_keys(["cnn(depth=1,width=4)"], (1, 8, 8))
        >>> limits = Validity(architectures=keys, input=(1, 8, 8), min_classes=2, max_classes=5)
        >>> model = StaticHypernetwork(StaticHypernetworkConfig(), limits, seed=0)
        >>> support = parse_task("digits[3,1,7]@8c1").support(8)
        >>> sample = model.generate("cnn(depth=1,width=4)", support=support)
        >>> sample.module(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 3])
    """

    kind: ClassVar[str] = "static_hypernetwork"
    draws: ClassVar[bool] = False
    makes_statistics: ClassVar[bool] = True

    def __init__(
        self,
        config: StaticHypernetworkConfig,
        validity: Validity,
        *,
        name: str = "static_hypernetwork",
        seed: int = 0,
    ) -> None:
        """
        Args:
            config: sizes.
            validity: its architectures are those that are made; one set of embeddings each.
            name: what reports call it.
            seed: of the start.

        Raises:
            SpecError: an architecture whose body has no layer to generate.
        """
        super().__init__()
        self.config, self.validity, self.name = config, validity, name
        bodies = {str(n): self._spec(n).initialise(0).body for n in range(len(validity.architectures))}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("static_hypernetwork", check_seed(seed)))
            try:
                self.bodies = hyperize_together(
                    bodies, linear=True, embedding_size=config.embedding_size,
                    block=(config.block, config.block), activation=config.activation,
                )  # fmt: skip
            except InputError as error:
                raise SpecError(f"these architectures cannot be generated: {error}") from None
            self.images = SupportEncoder(
                channels=validity.input[0], features=config.image_features, width=config.image_width
            )
            self.task = nn.Linear(2 * config.image_features, config.task_size)
            counts = [sum(e.numel() for e in self._embeddings(n).values()) for n in range(len(bodies))]
            if not all(counts):
                empty = validity.architectures[counts.index(0)]
                raise SpecError(f"the body of {empty} has no layer to generate")
            self.moves = nn.ModuleList(nn.Linear(config.task_size, count, bias=False) for count in counts)
        for move in self.moves:
            assert isinstance(move, nn.Linear)
            nn.init.zeros_(move.weight)  # at the start all tasks have the same body

    def _spec(self, number: int) -> ArchitectureSpec:
        return parse_architecture(self.validity.architectures[number]).resolve(
            classes=self.validity.max_classes, input=self.validity.input
        )

    def _number(self, spec: ArchitectureSpec) -> int:
        return self.validity.architectures.index(str(replace(spec, classes=None)))

    def _embeddings(self, number: int) -> dict[str, nn.Parameter]:
        """The embeddings (K, Z) of a body by their names in it."""
        body = self.bodies[str(number)]
        return {
            f"{name}.embedding".lstrip("."): layer.embedding
            for name, layer in body.named_modules()
            if isinstance(layer, HyperLayer)
        }

    # ------------------------------------------------------------------ from examples to a body

    def task_vector(self, support: Tensor) -> Tensor:
        """(E,) of examples (C, S, channels, height, width), whatever the order of classes."""
        return torch.tanh(self.task(self.images.describe(support).mean(0)))

    def moved_embeddings(self, spec: ArchitectureSpec, support: Tensor) -> dict[str, Tensor]:
        """The embeddings of the body of ``spec``, moved by the task; by name."""
        number = self._number(spec)
        held = self._embeddings(number)
        moves = self.moves[number](self.task_vector(support)).split([e.numel() for e in held.values()])
        return {
            name: embedding + move.view_as(embedding)
            for (name, embedding), move in zip(held.items(), moves, strict=True)
        }

    def episode_loss(
        self, spec: ArchitectureSpec, support: Tensor, queries: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy of the network made from ``support`` (C, S, ...).

        On ``queries`` (B, ...) with ``labels`` (B,). Differentiable in all that is learned: through the
        head's closed form, the body's weights, their embeddings and the task's vector.
        """
        body = self.bodies[str(self._number(spec))]
        classes, shots = support.shape[:2]
        seen = torch.cat([support.flatten(0, 1), queries])  # (C, S, ...) and (B, ...) -> (C*S + B, ...)
        features = functional_call(body, self.moved_embeddings(spec, support), (seen,))
        known, asked = features.split([classes * shots, len(queries)])
        weight, bias = discriminant(known.unflatten(0, (classes, shots)))
        logits = F.linear(asked, weight, bias)
        return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()

    @torch.no_grad()
    def make(self, spec: ArchitectureSpec, support: Tensor) -> Tensor:
        """(P,) network for examples (C, S, ...); its batch norms are measured on them."""
        body = copy.deepcopy(self.bodies[str(self._number(spec))])
        for name, embedding in self.moved_embeddings(spec, support).items():
            body.get_parameter(name).copy_(embedding)
        layout = layout_of(spec)
        state = {slot.name: torch.zeros(slot.shape) for slot in layout.slots}  # the head's turn comes next
        state |= {f"body.{name}": value for name, value in materialize(body).state_dict().items()}
        return closed_form_network(spec, layout.flatten(state), support)

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P), all alike.

        Raises:
            InputError: the request has no support set.
        """
        if request.support is None:
            raise InputError(f"generator {self.name} works from examples; give examples of the task")
        flat = self.make(request.architecture, request.support.images)
        reports = merge_reports(request.num_samples, measured_on_support(request))
        return flat.repeat(request.num_samples, 1), reports

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``. Raises CheckpointError where that fails."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_tensors(folder / "model.safetensors", tensors, {"kind": self.kind})
        settings = {"name": self.name, "config": asdict(self.config), "validity": asdict(self.validity)}
        write_json(folder / "config.json", {"kind": self.kind, **settings})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> StaticHypernetwork:
        """Read what :meth:`save_pretrained` wrote. Raises CheckpointError where it is broken."""
        folder = Path(folder)
        held = read_json(folder / "config.json")
        tensors, _ = load_tensors(folder / "model.safetensors")
        try:
            model = cls(
                StaticHypernetworkConfig(**held["config"]),
                Validity.from_json(held["validity"]),
                name=str(held["name"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, WeightloomError) as error:
            raise CheckpointError(folder / "config.json", f"no static hypernetwork ({error})") from None
        _load(model, tensors, folder / "model.safetensors")
        return model.eval()


def architecture_keys(texts: Sequence[str], shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Spec texts as a validity names them: with their input, without classes."""
    return tuple(str(replace(parse_architecture(text).resolve(input=shape), classes=None)) for text in texts)


def _load(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise CheckpointError(path, f"tensor {name!r} is in the file or in the config's model, not in both")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise CheckpointError(
                path, f"tensor {name!r} is {tuple(value.shape)} {value.dtype}, not what fits"
            )
    model.load_state_dict(tensors)
