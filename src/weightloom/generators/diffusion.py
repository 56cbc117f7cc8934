"""Latent diffusion of weights: noise becomes the latents of a weight tokenizer, which decodes them.

The autoencoder is a weight tokenizer (whole networks, token by token); latents are rescaled to unit spread
before anything is diffused, and held within what a latent can be afterwards. A denoiser that sees all tokens
of a network is told time, instruction, examples, class and architecture, and where there are examples the
latents of initial codes (in training a closed-form head on the trunk of the most alike tasks, later the
checkpoint of the most alike task where that does better on examples); each but time may be missing, and
classifier-free guidance goes beyond the conditional answer. What is left to be drawn lies around these codes:
an untrained denoiser draws a Gaussian as wide as checkpoints lie around theirs. Knows nothing of training.

The recurrent variant is for long networks: what is known of each token is read in order by a recurrent
network, once, and what that says of a token (its prototype) is all that the token's own small denoiser sees
of the others. Time grows with the tokens, not with their square, and memory only by latents and prototypes.

Shapes: B requests, M samples, T tokens of a network, Z latent width, C classes, F features of a class, W
width, P values of a network.
Sources: latent diffusion of weights, p-diff (arXiv 2402.13144), sections 2.2 to 2.4; classifier-free guidance
(arXiv 2207.12598), equation 6; prototypes from a recurrent network, RPG (arXiv 2501.11587). Ours: tokens of
whole networks instead of one flat vector of a few layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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
from weightloom.conditioning.architecture import MAX_CLASSES, parameter_key, token_places
from weightloom.errors import CheckpointError, DataUnavailableError, SpecError, WeightloomError
from weightloom.generators.base import (
    Generator,
    Request,
    Validity,
    generators,
    merge_reports,
    sample_generators,
)
from weightloom.generators.initial_codes import StartsFromCodes
from weightloom.generators.schedules import SCHEDULES, Schedule, build_schedule
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tokenizers import WeightTokenizer, architecture_key, load_tokenizer
from weightloom.tokenizers.base import load_strictly, narrowed
from weightloom.tokenizers.blocks import TokenRefiner
from weightloom.weights import layout_of
from weightloom.whole import whole_fields

_FAR = 4.0
"""Spreads from the mean beyond which no latent is decoded: an outlier costs a network its function."""
_AT_ONCE = 64
"""Networks that are denoised together."""
_PIECE = 4096
"""Tokens of each network that are denoised together where they do not see one another."""
_WAVES = 32
MIXINGS = ("attention", "recurrent")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Sizes of the denoiser and of the dataset encoder, and how noise is walked back.

    Attributes:
        width, depth: of the denoiser, a :class:`weightloom.tokenizers.blocks.TokenRefiner`.
        mixing: how tokens learn of one another: ``attention`` at every step of the way, or once before it,
            ``recurrent``.
        schedule: one of :data:`weightloom.generators.schedules.SCHEDULES`; training and generation share it.
        steps: of the way back from noise.
        tensors: patterns of tensors that are generated (``head.*``), all by default; the others are those of
            the zoo's mean network.
        image_features, image_width, channels: of the dataset encoder.
    """

    width: int = 192
    depth: int = 4
    mixing: str = "attention"
    schedule: str = "flow"
    steps: int = 20
    tensors: tuple[str, ...] = ("*",)
    image_features: int = 128
    image_width: int = 48
    channels: int = 3

    def __post_init__(self) -> None:
        if not 8 <= self.width <= 8192 or self.width % 4 or not 1 <= self.depth <= 128:
            raise SpecError("the denoiser's width must be 8 to 8192 and divisible by 4, its depth 1 to 128")
        if self.mixing not in MIXINGS:
            raise SpecError(f"unknown mixing {self.mixing!r}; known: {', '.join(MIXINGS)}")
        if self.schedule not in SCHEDULES:
            raise SpecError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        whole_fields(self, {"steps": (1, 1000)})
        object.__setattr__(self, "tensors", tuple(self.tensors))
        if not self.tensors or not all(isinstance(pattern, str) for pattern in self.tensors):
            raise SpecError("tensors must be patterns of names such as head.*, at least one")


