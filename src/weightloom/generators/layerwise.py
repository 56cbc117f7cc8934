"""Layer-wise generation: the weights of any depth and width of a family, all layers' codes in one pass.

A transformer reads the condition (one token for the words, one a class) and then one token for each layer,
which says what the layer does, where it stands and how wide it is. Each layer token answers with its codes,
all of them at once; a dictionary of layers (:mod:`weightloom.tokenizers.layers`) makes the trunk from them,
and the head is the closed form of the examples on the trunk that was made. Everything is learned through the
networks that come out, on episodes of tasks: no checkpoint is needed. Time and number of tokens depend on the
depth alone, not on the width. Knows nothing of training.

Shapes: B requests, T layers, R codes a layer, V levels of a code, C classes, S examples a class, W width,
F image features, M samples, P values of a network.
Sources: layer-wise tokens, IGPG (arXiv 2504.02012), section 2.1; levels, finite scalar quantisation (arXiv
2309.15505); a closed-form head inside a meta-learner, Bertinetto et al. (arXiv 1805.08136), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import TEXT_WIDTH, SupportEncoder, encode_text
from weightloom.errors import CheckpointError, SpecError, UnsupportedRequestError, WeightloomError
from weightloom.fitting import closed_form_network, discriminant, initial_flats, trunk_features
from weightloom.generators.base import (
    ANY_ARCHITECTURE,
    Generator,
    Request,
    Sampling,
    Validity,
    generators,
    measured_on_support,
    merge_reports,
    sample_generators,
)
from weightloom.generators.drawing import draw_codes
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.nn.transformer import CausalTransformer
from weightloom.seeding import seed_for
from weightloom.tokenizers.base import load_strictly, narrowed
from weightloom.tokenizers.layers import LayerDictionary
from weightloom.weights import layout_of
from weightloom.whole import whole_fields

MAX_LAYERS = 512
"""Layers of a network that are made at most: what a prefix and a pass over all of them can bear."""


@dataclass(frozen=True, kw_only=True)
class LayerwiseConfig:
    """Sizes. ``largest`` names every family's widest and deepest network that is learned from."""

    largest: tuple[str, ...]
    codes: int = 16
    experts: int = 0
    """Whole sets of differences that the examples mix, in training one for each dataset of the recipe."""
    levels: int = 33
    anchors: int = 3
    width: int = 96
    depth: int = 2
    heads: int = 4
    spread: float = 0.08
    """Standard deviation of a code around its mean, at temperature 1, in units of its reach."""
    image_features: int = 128
    image_width: int = 48
    channels: int = 3
    any_size: bool = True
    """Whether other depths and widths than those of ``largest`` are made."""
    reads: tuple[str, ...] = ("instruction", "dataset")
    """What codes are told beside the architecture. Experts and heads are told the examples in any case."""

    def __post_init__(self) -> None:
        limits = {"codes": 1024, "levels": 1025, "anchors": 64, "width": 8192, "depth": 128, "heads": 128,
                  "image_features": 4096, "image_width": 4096}  # fmt: skip
        whole_fields(self, {**{name: (1, most) for name, most in limits.items()}, "experts": (0, 1024)})
        if self.levels < 3 or self.levels % 2 == 0:
            raise SpecError(f"levels must be an odd number of at least 3, not {self.levels}")
        if not 0 < self.spread <= 1:
            raise SpecError(f"spread must be above 0 and at most 1, not {self.spread}")
        object.__setattr__(self, "largest", tuple(self.largest))
        object.__setattr__(self, "reads", tuple(self.reads))
        if not set(self.reads) <= {"instruction", "dataset"}:
            raise SpecError(
                f"codes read the instruction and the dataset, not {', '.join(map(str, self.reads))}"
            )


