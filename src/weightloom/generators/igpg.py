"""IGPG: a causal transformer over weight codes, told what to make by words, examples and architecture.

A prefix carries the condition: one token for the instruction, one for the architecture, one a class in label
order. Then comes one token for each weight token; at each, all D codes are predicted together, spread around
initial codes that the prior can move away from. Those are the middle of the vocabulary, about the zoo's mean
network, and for the head of a request with examples the closed-form head on the trunk that was written: the
head's tokens come last. Networks longer than the context are made block by block, each block seeing the
prefix and the tail of the one before. Knows nothing of training.

Shapes: B requests, T tokens of a network, D codes a token, V codes to choose from, C classes, W width,
F features of a class, M samples, P values of a network.
Source: IGPG (arXiv 2504.02012), sections 2.3 and 3, equation 3, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import (
    TEXT_WIDTH,
    Condition,
    SlotEncoder,
    SupportEncoder,
    encode_text,
    stack_conditions,
)
from weightloom.conditioning.architecture import MAX_CLASSES
from weightloom.errors import (
    CheckpointError,
    DataUnavailableError,
    SpecError,
    WeightloomError,
)
from weightloom.fitting import closed_form_network
from weightloom.generators.backbones import build_backbone
from weightloom.generators.base import (
    Generator,
    Request,
    Sampling,
    Validity,
    generators,
    merge_reports,
    sample_generators,
)
from weightloom.generators.drawing import draw_codes
from weightloom.generators.zoo_index import ANEW, ZooIndex
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tokenizers import WeightTokenizer, architecture_key, load_tokenizer
from weightloom.tokenizers.base import load_strictly, narrowed

_REACH = 4.0
"""Codes that a unit of the shift layer moves the bump by: large moves without large weights."""


@dataclass(frozen=True, kw_only=True)
class IGPGConfig:
    """Sizes of the prior and of the dataset encoder.

    ``backbone`` names what turns embeddings into hidden states: ``{"kind": "native"}`` or
    ``{"kind": "transformers", "model_type": "gpt2", ...}``.
    """

    width: int = 192
    depth: int = 4
    heads: int = 4
    context: int = 512
    overlap: int = 128
    image_features: int = 128
    image_width: int = 48
    channels: int = 3
    backbone: dict[str, Any] = field(default_factory=lambda: {"kind": "native"})

    def __post_init__(self) -> None:
        if not 8 <= self.width <= 8192 or not 1 <= self.depth <= 128 or not 1 <= self.heads <= 128:
            raise SpecError("the prior's width must be 8 to 8192, its depth and heads 1 to 128")
        if not 1 <= self.overlap < self.context <= 1_000_000:
            raise SpecError("the overlap must be at least 1 and below the context")


@generators.register("igpg")
class IGPG(nn.Module, Generator):
    """Instruction-guided parameter generation."""

    kind: ClassVar[str] = "igpg"
    reads_words: ClassVar[bool] = True
    heeds: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p", "guidance"})

    def __init__(
        self, config: IGPGConfig, tokenizer: WeightTokenizer, validity: Validity, *, name: str = "igpg"
    ) -> None:
        super().__init__()
        if validity.max_classes > MAX_CLASSES:
            raise SpecError(
                f"IGPG makes classifiers of at most {MAX_CLASSES} classes, not {validity.max_classes}"
            )
        self.config, self.validity, self.name = config, validity, name
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.images = SupportEncoder(
            channels=config.channels, features=config.image_features, width=config.image_width
        )
        w = config.width
        self.backbone = build_backbone(config.backbone, width=w, depth=config.depth, heads=config.heads)
        self.slots = SlotEncoder(width=w, known=tokenizer.slots.known)
        self.instruction = nn.Linear(TEXT_WIDTH, w)
        self.dataset = nn.Sequential(nn.Linear(2 * config.image_features, w), nn.SiLU(), nn.Linear(w, w))
        self.label = nn.Embedding(MAX_CLASSES, w)
        self.architecture = nn.Linear(w, w)
        self.to_head = nn.Linear(w, w)
        self.no_instruction = nn.Parameter(torch.zeros(w))
        self.no_dataset = nn.Parameter(torch.zeros(w))
        self.no_architecture = nn.Parameter(torch.zeros(w))
        self.initial = nn.Linear(tokenizer.latent_width, w)
        self.trust = nn.Parameter(torch.zeros(tokenizer.num_codes))
        self.begin = nn.Parameter(torch.zeros(w))
        self.previous = nn.Linear(tokenizer.latent_width, w)
        self.out = nn.Linear(w, tokenizer.num_codes * tokenizer.vocabulary)
        self.shift = nn.Linear(w, tokenizer.num_codes) if tokenizer.ordered else None
        for layer in filter(None, (self.out, self.shift)):
            nn.init.zeros_(layer.weight)  # the untrained prior is spread around its initial codes
            nn.init.zeros_(layer.bias)

    # ---------------------------------------------------------------- condition

    def condition(
        self, spec: ArchitectureSpec, instructions: Sequence[str | None], supports: Sequence[Tensor | None]
    ) -> Condition:
        """Encode B requests for one architecture; a support set is (C, S, channels, height, width)."""
        assert spec.classes is not None
        written = [text for text in instructions if text is not None]
        vectors = iter(encode_text(written)) if written else iter(())
        encoded = [None if text is None else next(vectors) for text in instructions]
        classes = [None if support is None else self.images.describe(support) for support in supports]
        condition = stack_conditions(
            encoded, classes, text_width=TEXT_WIDTH, shape=(spec.classes, 2 * self.config.image_features)
        )
        return replace(condition, supports=tuple(supports))

    @torch.no_grad()
    def initial_codes(
        self, spec: ArchitectureSpec, condition: Condition, codes: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) what the prior starts from: the middle of the vocabulary, and for the head of a request
        with examples, where the trunk is written in ``codes`` (B, T, D), the closed-form head on that trunk.
        """
        head = self._head_tokens(spec)  # (T,) bool
        shape = (len(condition), len(head), self.tokenizer.num_codes)
        initial = torch.full(shape, self.tokenizer.vocabulary // 2, device=head.device)
        if codes is None or not any(support is not None for support in condition.supports):
            return initial
        flats = self.tokenizer.decode(spec, torch.where(head[:, None], initial, codes))
        rms = self.tokenizer.head_rms(spec)
        for row, support in enumerate(condition.supports):
            if support is not None:
                flat = closed_form_network(spec, flats[row], support, head_rms=rms)
                initial[row, head] = self.tokenizer.encode(spec, flat[None])[0, head]
        return initial

    def _head_tokens(self, spec: ArchitectureSpec) -> Tensor:
        return self.tokenizer.bind(spec)[1].slots.class_index >= 0

    def _class_vectors(self, condition: Condition) -> Tensor:
        """(B, C, W): what is known of every class, in label order."""
        seen = condition.has_classes[:, None, None]
        x = torch.where(seen, self.dataset(condition.classes), self.no_dataset)
        return x + self.label.weight[: condition.num_classes]

    def _described(self, spec: ArchitectureSpec, condition: Condition) -> Tensor:
        """(T, W): the tokens to be made, or the same null vector for each."""
        _, chunking, _ = self.tokenizer.bind(spec)
        if not condition.has_architecture:
            return self.no_architecture.expand(chunking.num_tokens, -1)
        return self.slots(chunking.slots, architecture_key(spec))

    def prefix(self, spec: ArchitectureSpec, condition: Condition, initial: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on the codes made so far; ``initial`` (B, T, D) are the initial codes.

        Returns:
            prefix tokens (B, 2 + C, W); the vectors that every weight token starts from (B, T, W).
        """
        described = self._described(spec, condition)
        classes = self._class_vectors(condition)
        words = torch.where(
            condition.has_instruction[:, None], self.instruction(condition.instruction), self.no_instruction
        )
        whole = self.architecture(described.mean(0)).expand(len(condition), -1)
        prefix = torch.cat([words[:, None], whole[:, None], classes], dim=1)
        _, chunking, _ = self.tokenizer.bind(spec)
        index = chunking.slots.class_index
        own = self.to_head(classes)[:, index.clamp_min(0)] * (index >= 0)[:, None]  # (B, T, W)
        return prefix, described + own + self.initial(self.tokenizer.embed_codes(initial))

    def _logits(self, hidden: Tensor, around: Tensor, allowed: Tensor) -> Tensor:
        """(B, S, D, V) from hidden states (B, S, W) and the codes (B, S, D) that they are spread around;
        minus infinity where ``allowed`` (S, D, V) is False.

        Free logits for every code, and a bump around the given code, which the prior may move where codes are
        ordered.
        """
        free = self.out(hidden).unflatten(-1, (self.tokenizer.num_codes, self.tokenizer.vocabulary))
        place = around if self.shift is None else around + _REACH * self.shift(hidden)
        logits = free + self.tokenizer.closeness(place) * self.trust.exp()[:, None]
        return logits.masked_fill(~allowed, -torch.inf)

    # ---------------------------------------------------------------- likelihood

    def forward(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        codes: Tensor,
        initial: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """Teacher-forced logits (B, S, D, V) of ``codes`` (B, S, D), tokens ``first`` ... ``first + S - 1``,
        that start from ``initial`` (B, T, D), by default the middle of the vocabulary.

        The token before the window counts as unseen: its place is taken by the begin vector.
        """
        initial = self.initial_codes(spec, condition) if initial is None else initial
        prefix, starts = self.prefix(spec, condition, initial)
        count = codes.shape[1]
        seen = self.previous(self.tokenizer.embed_codes(codes[:, :-1]))  # (B, S-1, W)
        seen = torch.cat([self.begin.expand(len(codes), 1, -1), seen], dim=1)
        x = torch.cat([prefix, starts[:, first : first + count] + seen], dim=1)  # (B, 2+C+S, W)
        hidden = self.backbone(x)[:, prefix.shape[1] :]
        allowed = self.tokenizer.allowed(spec)[first : first + count]
        return self._logits(hidden, initial[:, first : first + count], allowed)

    # ---------------------------------------------------------------- generation

    @torch.no_grad()
    def sample_codes(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        noise: Sequence[torch.Generator],
        sampling: Sampling,
        *,
        cached: bool = True,
    ) -> Tensor:
        """(B, T, D) codes, one after another; every request draws from its own random stream.

        ``cached=False`` runs the whole sequence anew at each token: the slow reference for tests.
        """
        guided = sampling.guidance != 1.0
        batch = len(condition)
        prefix, starts, around = self._begun(spec, condition, None, guided)
        allowed = self.tokenizer.allowed(spec)
        total = starts.shape[1]
        head_start = int(self._head_tokens(spec).long().argmax())
        codes = torch.zeros(batch, total, self.tokenizer.num_codes, dtype=torch.long, device=prefix.device)
        block_start = 0
        while block_start < total:
            # A later block sees the last codes of the one before through the overlap (algorithm 1).
            context_start = max(0, block_start - self.config.overlap)
            stop = min(total, context_start + self.config.context)
            seen = [self.begin.expand(len(prefix), 1, -1)]
            if context_start < block_start:
                known = self._embed(codes[:, context_start:block_start], guided)
                seen.append(known)
            inputs = torch.cat(seen, dim=1)
            limit = prefix.shape[1] + stop - context_start
            cache = self.new_cache(len(prefix), limit) if cached else None
            history = prefix
            for position in range(block_start, stop):
                if position == head_start:
                    _, starts, around = self._begun(spec, condition, codes, guided)
                inputs = inputs + starts[:, position + 1 - inputs.shape[1] : position + 1]
                x = torch.cat([prefix, inputs], dim=1) if position == block_start else inputs
                history = x if position == block_start else torch.cat([history, x], dim=1)
                hidden = self.backbone(x, cache) if cached else self.backbone(history)
                place = slice(position, position + 1)
                logits = self._logits(hidden[:, -1:], around[:, place], allowed[place])[:, 0]
                if guided:
                    told, untold = logits.chunk(2)
                    # What is not allowed is so for both: infinity minus infinity is no number.
                    logits = torch.where(
                        allowed[position], untold + sampling.guidance * (told - untold), untold
                    )
                codes[:, position] = draw_codes(logits, noise, sampling)
                inputs = self._embed(codes[:, place], guided)
            block_start = stop
        return codes

    def _begun(
        self, spec: ArchitectureSpec, condition: Condition, codes: Tensor | None, guided: bool
    ) -> tuple[Tensor, ...]:
        """Prefix, starts (:meth:`prefix`) and initial codes after ``codes``; with guidance, those of the bare
        condition are stacked below.
        """
        asked = [condition, condition.without("instruction", "dataset")] if guided else [condition]
        parts = []
        for one in asked:
            initial = self.initial_codes(spec, one, codes)
            parts.append((*self.prefix(spec, one, initial), initial))
        return tuple(torch.cat(own) for own in zip(*parts, strict=True))

    def new_cache(self, batch_size: int, limit: int) -> Any:
        """The backbone's own kind of cache."""
        return self.backbone.new_cache(batch_size, limit)  # type: ignore[operator]

    def _embed(self, codes: Tensor, guided: bool) -> Tensor:
        x = self.previous(self.tokenizer.embed_codes(codes))
        return torch.cat([x, x]) if guided else x

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """Draw codes for every sample, decode them."""
        spec = request.architecture
        assert spec.classes is not None
        support = None if request.support is None else request.support.images
        condition = self.condition(spec, [request.instruction], [support]).repeat(request.num_samples)
        codes = self.sample_codes(spec, condition, sample_generators(request), request.sampling)
        flats = self.tokenizer.decode(spec, codes)
        common = {
            "sampling": asdict(request.sampling),
            "initial_codes": None if support is None else "closed-form head on the trunk as written",
            "tokens": codes.shape[1],
            "codes_per_token": codes.shape[2],
        }
        return flats, merge_reports(len(flats), common)

    # ---------------------------------------------------------------- files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a directory that :meth:`from_pretrained` reads: config, weights, tokenizer, zoo index."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder / "tokenizer")
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("tokenizer.")}
        save_tensors(folder / "model.safetensors", narrowed(own), {"kind": self.kind})
        if self.zoo_index is not None:
            self.zoo_index.save(folder)
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
    def from_pretrained(cls, folder: str | Path) -> IGPG:
        """Read a directory that :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, broken, or not what the config says.
        """
        folder = Path(folder)
        held = read_json(folder / "config.json")
        if "correction" in (held.get("config") or {}):
            raise CheckpointError(
                folder, f"was written by an IGPG with a correction of its initial codes; {ANEW}"
            )
        tokenizer = load_tokenizer(folder / "tokenizer")
        try:
            config = IGPGConfig(**held["config"])
            model = cls(config, tokenizer, Validity.from_json(held["validity"]), name=str(held["name"]))
        except DataUnavailableError:
            raise
        except (KeyError, TypeError, WeightloomError) as error:
            raise CheckpointError(
                folder / "config.json", f"not the config of an IGPG generator ({error})"
            ) from None
        tensors, _ = load_tensors(folder / "model.safetensors")
        own = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()}
        load_strictly(model, {**tensors, **own}, folder / "model.safetensors")
        model.zoo_index = ZooIndex.load(folder, config.image_features)
        return model.eval()
