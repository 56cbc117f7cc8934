"""GHN: the weights of any network in one forward pass over its computation graph.

The graph's nodes become states (``nn/graph.py``), the states tensors (``nn/tensor_decoder.py``), and each
kind of tensor is brought to its own range, so that the predicted network can be trained through. Given a
module instead of a spec, it returns a copy of it with predicted weights. It is trained by the loss of the
networks that it predicts (``training/ghn.py``) and knows nothing of how.

Shapes: M samples, P values of a network, N nodes, D width, C classes, B images.
Sources: GHN-2, Knyazev et al. (arXiv 2110.13100); GHN-3, Knyazev et al. (arXiv 2303.04143).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.architectures.capture import capture_graph, graph_of
from weightloom.architectures.copying import hooked_layers, plain_name
from weightloom.architectures.graph import NORM_KINDS, WEIGHT_KINDS, GraphTensor, ModuleGraph, Shape4
from weightloom.architectures.narrowing import narrow_twin, repeated, widened
from weightloom.conditioning.architecture import MAX_CLASSES
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, SpecError, UnsupportedRequestError, WeightloomError
from weightloom.fitting import accuracy, closed_form_network, left_out, recalibrate, trunk_features
from weightloom.generators.base import (
    ANY_ARCHITECTURE,
    Generator,
    Request,
    Validity,
    generators,
    measured_on_support,
    merge_reports,
)
from weightloom.generators.module_sample import (
    MEASURED,
    MOST_RECALIBRATION,
    ModuleSample,
    StatisticsChoice,
    check_images,
    filled,
    keep_other_heads,
    outcome,
    set_statistics,
)
from weightloom.io import load_tensors, read_json, save_tensors, shapes_of, write_json
from weightloom.nn.graph import GatedGraphNetwork, GraphBatch, GraphTransformer, NodeEncoder
from weightloom.nn.tensor_decoder import CoordinateDecoder, TensorDecoder, TilingDecoder
from weightloom.tasks import NetworkCard, SupportSet
from weightloom.weights import layout_of, require_finite
from weightloom.whole import whole_fields


@dataclass(frozen=True, kw_only=True)
class GHNConfig:
    """Sizes and choices; the defaults are GHN-2's for CIFAR-10.

    Attributes:
        classes: C, the rows of every head.
        width: D of a node's state.
        backbone: ``gated`` (GHN-2), ``transformer`` (GHN-3), or ``mlp``, which sees no edges (a baseline).
        depth, heads: of the transformer.
        passes: of the gated network, forward and backward each.
        virtual_edges: the longest path that counts; 1 for real edges only.
        shapes: a node knows the shape of its weight.
        decoder: ``tiling`` repeats a block, ``coordinate`` makes every channel from its number.
        block: channels of the tiled block.
        rank: terms of the coordinate decoder.
        kernel: largest kernel side that is decoded.
        widest: channels of a first layer beyond which a network is made as its narrow twin, whose channels
            are then repeated (``architectures/narrowing.py``).
        normalise: each kind of tensor is brought to its range.
        state_norm: layer norm of the states before decoding.
    """

    classes: int
    width: int = 32
    backbone: Literal["gated", "transformer", "mlp"] = "gated"
    depth: int = 3
    heads: int = 8
    passes: int = 1
    virtual_edges: int = 50
    shapes: bool = True
    decoder: Literal["tiling", "coordinate"] = "tiling"
    block: int = 64
    rank: int = 32
    kernel: int = 11
    widest: int = 1024
    normalise: bool = True
    state_norm: bool = True

    def __post_init__(self) -> None:
        least = {
            "classes": 2, "width": 4, "depth": 1, "heads": 1, "passes": 1, "virtual_edges": 1, "block": 1,
            "rank": 1, "kernel": 1, "widest": 1,
        }  # fmt: skip
        whole_fields(self, {name: (low, 100_000) for name, low in least.items()})
        if self.backbone not in ("gated", "transformer", "mlp"):
            raise SpecError(f"backbone is gated, transformer or mlp, not {self.backbone!r}")
        if self.decoder not in ("tiling", "coordinate"):
            raise SpecError(f"decoder is tiling or coordinate, not {self.decoder!r}")


@generators.register("ghn")
class GHN(nn.Module, Generator):
    """A graph hypernetwork. Nothing is drawn: every seed gives the same weights.

    Example:
        >>> validity = make_validity((3, 8, 8))
        >>> model = GHN(GHNConfig(classes=2, width=8, block=8, kernel=3), validity)
        >>> net = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(720, 2))
        >>> sample = model.generate(net)
        >>> sample.module(torch.zeros(1, 3, 8, 8)).shape, sample.module is net
        (torch.Size([1, 2]), False)
    """

    kind: ClassVar[str] = "ghn"
    draws: ClassVar[bool] = False
    makes_statistics: ClassVar[bool] = True

    def __init__(self, config: GHNConfig, validity: Validity, *, name: str = "ghn") -> None:
        super().__init__()
        self.config, self.validity, self.name = config, validity, name
        c = config
        self.encode = NodeEncoder(c.width, shapes=c.shapes)
        self.backbone: nn.Module
        if c.backbone == "gated":
            self.backbone = GatedGraphNetwork(c.width, passes=c.passes, virtual_edges=c.virtual_edges)
        elif c.backbone == "transformer":
            self.backbone = GraphTransformer(
                c.width, depth=c.depth, heads=c.heads, virtual_edges=c.virtual_edges
            )
        else:
            self.backbone = nn.Sequential(
                nn.Linear(c.width, c.width), nn.ReLU(), nn.Linear(c.width, c.width), nn.ReLU()
            )
        self.norm: nn.Module = nn.LayerNorm(c.width) if c.state_norm else nn.Identity()
        centred = c.backbone == "transformer"
        self.decode: TensorDecoder = (
            TilingDecoder(c.width, classes=c.classes, block=c.block, kernel=c.kernel, centred=centred)
            if c.decoder == "tiling"
            else CoordinateDecoder(c.width, classes=c.classes, rank=c.rank, kernel=c.kernel)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encode.kinds.weight.device

    # ------------------------------------------------------------------------------- prediction

    def embed(self, graphs: Sequence[ModuleGraph]) -> Tensor:
        """(N, D) states of all nodes, graph after graph."""
        batch = GraphBatch(graphs, device=self.device)
        x = self.encode(batch)
        x = self.backbone(x) if self.config.backbone == "mlp" else self.backbone(x, batch)
        states: Tensor = self.norm(x)
        return states

    def embed_graph(self, graph: ModuleGraph) -> Tensor:
        """(D + 1,) the mean of a graph's encoded nodes, and the logarithm of how many weights and biases
        there are, which no mean tells: what its network's properties are predicted from.

        Taken before the backbone, after which the nodes' mean says less (`docs/experiments.md`).
        """
        encoded: Tensor = self.encode(GraphBatch([graph], device=self.device))
        own = (t for node in graph.nodes for t in node.tensors if t.role in ("weight", "bias"))
        size = sum(math.prod(tensor.shape) for tensor in own)
        return torch.cat([encoded.mean(0), encoded.new_tensor([math.log(max(size, 1))])])

    def forward(
        self, graphs: Sequence[ModuleGraph], *, heads: bool = True, trunks: bool = False
    ) -> list[dict[str, Tensor]]:
        """The predicted parameters of each graph by name, differentiable; one pass for all of them.

        ``heads=False`` leaves the last layers at zero, for whatever number of classes. With ``trunks`` last
        layers of another width than a head's, after which a norm comes, are layers as all others.

        Raises:
            UnsupportedRequestError: a head has another number of classes than the generator was trained for.
        """
        reduced = [graph.without_idle_biases() for graph in graphs]
        graphs = [graph for graph, _ in reduced]
        twins = [narrow_twin(graph, self.config.widest) for graph in graphs]
        states = self.embed([twin.graph for twin in twins])
        found = [{t.name: states.new_zeros(t.shape) for t in idle} for _, idle in reduced]
        # Tensors of one shape are decoded together, whatever graph they are of.
        groups: dict[tuple[Any, ...], list[tuple[int, int, GraphTensor]]] = defaultdict(list)
        start = 0
        for number, (graph, twin) in enumerate(zip(graphs, twins, strict=True)):
            last, last_biases = self._ends(graph, trunks)
            for index, node in enumerate(twin.graph.nodes):
                whole = twin.shapes[index]
                for tensor in node.tensors:
                    if tensor.role not in ("weight", "bias"):
                        continue
                    assert node.shape is not None and whole is not None, node
                    key: tuple[Any, ...]
                    if index in last or index in last_biases:
                        if not heads:
                            found[number][tensor.name] = states.new_zeros(tensor.shape)
                            continue
                        self._check_classes(node.name, node.shape[0])
                        key = ("head", node.shape, whole, twin.places[index], node.transposed)
                        if index in last_biases:
                            key = ("head_bias",)
                    elif node.kind in WEIGHT_KINDS:
                        key = ("weight", node.shape, whole, twin.places[index], node.transposed)
                    elif node.kind == "position":
                        key = ("position", node.shape, whole)
                    elif node.kind in NORM_KINDS or node.kind == "scale":
                        key = ("gain" if tensor.role == "weight" else "bias", node.shape[0], whole[0])
                    else:
                        key = ("bias", node.shape[0], whole[0])
                    groups[key].append((number, start + index, tensor))
            start += len(graph)
        for (what, *details), members in groups.items():
            rows = torch.tensor([row for _, row, _ in members], device=states.device)
            made = self._decoded(what, details, states[rows])
            for (number, _, tensor), value in zip(members, made, strict=True):
                found[number][tensor.name] = value.reshape(tensor.shape)
        return found

    def _ends(self, graph: ModuleGraph, trunks: bool) -> tuple[set[int], set[int]]:
        """The heads of a graph, and their biases."""
        heads = set(graph.heads)
        if trunks:
            shapes = {index: graph.nodes[index].shape for index in graph.normed_ends}
            heads -= {
                i for i, shape in shapes.items() if shape is not None and shape[0] != self.config.classes
            }
        biases = {i for i in graph.head_biases if heads.intersection(graph.predecessors[i])}
        return heads, biases

    def _check_classes(self, name: str, rows: int) -> None:
        if rows != self.config.classes:
            raise UnsupportedRequestError(
                f"generator {self.name} predicts heads of {self.config.classes} classes, but layer "
                f"{name.removesuffix('.weight')!r} has {rows}; replace it by one of {self.config.classes}, "
                "keep it with partial=True (a module of your own), or give examples of the classes (an "
                "architecture of this library)"
            )

    def _decoded(self, what: str, details: list[Any], states: Tensor) -> Tensor:
        """(K, ...) tensors of one group, in their ranges (table 2 of the paper)."""
        normalise = self.config.normalise
        if what in ("gain", "bias"):
            length, whole_length = details
            values = self.decode.vectors(states, length)[:, 0 if what == "gain" else 1]
            values = repeated(values, 1, whole_length)
            if not normalise:
                return values
            return 2 * torch.sigmoid(values / 2) if what == "gain" else torch.tanh(0.2 * values)
        if what == "head_bias":
            values = self.decode.head_bias(states)
            return torch.tanh(0.2 * values) if normalise else values
        if what == "position":
            small, full = details
            return repeated(repeated(self.decode.weight(states, small), 1, full[0]), 2, full[1])
        shape: Shape4
        shape, whole, places, transposed = details
        if what == "head":
            channels = shape[1] // places
            values = self.decode.head(states, channels)  # (K, C, I / places)
            if normalise:
                values = values * fan_in_scale((self.config.classes, channels, 1, 1))
            # A map that was flattened is averaged: channel after channel, all places of one alike. So is the
            # window of a convolution.
            values = values.repeat_interleave(places, 2) / places  # (K, C, I)
            window = shape[2] * shape[3]
            values = (values / window)[..., None, None].expand(-1, -1, -1, *shape[2:])  # (K, C, I, kh, kw)
        else:
            values = self.decode.weight(states, shape, fan_in_scale(shape) if normalise else 1.0)
        values = widened(values, whole, places)
        return values.transpose(1, 2) if transposed else values

    # ------------------------------------------------------------------------------- specs

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P), all alike; running statistics are those of a fresh batch norm.

        With examples the head is the predicted one or the closed form of the examples, whichever is right
        more often on examples that it was not made from; of other classes than the trained ones, the latter.
        """
        spec, support = request.architecture, request.support
        graph = graph_of(spec)
        predicts = support is None or spec.classes == self.config.classes
        (state,) = self([graph], heads=predicts)
        layout = layout_of(spec)
        for slot in layout.slots:
            if slot.is_buffer:
                fresh = torch.ones if slot.is_variance else torch.zeros
                state[slot.name] = fresh(slot.shape, device=self.device)
        flat = layout.flatten(state).cpu()
        report: dict[str, Any] = {"nodes": len(graph), "head": "predicted"}
        if support is not None:
            measured = recalibrate(spec, flat[None], support.flat()[0])[0]
            report |= self._head_scores(spec, measured, support, predicts=predicts)
            closed = report["closed_form_accuracy"] > report.get("predicted_accuracy", -1.0)
            if closed:
                measured = closed_form_network(spec, measured, support.images, measured=True)
                report["head"] = "closed form of the examples"
            if closed or request.batch_norm == "support":
                flat = measured
                report |= measured_on_support(request)
        return flat.repeat(request.num_samples, 1), merge_reports(request.num_samples, report)

    def _head_scores(
        self, spec: ArchitectureSpec, measured: Tensor, support: SupportSet, *, predicts: bool
    ) -> dict[str, float]:
        """How often each kind of head of a network (P,) is right on the examples that its statistics are of;
        each is left out where heads are fitted.

        A ridge regression stands for the discriminant that is taken: only it leaves one out at no cost.
        """
        images, labels = support.flat()
        features = trunk_features(spec, measured[None], images)[0]
        judged = left_out(features, labels, support.num_classes).argmax(1)
        found = {"closed_form_accuracy": float((judged == labels).float().mean())}
        if predicts:
            found["predicted_accuracy"] = float(accuracy(spec, measured[None], images, labels)[0])
        return found

    # ------------------------------------------------------------------------------- modules

    @with_plain_defaults
    def generate(self, architecture: Any, *, images: Tensor | None = None, **options: Any) -> Any:
        """A network's weights in one pass: of a spec (a :class:`~weightloom.Sample`) or of any module.

        ``images`` (B, channels, height, width), without labels, are what batch-norm statistics are measured
        on; without them and without examples they stay mean 0 and variance 1, which deep networks do not
        bear. For a module takes the arguments of :meth:`generate_module` beside, for a spec or its text those
        of :meth:`Generator.generate_many`, and raises the same errors.
        """
        if isinstance(architecture, nn.Module):
            wrong = sorted(set(options) & {"support", "instruction", "seed", "num_samples", "sampling"})
            if wrong:
                raise InputError(
                    f"a module of your own is predicted without {', '.join(wrong)}; hand over images for its "
                    "batch norms, or name an architecture of this library"
                )
            return self.generate_module(architecture, images=images, **options)
        sample = super().generate(architecture, **options)
        if images is None:
            return sample
        if tuple(check_images(images).shape[1:]) != sample.architecture.input:
            raise InputError(f"{sample.architecture} does not read images of {tuple(images.shape[1:])}")
        if not any(slot.is_buffer for slot in layout_of(sample.architecture).slots):
            return sample
        flat = recalibrate(sample.architecture, sample.flat[None], images[:MOST_RECALIBRATION])[0]
        return replace(sample, flat=flat, report={**sample.report, "batch_norm": MEASURED})

    @torch.no_grad()
    @with_plain_defaults
    def generate_module(
        self,
        module: nn.Module,
        *,
        input: Sequence[int] | None = None,
        graph: ModuleGraph | None = None,
        images: Tensor | None = None,
        batch_norm: StatisticsChoice = "images",
        partial: bool = False,
    ) -> ModuleSample:
        """A copy of ``module`` with predicted weights; ``module`` itself stays as it is.

        Args:
            module: a classifier that takes one batch of pictures.
            input: (channels, height, width) to trace it with; the generator's own if left out.
            graph: its graph, where it has been captured already.
            images: (B, channels, height, width) without labels, for running statistics.
            batch_norm: what becomes of the running statistics that the graph holds. ``images`` measures them
                on ``images`` (without any it is ``generated``), ``generated`` sets mean 0 and variance 1,
                ``batch`` makes torch's own norms use the batch that they see, in eval mode as well; they lose
                their running statistics. Others stay as they are; the report names all of them.
            partial: keep the parameters that cannot be predicted, heads for other numbers of classes among
                them, and list them in the report. A trunk without a head is predicted whole where a norm
                ends it.

        Raises:
            UnsupportedLayerError: layers whose weights cannot be predicted, unless ``partial``.
            UnsupportedRequestError: a head for another number of classes, unless ``partial``.
            InputError: the module cannot be copied or traced, or the images do not fit.
        """
        if batch_norm not in ("images", "generated", "batch"):
            raise InputError(f"batch_norm is 'images', 'generated' or 'batch', not {batch_norm!r}")
        if graph is not None and not isinstance(graph, ModuleGraph):
            raise InputError(f"graph is what capture_graph gives, not {type(graph).__name__}")
        started = time.perf_counter()
        dims = None
        if graph is None:
            shape = self.validity.input if input is None else input
            graph = capture_graph(module, shape, partial=partial)
            dims = len(shape)
        if images is not None:
            images = check_images(images, dims)
        if partial:
            graph = keep_other_heads(graph, self.config.classes)
        tensors = (*module.named_parameters(), *module.named_buffers())
        shapes = {plain_name(name): tuple(tensor.shape) for name, tensor in tensors}
        for node in graph.nodes:
            for tensor in node.tensors:
                if tensor.role != "counter" and shapes.get(tensor.name) != tensor.shape:
                    raise InputError(f"the graph is of another module: {tensor.name!r} does not fit")
        (predicted,) = self([graph], trunks=partial)
        if not predicted:
            why = "; what it has is kept" if graph.kept else " that its output depends on"
            raise InputError(f"{type(module).__name__} has no weights to predict{why}")
        require_finite(predicted, f"generator {self.name}")

        made = filled(module, graph, predicted, self.device)
        empty = {plain_name(name) for name, buffer in module.named_buffers() if buffer.is_meta}
        statistics = set_statistics(made, graph, batch_norm, images, fresh=empty)
        report = {
            "generator": self.name,
            "kind": self.kind,
            "valid_for": {"tasks": list(self.validity.tasks), "classes": self.config.classes},
            "nodes": len(graph),
            "predicted": sum(value.numel() for value in predicted.values()),
            "batch_norm": outcome(statistics),
            "statistics": statistics,
            "kept": dict(graph.kept),
            "unused": list(graph.unused),
            "hooks_not_run": hooked_layers(module),
            "seconds": time.perf_counter() - started,
        }
        sides = tuple(self.validity.input if input is None else input)
        card = NetworkCard.from_report(report, input=sides if len(sides) == 3 else None)
        return ModuleSample(made, graph, report, card)

    # ------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a directory that :meth:`from_pretrained` reads: config and weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_tensors(folder / "model.safetensors", own, {"kind": self.kind})
        held = {"config": asdict(self.config), "validity": asdict(self.validity)}
        write_json(folder / "config.json", {"kind": self.kind, "name": self.name, **held})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GHN:
        """Read a directory that :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, broken, or not what the config says.
        """
        folder = Path(folder)
        held = read_json(folder / "config.json")
        try:
            with torch.device("meta"):
                model = cls(
                    GHNConfig(**held["config"]), Validity.from_json(held["validity"]), name=str(held["name"])
                )
        except (KeyError, TypeError, WeightloomError) as error:
            raise CheckpointError(
                folder / "config.json", f"not the config of a graph hypernetwork ({error})"
            ) from None
        expected = shapes_of(model.state_dict())
        tensors, _ = load_tensors(folder / "model.safetensors", expected=expected)
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(True).eval()


def make_validity(input: tuple[int, int, int], tasks: tuple[str, ...] = ()) -> Validity:
    """Any architecture, for one shape of pictures; heads for other classes than the trained ones need
    examples.
    """
    return Validity(
        architectures=(ANY_ARCHITECTURE,), input=input, min_classes=2, max_classes=MAX_CLASSES, tasks=tasks
    )


def fan_in_scale(shape: Shape4) -> float:
    """What a weight of unit variance is multiplied by: sqrt(beta / fan-in), He et al. (arXiv 1502.01852).

    beta is 1 for depthwise convolutions and for kernels wider than high, 2 otherwise.

    Example:
        >>> fan_in_scale((8, 2, 2, 2)), fan_in_scale((8, 1, 2, 2))
        (0.5, 0.5)
    """
    _, into, high, wide = shape
    beta = 1 if high * wide > 1 and (into == 1 or high < wide) else 2
    scale: float = (beta / (into * high * wide)) ** 0.5
    return scale
