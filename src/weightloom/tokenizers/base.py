"""The contract of a weight tokenizer: what every family does in the same way, and what it must say.

A tokenizer knows the weight statistics of the architectures it was trained on. A token becomes a
stack of D codes, each one of V; the stack's latent vector decodes to the token's weights. Knows
nothing of generators.

Shapes: N networks, P values, T tokens, K values a token, D codes a token, V codes to choose from,
Z latent width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, architecture_from_json, parse_architecture
from weightloom.conditioning import SlotEncoder
from weightloom.defaults import with_plain_defaults
from weightloom.errors import (
    CheckpointError,
    InputError,
    SpecError,
    UnsupportedRequestError,
    WeightloomError,
)
from weightloom.finite import layout_fault
from weightloom.io import allocation_limit, load_tensors, read_json, save_tensors, write_json
from weightloom.registry import Registry
from weightloom.weights import (
    BoundStatistics,
    Chunking,
    Layout,
    WeightStatistics,
    checked_flats,
    chunk_layout,
    layout_of,
)
from weightloom.whole import whole_number

tokenizers: Registry[type[WeightTokenizer]] = Registry("weight tokenizer")


def architecture_key(spec: ArchitectureSpec) -> str:
    """The architecture whatever its class count: what statistics and vectors of its own are filed under."""
    return str(replace(spec, classes=None))


@dataclass(frozen=True)
class CodebookHealth:
    """Use of the codes over many networks, by code position: all (D,) but the totals."""

    used: Tensor
    """Share of the V codes that occur."""
    perplexity: Tensor
    """exp of the entropy of the codes; V when all are used alike."""
    dead: int
    """Codes that never occur, of D * V."""
    total: int

    def summary(self) -> dict[str, float]:
        """Plain numbers for logs and reports."""
        return {
            "used": float(self.used.mean()),
            "perplexity": float(self.perplexity.mean()),
            "dead_codes": self.dead,
            "codes": self.total,
        }


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes that every family shares."""

    chunk: int = 288
    codes: int = 32
    vocabulary: int = 9
    width: int = 256
    depth: int = 2
    attention: bool = True

    def __post_init__(self) -> None:
        limits = {"chunk": 16384, "codes": 4096, "vocabulary": 65536, "width": 8192, "depth": 64}
        for name, limit in limits.items():
            size = whole_number(getattr(self, name), f"a tokenizer's {name}", 1, limit, error=SpecError)
            object.__setattr__(self, name, size)
        if self.vocabulary < 2 or self.width % 4:
            raise SpecError("a tokenizer needs a vocabulary of at least 2 and a width divisible by 4")


@dataclass(frozen=True)
class DescribedSlots:
    """The tokens of one architecture as a family sees them.

    vectors (T, width): their descriptions; layers (T,): the layer that each comes from; values (T,): how many
    weights each holds; key: the architecture's, or None when nothing is kept for it.
    """

    vectors: Tensor
    layers: Tensor
    values: Tensor
    key: str | None


@dataclass(frozen=True)
class TokenizerOutput:
    """One training pass: tokens as seen and as rebuilt (N, T, K), mask (T, K), codes (N, T, D), penalty."""

    tokens: Tensor
    rebuilt: Tensor
    mask: Tensor
    codes: Tensor
    penalty: Tensor

    def weight_error(self) -> Tensor:
        """Masked mean squared error of the normalised weights (IGPG, equation 2, first term)."""
        return ((self.tokens - self.rebuilt).square() * self.mask).sum() / (
            self.mask.sum() * len(self.tokens)
        )