@generators.register("layerwise")
class Layerwise(nn.Module, Generator):
    """Any depth and width of a few families, from examples and words."""

    kind: ClassVar[str] = "layerwise"
    reads_words: ClassVar[bool] = True
    makes_statistics: ClassVar[bool] = True
    heeds: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p", "guidance"})

    def __init__(self, config: LayerwiseConfig, validity: Validity, *, name: str = "layerwise") -> None:
        """``validity``'s architectures are ``any architecture``: the dictionary says what can be made.

        Raises:
            SpecError: a size or a largest network that makes no sense.
        """
        super().__init__()
        if config.channels != validity.input[0]:
            raise SpecError(
                f"the config reads {config.channels} channels, the images have {validity.input[0]}"
            )
        self.config, self.validity, self.name = config, validity, name
        largest = [
            parse_architecture(text).resolve(classes=2, input=validity.input) for text in config.largest
        ]
        w = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("layerwise"))
            self.dictionary = LayerDictionary(largest, config.codes, config.anchors, config.experts)
            self.images = SupportEncoder(
                channels=config.channels, features=config.image_features, width=config.image_width
            )
            self.images.requires_grad_(False)
            self.backbone = CausalTransformer(width=w, depth=config.depth, heads=config.heads)
            seen = 2 * config.image_features
            self.instruction = nn.Linear(TEXT_WIDTH, w) if "instruction" in config.reads else None
            self.dataset = (
                nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, w)) if "dataset" in config.reads else None
            )
            self.role = nn.Embedding(len(self.dictionary.roles), w)
            self.place = nn.Linear(5, w)
            self.no_instruction = nn.Parameter(torch.zeros(w))
            self.no_dataset = nn.Parameter(torch.zeros(w))
            self.no_architecture = nn.Parameter(torch.zeros(w))
            self.out = nn.Linear(w, config.codes)
            self.expert = (
                nn.Sequential(
                    nn.LayerNorm(4 * config.image_features), nn.Linear(4 * config.image_features, 64),
                    nn.SiLU(), nn.Linear(64, config.experts),
                )
                if config.experts
                else None
            )  # fmt: skip
        nn.init.zeros_(self.out.weight)  # at the start all tasks have the same trunk
        nn.init.zeros_(self.out.bias)
        self.shrinkage = nn.ParameterDict({f: nn.Parameter(torch.tensor(-0.8)) for f in self.families})
        self.sharpness = nn.ParameterDict({f: nn.Parameter(torch.tensor(0.0)) for f in self.families})

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the architecture families that are made."""
        return tuple(sorted(self.dictionary.largest))

    # ---------------------------------------------------------------- from a condition to codes

    def means(
        self,
        spec: ArchitectureSpec,
        instruction: Tensor | None,
        classes: Tensor | None,
        *,
        has_architecture: bool = True,
    ) -> Tensor:
        """(B, T, R + E) means of the codes, in [-1, 1], and the experts' shares, the same for all layers.

        Args:
            spec: the resolved architecture of all B requests.
            instruction: (B, 384) encoded words, or None.
            classes: (B, C, 2F) described examples, or None.
            has_architecture: whether the layers say where they stand and how wide they are.
        """
        x, tokens = self.sequence(spec, instruction, classes, has_architecture=has_architecture)
        codes = torch.tanh(self.out(self.backbone(x)[:, -tokens:]))
        if self.expert is None:
            return codes
        shares = self.expert_logits(classes, len(codes)).softmax(-1)
        return torch.cat([codes, shares[:, None].expand(-1, tokens, -1)], dim=-1)

    def expert_logits(self, classes: Tensor | None, batch: int) -> Tensor:
        """(B, E) what speaks for each expert, from examples (B, C, 2F) whatever the classes' order; zero
        without examples.
        """
        assert self.expert is not None
        if classes is None:
            return torch.zeros(batch, self.config.experts)
        seen = torch.cat([classes.mean(-2), classes.std(-2, correction=0)], dim=-1)  # (B, 4F)
        return self.expert(seen)

    def sequence(
        self,
        spec: ArchitectureSpec,
        instruction: Tensor | None,
        classes: Tensor | None,
        *,
        has_architecture: bool = True,
    ) -> tuple[Tensor, int]:
        """What the transformer reads, (B, 1 + C + T, W): words, classes (one place where there are none),
        layers; and T. Arguments as :meth:`means`'s.
        """
        batch = len(instruction) if instruction is not None else 1 if classes is None else len(classes)
        roles, numbers = self.dictionary.describe(spec)
        layers = self.role(roles) + (self.place(numbers) if has_architecture else self.no_architecture)
        words = (
            self.no_instruction.expand(batch, 1, -1)
            if instruction is None or self.instruction is None
            else self.instruction(instruction)[:, None]
        )
        seen = (
            self.no_dataset.expand(batch, 1, -1)
            if classes is None or self.dataset is None
            else self.dataset(classes)
        )
        return torch.cat([words, seen, layers.expand(batch, -1, -1)], dim=1), len(layers)

    def logits(self, means: Tensor) -> Tensor:
        """(..., V) from means (...): a discrete normal distribution over the levels of each code."""
        levels = torch.linspace(-1, 1, self.config.levels, device=means.device)
        return -0.5 * ((levels - means[..., None]) / self.config.spread).square()

    def latents(self, codes: Tensor) -> Tensor:
        """Codes (..., R) in 0 ... V-1 to what the dictionary reads, in [-1, 1]."""
        half = self.config.levels // 2
        return (codes - half) / half

    # ---------------------------------------------------------------- from codes to networks

    def episode_loss(
        self, spec: ArchitectureSpec, trunks: Tensor, supports: Sequence[Tensor], queries: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of closed-form heads on trunks (B, P), one task each.

        ``supports`` are (C, S, ...), ``queries`` (C, Q, ...) images of the same classes. Differentiable
        through the heads. Batch norms have the statistics of all images together.
        """
        losses, hits = [], []
        for trunk, support, query in zip(trunks, supports, queries, strict=True):
            (classes, shots), count = support.shape[:2], query.shape[1]
            images = torch.cat([support.flatten(0, 1), query.flatten(0, 1)])  # (C*S + C*Q, ...)
            features = trunk_features(spec, trunk[None], images[None], training=True)[0]
            known, asked = features.split([classes * shots, classes * count])
            weight, bias = discriminant(known.unflatten(0, (classes, shots)), self.shrink(spec))
            answers = self.sharpness[spec.family].exp() * F.linear(asked, weight, bias)
            labels = torch.arange(classes).repeat_interleave(count)
            losses.append(F.cross_entropy(answers, labels))
            hits.append((answers.argmax(1) == labels).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    def shrink(self, spec: ArchitectureSpec) -> Tensor:
        """Learned share of the pooled covariance that gives way to a multiple of the identity."""
        return torch.sigmoid(self.shrinkage[spec.family])

    @torch.no_grad()
    def with_head(
        self, spec: ArchitectureSpec, trunk: Tensor, support: Tensor, moves: Tensor | None = None
    ) -> Tensor:
        """(P,) the closed-form network of examples (C, S, ...) on a trunk (P,); ``moves`` (C, H) as
        :func:`weightloom.fitting.discriminant`'s.
        """
        flat = closed_form_network(spec, trunk, support, shrinkage=self.shrink(spec), moves=moves)
        layout = layout_of(spec)
        head = layout.layers[-1]
        assert head.kind == "head"
        flat[-head.rows * head.cols :] *= self.sharpness[spec.family].exp()
        return flat

    @torch.no_grad()
    def describe(self, request: Request) -> Tensor:
        """(1, T, R): the means for one request, guidance included."""
        words, seen = None, None
        if request.instruction is not None and self.instruction is not None:
            words = encode_text([request.instruction])
        if request.support is not None and not (self.dataset is None and self.expert is None):
            seen = self.images.describe(request.support.images)[None]
        told = self.means(request.architecture, words, seen)
        guidance = request.sampling.guidance
        if guidance == 1 or (words is None and seen is None):
            return told
        untold = self.means(request.architecture, None, None)
        return (untold + guidance * (told - untold)).clamp(-1, 1)

    @torch.no_grad()
    def sample_codes(self, means: Tensor, noise: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
        """(M, T, R) codes around means (1 or M, T, R), each sample from a stream of its own."""
        logits = self.logits(means).expand(len(noise), -1, -1, -1)  # (M, T, R, V)
        return draw_codes(logits.flatten(1, 2), noise, sampling).unflatten(1, logits.shape[1:3])

    @torch.no_grad()
    def make(self, request: Request, codes: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
        """(M, P) networks of codes (M, T, R), with heads from the request's examples.

        Heads are drawn from what the examples leave open about the class means, narrowed by the temperature.
        Without examples the heads are those of a random initialisation: nothing tells the classes apart.
        """
        spec, seed = request.architecture, request.seed
        trunks = self.dictionary.decode(spec, self.latents(codes), seed=seed)
        head = layout_of(spec).layers[-1]
        if request.support is not None:
            moves = torch.stack([torch.randn(head.rows, head.cols - 1, generator=g) for g in noise])
            moves = (request.sampling.temperature * moves).to(trunks.device)
            images = request.support.images
            return torch.stack(
                [self.with_head(spec, t, images, m) for t, m in zip(trunks, moves, strict=True)]
            )
        size = head.rows * head.cols
        start = initial_flats(spec, [seed_for("layerwise", seed)])[0]
        return torch.cat([trunks[:, :-size], start[-size:].expand(len(trunks), -1)], dim=1)

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) and reports."""
        noise = sample_generators(request)
        codes = self.sample_codes(self.describe(request), noise, request.sampling)
        common = {
            "sampling": asdict(request.sampling),
            "head": "random" if request.support is None else "closed form",
            "tokens": codes.shape[1],
            "codes_per_token": codes.shape[2],
            **measured_on_support(request),
        }
        return self.make(request, codes, noise), merge_reports(len(codes), common)

    def refusal(self, spec: ArchitectureSpec) -> str | None:
        """Why networks like ``spec``, resolved, cannot be asked for; None where they can."""
        refusal = self.validity.refusal(spec) or self.dictionary.refusal(spec)
        if refusal is None and self.dictionary.num_tokens(spec) > MAX_LAYERS:
            return f"at most {MAX_LAYERS} layers are made, not {spec}"
        return refusal

    def check(self, *arguments: Any, **options: Any) -> Request:
        """As every generator's, and what the dictionary cannot make is refused."""
        request = super().check(*arguments, **options)
        refusal = self.refusal(request.architecture)
        if refusal is not None:
            raise UnsupportedRequestError(refusal)
        return request

    # ---------------------------------------------------------------- files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, in half precision."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / "model.safetensors", narrowed(self.state_dict()), {"kind": self.kind})
        write_json(
            folder / "config.json",
            {
                "kind": self.kind,
                "name": self.name,
                "config": asdict(self.config),
                "validity": asdict(self.validity),
            },
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Layerwise:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, broken, or not what the config says.
        """
        folder = Path(folder)
        held = read_json(folder / "config.json")
        try:
            model = cls(
                LayerwiseConfig(**held["config"]),
                Validity.from_json(held["validity"]),
                name=str(held["name"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, WeightloomError) as error:
            raise CheckpointError(
                folder / "config.json", f"not the config of a layer-wise generator ({error})"
            ) from None
        tensors, _ = load_tensors(folder / "model.safetensors")
        load_strictly(model, tensors, folder / "model.safetensors")
        return model.eval()


def validity_of(
    config: LayerwiseConfig, shape: tuple[int, int, int], classes: tuple[int, int], tasks: Sequence[str]
) -> Validity:
    """What a layer-wise generator is valid for: any architecture, as far as its dictionary goes, or
    its largest ones alone.
    """
    keys = (
        str(replace(parse_architecture(text).resolve(input=shape), classes=None)) for text in config.largest
    )
    return Validity(
        architectures=(ANY_ARCHITECTURE,) if config.any_size else tuple(sorted(keys)),
        input=shape,
        min_classes=classes[0],
        max_classes=classes[1],
        tasks=tuple(tasks),
    )