class Described(NamedTuple):
    """What is known before any noise: tokens (B, T, W), mean and spread (B, T, Z) that latents have by it."""

    tokens: Tensor
    mean: Tensor
    spread: Tensor


@generators.register("diffusion")
class LatentDiffusion(nn.Module, StartsFromCodes, Generator):
    """Latent diffusion of whole networks, conditional and unconditional.

    Without instruction and examples it draws from all that the zoo holds of the architecture. Of the
    request's sampling, ``guidance`` above 1 weighs the condition more and ``temperature`` is the spread of
    the noise that it starts from; the other options do not concern a diffusion.
    """

    kind: ClassVar[str] = "diffusion"
    reads_words: ClassVar[bool] = True
    heeds: ClassVar[frozenset[str]] = frozenset({"temperature", "guidance"})

    def __init__(
        self,
        config: DiffusionConfig,
        tokenizer: WeightTokenizer,
        validity: Validity,
        *,
        name: str = "diffusion",
    ) -> None:
        """
        Raises:
            SpecError: more classes than can be told apart, or a pattern that fits no tensor.
            DataUnavailableError: the schedule needs a library that is not installed.
        """
        super().__init__()
        if validity.max_classes > MAX_CLASSES:
            raise SpecError(f"diffusion makes classifiers of at most {MAX_CLASSES} classes")
        self.config, self.validity, self.name = config, validity, name
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.schedule: Schedule = build_schedule(config.schedule)
        self.images = SupportEncoder(
            channels=config.channels, features=config.image_features, width=config.image_width
        )
        w, z = config.width, tokenizer.latent_width
        self.slots = SlotEncoder(width=w, known=tokenizer.slots.known)
        self.instruction = nn.Linear(TEXT_WIDTH, w)
        self.dataset = nn.Sequential(nn.Linear(2 * config.image_features, w), nn.SiLU(), nn.Linear(w, w))
        self.label = nn.Embedding(MAX_CLASSES, w)
        self.whole = nn.Linear(w, w)
        self.to_head = nn.Linear(w, w)
        self.no_instruction = nn.Parameter(torch.zeros(w))
        self.no_dataset = nn.Parameter(torch.zeros(w))
        self.no_architecture = nn.Parameter(torch.zeros(w))
        self.initial = nn.Linear(z, w)
        self.no_initial = nn.Parameter(torch.zeros(w))
        self.time = nn.Sequential(nn.Linear(2 * _WAVES, w), nn.SiLU(), nn.Linear(w, w))
        alone = config.mixing == "recurrent"
        self.recurrence = nn.GRU(w, w, batch_first=True) if alone else None
        self.denoiser = TokenRefiner(z, z, width=w, depth=config.depth, attention=not alone)
        # The untrained denoiser adds next to nothing: its samples are Gaussian latents around the initial
        # codes.
        self.denoiser.outward.weight.data.mul_(0.05)
        self.denoiser.outward.bias.data.zero_()
        for key, trunk in tokenizer.slots.known.items():
            # Places of a network: its trunk's tokens and one for all of its head's.
            self.register_buffer(f"mean_{parameter_key(key)}", torch.zeros(trunk + 1, z))
            self.register_buffer(f"spread_{parameter_key(key)}", torch.ones(trunk + 1, z))
            self.register_buffer(f"around_{parameter_key(key)}", torch.ones(trunk + 1, z))

    # ---------------------------------------------------------------- latents

    @torch.no_grad()
    def measure_latents(self, groups: Mapping[ArchitectureSpec, Tensor]) -> None:
        """Set the scale of latents from raw networks (N, P) by resolved architecture.

        Architectures that differ in their class count share a scale. A latent number that never varies keeps
        its one value in everything that is generated.
        """
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for spec, flats in groups.items():
            latents = self.tokenizer.embed_codes(self.tokenizer.encode(spec, flats))
            parts.setdefault(architecture_key(spec), []).append((latents, self._places(spec)))
        for key, held in parts.items():
            mean, spread = self._scale(key)
            count = torch.zeros(len(mean), 1)
            total, square = torch.zeros_like(mean), torch.zeros_like(mean)
            for latents, places in held:
                # (N, T, Z) summed over networks, then over the tokens of each place
                total.index_add_(0, places, latents.sum(0))
                square.index_add_(0, places, latents.square().sum(0))
                count.index_add_(0, places, torch.full((len(places), 1), float(len(latents))))
            mean.copy_(total / count)
            variance = (square / count - mean.square()).clamp_min(0)
            spread.copy_(torch.where(variance > 1e-8, variance.sqrt(), 0.0))

    @torch.no_grad()
    def measure_initial(self, groups: Mapping[ArchitectureSpec, tuple[Tensor, Tensor]]) -> None:
        """Set how far latents lie around their initial codes, from both (N, T, D) each, by resolved
        architecture. Root mean squares, in spreads of the latents, and never above one.
        """
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for spec, (codes, initial) in groups.items():
            key, places = architecture_key(spec), self._places(spec)
            around = self._around(key)
            total, count = sums.setdefault(key, (torch.zeros_like(around), torch.zeros(len(around), 1)))
            for own, from_ in zip(codes.split(_AT_ONCE), initial.split(_AT_ONCE), strict=True):
                held, start = (self.coded(spec, one).clamp(-_FAR, _FAR) for one in (own, from_))
                apart = held - start  # (n, T, Z)
                total.index_add_(0, places, apart.square().sum(0))
            count.index_add_(0, places, torch.full((len(places), 1), float(len(codes))))
        for key, (total, count) in sums.items():
            self._around(key).copy_((total / count).sqrt().clamp_max(1))

    def coded(self, spec: ArchitectureSpec, codes: Tensor) -> Tensor:
        """Codes (..., T, D) as rescaled latents (..., T, Z)."""
        return self.rescale(spec, self.tokenizer.embed_codes(codes))

    def _around(self, key: str) -> Tensor:
        return self.get_buffer(f"around_{parameter_key(key)}")

    def _scale(self, key: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{parameter_key(key)}"), self.get_buffer(f"spread_{parameter_key(key)}")

    def _places(self, spec: ArchitectureSpec) -> Tensor:
        """(T,) the place of every token."""
        _, chunking, _ = self.tokenizer.bind(spec)
        return token_places(chunking.slots, self.tokenizer.slots.known[architecture_key(spec)])

    def rescale(self, spec: ArchitectureSpec, latents: Tensor) -> Tensor:
        """The tokenizer's latents (..., T, Z) to zero mean and unit spread."""
        mean, spread = (part[self._places(spec)] for part in self._scale(architecture_key(spec)))
        return torch.where(spread > 0, (latents - mean) / spread.clamp_min(1e-8), 0.0)

    def restore(self, spec: ArchitectureSpec, x: Tensor) -> Tensor:
        """The inverse of :meth:`rescale`."""
        mean, spread = (part[self._places(spec)] for part in self._scale(architecture_key(spec)))
        return mean + spread * x

    def latent_mask(self, spec: ArchitectureSpec) -> Tensor:
        """(T, Z) bool: latent numbers that vary, of tokens that hold something to be generated."""
        _, spread = self._scale(architecture_key(spec))
        _, chunking, _ = self.tokenizer.bind(spec)
        wanted = torch.cat([self.generated(spec), torch.zeros(1, dtype=torch.bool)])
        return (spread[self._places(spec)] > 0) & wanted[chunking.gather].any(-1)[:, None]

    def generated(self, spec: ArchitectureSpec) -> Tensor:
        """(P,) bool: the values that are generated.

        Raises:
            SpecError: no tensor fits the config's patterns.
        """
        layout = layout_of(spec)
        chosen = [any(fnmatchcase(slot.name, p) for p in self.config.tensors) for slot in layout.slots]
        if not any(chosen):
            names = ", ".join(slot.name for slot in layout.slots[:8])
            raise SpecError(
                f"no tensor of {spec} fits {' or '.join(self.config.tensors)}; it has {names}, ..."
            )
        return torch.tensor(chosen)[layout.slot_of_value]

    def to_flats(self, spec: ArchitectureSpec, x: Tensor) -> Tensor:
        """Rescaled latents (M, T, Z) to raw networks (M, P); differentiable."""
        flats = self.tokenizer.decode_latents(spec, self.restore(spec, x.clamp(-_FAR, _FAR)))
        chosen = self.generated(spec)
        return flats if bool(chosen.all()) else torch.where(chosen, flats, self.tokenizer.centre(spec))

    # ---------------------------------------------------------------- condition

    def condition(
        self, spec: ArchitectureSpec, instructions: Sequence[str | None], supports: Sequence[Tensor | None]
    ) -> Condition:
        """Encode B requests for one architecture; a support set is (C, S, channels, height, width)."""
        assert spec.classes is not None
        written = [text for text in instructions if text is not None]
        vectors = iter(encode_text(written)) if written else iter(())
        classes = [None if support is None else self.images.describe(support) for support in supports]
        initial = [
            (None, None) if support is None or seen is None else self.initial_codes(spec, support, seen)
            for support, seen in zip(supports, classes, strict=True)
        ]
        condition = stack_conditions(
            [None if text is None else next(vectors) for text in instructions],
            classes,
            text_width=TEXT_WIDTH,
            shape=(spec.classes, 2 * self.config.image_features),
            initial=[codes for codes, _ in initial],
        )
        return replace(condition, initial_from=tuple(words for _, words in initial))

    def described(self, spec: ArchitectureSpec, condition: Condition) -> Described:
        """What is known of every token before any noise."""
        _, chunking, _ = self.tokenizer.bind(spec)
        if condition.has_architecture:
            tokens = self.slots(chunking.slots, architecture_key(spec))
        else:
            tokens = self.no_architecture.expand(chunking.num_tokens, -1)
        seen = condition.has_classes[:, None, None]
        classes = torch.where(seen, self.dataset(condition.classes), self.no_dataset)
        classes = classes + self.label.weight[: condition.num_classes]  # (B, C, W)
        words = torch.where(
            condition.has_instruction[:, None], self.instruction(condition.instruction), self.no_instruction
        )
        index = chunking.slots.class_index
        own = self.to_head(classes)[:, index.clamp_min(0)] * (index >= 0)[:, None]  # (B, T, W)
        told = tokens + own + (words + self.whole(classes.mean(1)))[:, None]
        around = self._around(architecture_key(spec))[self._places(spec)]  # (T, Z)
        if condition.initial is None or condition.has_initial is None:
            nothing = around.new_zeros(len(condition), *around.shape)
            return Described(self._mixed(told + self.no_initial), nothing, nothing + 1)
        given = condition.has_initial[:, None, None]
        latents = self.coded(spec, condition.initial).clamp(-_FAR, _FAR)  # (B, T, Z)
        tokens = told + torch.where(given, self.initial(latents), self.no_initial)
        return Described(
            self._mixed(tokens), torch.where(given, latents, 0.0), torch.where(given, around, 1.0)
        )

    def _mixed(self, tokens: Tensor) -> Tensor:
        """(B, T, W) with what the recurrent network has read up to each token, if there is one."""
        return tokens if self.recurrence is None else tokens + self.recurrence(tokens)[0]

    # ---------------------------------------------------------------- denoising

    def forward(self, described: Described, x: Tensor, t: Tensor) -> Tensor:
        """What the schedule wants predicted of noisy latents (B, T, Z) at times (B,): (B, T, Z)."""
        rate = 1000.0 ** -(torch.arange(_WAVES, device=x.device) / _WAVES)
        angle = 1000 * t[:, None] * rate  # (B, waves)
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        plain = self.schedule.plain(x, t, described.mean, described.spread)
        told = described.tokens + time[:, None]
        if self.recurrence is None or torch.is_grad_enabled():
            return plain + self.denoiser(x, told)
        for rows, piece, own in zip(*(part.split(_PIECE, 1) for part in (plain, x, told)), strict=True):
            rows += self.denoiser(piece, own)
        return plain

    @torch.no_grad()
    def sample_latents(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        streams: Sequence[torch.Generator],
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """(B, T, Z) rescaled latents; request b draws from ``streams[b]`` alone, from noise of the spread
        ``temperature``.
        """
        mask = self.latent_mask(spec)
        noise = temperature * torch.stack([torch.randn(mask.shape, generator=stream) for stream in streams])
        told = self.described(spec, condition)
        untold = None
        if guidance != 1.0:
            untold = self.described(spec, condition.without("instruction", "dataset"))

        def predict(x: Tensor, t: Tensor) -> Tensor:
            x = x * mask  # a scheduler may have put noise where nothing varies
            answer = self(told, x, t)
            if untold is not None:
                free = self(untold, x, t)
                answer = free + guidance * (answer - free)
            return answer * mask

        return self.schedule.walk(predict, noise, self.config.steps, streams) * mask

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """Draw latents for every sample, decode them."""
        spec = request.architecture
        support = None if request.support is None else request.support.images
        condition = self.condition(spec, [request.instruction], [support])
        streams, made = sample_generators(request), []
        sampling = request.sampling
        for start in range(0, len(streams), _AT_ONCE):
            own = streams[start : start + _AT_ONCE]
            x = self.sample_latents(
                spec,
                condition.repeat(len(own)),
                own,
                guidance=sampling.guidance,
                temperature=sampling.temperature,
            )
            made.append(self.to_flats(spec, x))
        told = [
            word
            for word, given in (("instruction", request.instruction), ("examples", request.support))
            if given is not None
        ]
        common = {
            "schedule": self.config.schedule,
            "steps": self.config.steps,
            "guidance": sampling.guidance,
            "temperature": sampling.temperature,
            "told": told,
            "initial_codes": condition.initial_from[0],
            "tokens": len(self._places(spec)),
        }
        return torch.cat(made), merge_reports(request.num_samples, common)

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
        settings = {"config": asdict(self.config), "validity": asdict(self.validity)}
        write_json(folder / "config.json", {"kind": self.kind, "name": self.name, **settings})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentDiffusion:
        """Read a directory that :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, broken, or not what the config says.
            DataUnavailableError: its schedule needs a library that is not installed.
        """
        folder = Path(folder)
        held = read_json(folder / "config.json")
        try:
            config, validity = DiffusionConfig(**held["config"]), Validity.from_json(held["validity"])
            # Modules draw their start from the global stream, which is put back.
            with torch.random.fork_rng(devices=[]):
                tokenizer = load_tokenizer(folder / "tokenizer")
                model = cls(config, tokenizer, validity, name=str(held["name"]))
        except (DataUnavailableError, CheckpointError):
            raise
        except (KeyError, TypeError, WeightloomError) as error:
            raise CheckpointError(
                folder / "config.json", f"not the config of a diffusion generator ({error})"
            ) from None
        tensors, _ = load_tensors(folder / "model.safetensors")
        own = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()}
        load_strictly(model, {**tensors, **own}, folder / "model.safetensors")
        model.zoo_index = ZooIndex.load(folder, config.image_features)
        return model.eval()