class WeightTokenizer(nn.Module, ABC):
    """Networks (N, P) to codes (N, T, D) and back. Families implement the three abstract methods."""

    kind: ClassVar[str]
    ordered: ClassVar[bool]
    """Whether code v lies between v - 1 and v + 1 in meaning too."""
    latent_width: int

    def __init__(self, config: TokenizerConfig, statistics: Mapping[str, WeightStatistics]) -> None:
        super().__init__()
        self.config = config
        self.statistics = dict(statistics)
        known = {}
        for key in self.statistics:
            slots = self._cut(resolved_example(key)).slots
            known[key] = int((slots.class_index < 0).sum())
        self.slots = SlotEncoder(width=config.width, known=known)
        self._bound: dict[ArchitectureSpec, tuple[Layout, Chunking, BoundStatistics]] = {}

    @abstractmethod
    def encode_tokens(self, tokens: Tensor, slots: DescribedSlots) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, K) tokens to latents (N, T, Z), codes (N, T, D), penalty ()."""

    @abstractmethod
    def embed(self, probabilities: Tensor) -> Tensor:
        """(..., D, V) probabilities (one-hot for hard codes) to latents (..., Z); differentiable.

        Every code is embedded by itself, all by the same rule, whatever their number D.
        """

    @abstractmethod
    def decode_tokens(self, latents: Tensor, slots: DescribedSlots) -> Tensor:
        """(N, T, Z) latents to (N, T, K) normalised tokens."""

    @abstractmethod
    def closeness(self, codes: Tensor) -> Tensor:
        """(..., D, V): how near every code is to the given one, (..., D), 0 for the same and falling with the
        squared distance; neighbours are about -1 apart. Where codes are ``ordered``, those given may lie
        between two, and the closeness is differentiable in them.
        """

    @property
    def num_codes(self) -> int:
        """D."""
        return self.config.codes

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.config.vocabulary

    def bits_per_weight(self, spec: ArchitectureSpec) -> float:
        """Bits of all codes of one network over its number of weights.

        A code is counted at log2 of the values it may take, without entropy coding.
        """
        return float(self.allowed(spec).sum(-1).double().log2().sum()) / layout_of(spec).size

    def allowed(self, spec: ArchitectureSpec) -> Tensor:
        """(T, D, V) bool: the values that each code may take; nothing else is ever encoded or sampled."""
        _, chunking, _ = self.bind(spec)
        return torch.ones(chunking.num_tokens, self.num_codes, self.vocabulary, dtype=torch.bool)

    def _cut(self, spec: ArchitectureSpec) -> Chunking:
        return chunk_layout(layout_of(spec), self.config.chunk)

    @with_plain_defaults
    def bind(self, spec: ArchitectureSpec) -> tuple[Layout, Chunking, BoundStatistics]:
        """Layout, chunking and statistics of a resolved architecture.

        Raises:
            UnsupportedRequestError: the tokenizer has no statistics of this architecture.
        """
        if spec not in self._bound:
            statistics = self.statistics.get(architecture_key(spec))
            if statistics is None:
                raise UnsupportedRequestError(
                    f"this tokenizer knows no weights of {architecture_key(spec)}; it knows: "
                    + "; ".join(sorted(self.statistics))
                )
            layout = layout_of(spec)
            self._bound[spec] = (layout, self._cut(spec), statistics.bind(layout))
        return self._bound[spec]

    def describe(self, spec: ArchitectureSpec) -> DescribedSlots:
        """The tokens of ``spec``."""
        _, chunking, _ = self.bind(spec)
        key = architecture_key(spec)
        return DescribedSlots(
            self.slots(chunking.slots, key),
            chunking.slots.layer,
            chunking.mask.sum(-1),
            key,
        )

    def forward(
        self,
        spec: ArchitectureSpec,
        flats: Tensor,
        *,
        input_noise: float = 0.0,
        latent_noise: float = 0.0,
        stream: torch.Generator | None = None,
    ) -> TokenizerOutput:
        """One training pass over (N, P) raw networks.

        With noise (p-diff, arXiv 2402.13144, section 2.3), in units of the zoo's spread on what is encoded
        and of the latents' own scale on what is decoded, the clean tokens are to be rebuilt all the same.
        """
        _, chunking, bound = self.bind(spec)
        tokens = chunking.to_tokens(bound.normalise(flats))  # (N, T, K)
        described = self.describe(spec)
        seen = tokens
        if input_noise:
            noise = torch.randn(tokens.shape, generator=stream).to(tokens)
            seen = tokens + input_noise * noise * chunking.mask
        latents, codes, penalty = self.encode_tokens(seen, described)
        if latent_noise:
            latents = latents + latent_noise * torch.randn(latents.shape, generator=stream).to(latents)
        return TokenizerOutput(tokens, self.decode_tokens(latents, described), chunking.mask, codes, penalty)

    def to_flats(self, spec: ArchitectureSpec, tokens: Tensor) -> Tensor:
        """Normalised (N, T, K) tokens to raw (N, P) networks."""
        _, chunking, bound = self.bind(spec)
        return bound.denormalise(chunking.from_tokens(tokens))

    @torch.no_grad()
    @with_plain_defaults
    def encode(self, spec: ArchitectureSpec, flats: Tensor) -> Tensor:
        """(N, P) raw networks to (N, T, D) codes. Raises :class:`InputError` for anything else."""
        _, chunking, bound = self.bind(spec)
        flats = checked_flats(spec, flats)
        tokens = chunking.to_tokens(bound.normalise(flats))
        return self.encode_tokens(tokens, self.describe(spec))[1]

    @with_plain_defaults
    def decode(self, spec: ArchitectureSpec, codes: Tensor) -> Tensor:
        """(N, T, D) codes to (N, P) raw networks. Raises :class:`InputError` for anything else."""
        shape = (self.bind(spec)[1].num_tokens, self.num_codes)
        if (fault := layout_fault(codes)) is not None or codes.dtype != torch.int64:
            raise InputError(f"codes are a plain tensor of int64, but this {fault or f'has {codes.dtype}'}")
        if codes.dim() != 3 or tuple(codes.shape[1:]) != shape:
            raise InputError(f"codes of {spec} are (N, {shape[0]}, {shape[1]}), not {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocabulary:
            raise InputError(f"codes are from 0 to {self.vocabulary - 1}")
        return self.decode_latents(spec, self.embed_codes(codes))

    @with_plain_defaults
    def decode_latents(self, spec: ArchitectureSpec, latents: Tensor) -> Tensor:
        """(N, T, Z) latents to (N, P) raw networks; differentiable."""
        return self.to_flats(spec, self.decode_tokens(latents, self.describe(spec)))

    @with_plain_defaults
    def embed_codes(self, codes: Tensor) -> Tensor:
        """(..., D) codes to (..., Z) latents: :meth:`embed` of one-hot vectors, bit for bit."""
        like = self.slots.kinds.weight
        if codes.numel() <= self.vocabulary:
            return self.embed(nn.functional.one_hot(codes, self.vocabulary).to(like.dtype))
        # Many are looked up in the table of all V values: one-hot vectors would be most of a decoding.
        every = torch.eye(self.vocabulary, dtype=like.dtype, device=like.device)
        table = self.embed(every[:, None])  # (V, 1, V) -> (V, e)
        return nn.functional.embedding(codes, table).flatten(-2)  # (..., D, e) -> (..., Z)

    @torch.no_grad()
    def nearest_codes(self, latents: Tensor, allowed: Tensor) -> Tensor:
        """(..., T, D) allowed codes whose latents are nearest to (..., T, Z); allowed (T, D, V)."""
        table = self.embed_codes(torch.arange(self.vocabulary, device=latents.device)[:, None])  # (V, e)
        parts = latents.unflatten(-1, (self.num_codes, 1, -1))  # (..., T, D, 1, e)
        distance = (parts - table).square().sum(-1)  # (..., T, D, V)
        return distance.masked_fill(~allowed, torch.inf).argmin(-1)

    def forget_bound(self) -> None:
        """Lay statistics out anew: they have changed."""
        self._bound.clear()

    def centre(self, spec: ArchitectureSpec) -> Tensor:
        """(P,) the network that a zoo's networks of this architecture spread around."""
        return self.bind(spec)[2].mean_network()

    def head_rms(self, spec: ArchitectureSpec) -> float:
        """Root mean square of the head's weights around their mean row, over the zoo."""
        return self.statistics[architecture_key(spec)].head_rms(self.bind(spec)[0])

    def health(self, codes: Tensor) -> CodebookHealth:
        """Use of the codes in ``codes`` (..., D)."""
        flat = codes.reshape(-1, self.num_codes)  # (tokens, D)
        counts = torch.stack([torch.bincount(column, minlength=self.vocabulary) for column in flat.T]).float()
        share = counts / counts.sum(-1, keepdim=True)
        entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
        return CodebookHealth(
            used=(counts > 0).float().mean(-1),
            perplexity=entropy.exp(),
            dead=int((counts == 0).sum()),
            total=counts.numel(),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v for k, v in self.state_dict().items()}
        for number, statistics in enumerate(self.statistics.values()):
            tensors |= {f"statistics.{number}.{k}": v for k, v in statistics.to_tensors().items()}
        save_tensors(folder / "model.safetensors", narrowed(tensors), {"kind": self.kind})
        architectures = [resolved_example(key).to_json() | {"classes": None} for key in self.statistics]
        write_json(
            folder / "config.json",
            {"kind": self.kind, "config": asdict(self.config), "architectures": architectures},
        )


@with_plain_defaults
def load_tokenizer(folder: str | Path) -> WeightTokenizer:
    """Read what :meth:`WeightTokenizer.save` wrote.

    Raises:
        CheckpointError: a file is missing or broken, or holds what its config does not say.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    try:
        family = tokenizers.get(config["kind"])
        specs = [architecture_from_json(item) for item in config["architectures"]]
        settings = family.config_type(**config["config"])  # type: ignore[attr-defined]
    except (KeyError, TypeError, AttributeError, WeightloomError) as error:
        raise CheckpointError(folder / "config.json", f"not a tokenizer's config ({error})") from None
    tensors, _ = load_tensors(folder / "model.safetensors")
    statistics = {}
    for number, spec in enumerate(specs):
        prefix = f"statistics.{number}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        statistics[architecture_key(spec)] = WeightStatistics.from_tensors(own)
    try:
        with allocation_limit(folder / "config.json", [folder / "model.safetensors"]):
            tokenizer = family(settings, statistics)
            for key in statistics:
                tokenizer.bind(resolved_example(key))
    except CheckpointError:
        raise
    except (KeyError, RuntimeError, WeightloomError) as error:
        raise CheckpointError(folder, f"its statistics do not fit its architectures ({error})") from None
    held = {f"statistics.{i}.{k}" for i, one in enumerate(statistics.values()) for k in one.to_tensors()}
    for name in tensors:
        if name not in held and not name.startswith("model."):
            raise CheckpointError(folder, f"tensor {name!r} is not part of a tokenizer")
    load_strictly(tokenizer, {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, folder)
    return tokenizer.eval()


def narrowed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they go to a file: in half precision where that loses nothing, else as they are."""
    result = {}
    for name, tensor in tensors.items():
        half = tensor.half() if tensor.dtype == torch.float32 else tensor
        result[name] = (half if torch.equal(half.to(tensor.dtype), tensor) else tensor).contiguous()
    return result


@torch.no_grad()
def round_to_half(tokenizer: WeightTokenizer) -> None:
    """Round the weights and statistics of a tokenizer to what half precision holds: files are half as big."""
    for parameter in tokenizer.parameters():
        parameter.copy_(parameter.half().float())
    for key, statistics in tokenizer.statistics.items():
        tensors = {k: v.half().float() for k, v in statistics.to_tensors().items()}
        tokenizer.statistics[key] = WeightStatistics.from_tensors(tensors)
    tokenizer.forget_bound()


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill ``module`` with exactly ``tensors``; anything missing, extra or mis-shaped is an error."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise CheckpointError(path, f"tensor {name!r} is missing")
        if tensors[name].shape != value.shape:
            raise CheckpointError(
                path, f"tensor {name!r} has shape {tuple(tensors[name].shape)}, wanted {tuple(value.shape)}"
            )
    for name in tensors:
        if name not in own:
            raise CheckpointError(path, f"tensor {name!r} is not part of this model")
    module.load_state_dict(dict(tensors))


def resolved_example(key: str) -> ArchitectureSpec:
    """The architecture filed under ``key`` with some class count."""
    return parse_architecture(key).resolve(classes=10)
