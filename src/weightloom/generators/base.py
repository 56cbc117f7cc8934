"""The contract of a generator: one verb, one kind of result, one way to say what it is valid for.

Knows nothing of how any method works, of training, or of the command line.

Shapes: M samples, P values of a network, C classes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning.names import check_names, check_same_names, names_in
from weightloom.conditioning.text import check_instruction
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.fitting import accuracy_on, calibration, interval_of, recalibrate, run_networks
from weightloom.generators.choice import LEFT_OUT
from weightloom.generators.cost import check_cost
from weightloom.generators.sample import Sample, best_of
from weightloom.generators.validity import ANY_ARCHITECTURE as ANY_ARCHITECTURE
from weightloom.generators.validity import Validity as Validity
from weightloom.registry import Registry
from weightloom.seeding import check_seed, torch_generator
from weightloom.tasks import NetworkCard, SupportSet, TaskData
from weightloom.tasks.data import ONE_EXAMPLE, checked_images
from weightloom.weights import layout_of, require_finite
from weightloom.whole import whole_number

if TYPE_CHECKING:
    from weightloom.generators.zoo_index import ZooIndex

generators: Registry[type[Generator]] = Registry("generator")

MAX_SAMPLES = 4096

MEASURED = "re-estimated on the support set"
"""What a report says of batch-norm statistics that the examples have decided."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn from a prior. Generators without a prior ignore what does not concern them.

    ``temperature`` 0 takes the likeliest code; ``top_k`` 0 and ``top_p`` 1 keep all codes; ``guidance`` 1
    is the plain conditional distribution (classifier-free guidance, arXiv 2207.12598, equation 6).
    """

    temperature: float = 0.1
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise SpecError(f"temperature must be from 0 to 10, not {self.temperature}")
        top_k = whole_number(self.top_k, "top_k", 0, error=SpecError)
        object.__setattr__(self, "top_k", top_k)
        if not 0 < self.top_p <= 1:
            raise SpecError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance <= 20:
            raise SpecError(f"guidance must be from 0 to 20, not {self.guidance}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a generator is asked for: a resolved architecture and whatever is known of the task."""

    architecture: ArchitectureSpec
    instruction: str | None = None
    classes: tuple[str, ...] | None = None
    support: SupportSet | None = None
    unlabelled: Tensor | None = None
    """(U, channels, height, width): pictures of the task whose classes are not known."""
    num_samples: int = 1
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    batch_norm: str = "support"


class Generator(ABC):
    """Anything that makes the weights of an architecture without training it."""

    kind: ClassVar[str]
    draws: ClassVar[bool] = True
    """Whether seeds and samples differ; where nothing is drawn one sample says all."""
    reads_words: ClassVar[bool] = False
    """Whether an instruction may change what is made."""
    reads_names: ClassVar[bool] = False
    """Whether the names of the classes may change what is made."""
    reads_unlabelled: ClassVar[bool] = False
    """Whether pictures of the task without labels may change what is made."""
    unlabelled_alone: ClassVar[bool] = False
    """Whether they do so without examples, beside the names of the classes."""
    makes_statistics: ClassVar[bool] = False
    """Whether it settles batch-norm statistics itself, with examples too; its reports say how."""
    heeds: ClassVar[frozenset[str]] = frozenset()
    """Which of the options of :class:`Sampling` may change what is made."""
    zoo_index: ZooIndex | None = None
    """What it carries of the zoo that it was trained on, if it carries any."""
    name: str
    validity: Validity
    progress: Callable[[int, int], None] | None = None
    """Told how many pictures are done, of how many, where a network takes its time for each."""

    @abstractmethod
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) raw weights for a checked request, and one report for each sample."""

    @with_plain_defaults
    def generate_many(
        self,
        architecture: str | ArchitectureSpec,
        *,
        instruction: str | None = None,
        classes: Sequence[str] | None = None,
        support: SupportSet | None = None,
        unlabelled: Tensor | None = None,
        num_samples: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch_norm: str = "support",
    ) -> list[Sample]:
        """Generate ``num_samples`` networks, in the order drawn, each with its score on the support set.

        ``classes`` are the names of the classes, in the order of the network's outputs. Left out, they are
        those of the support set, or those that the instruction lists ("tell cats from dogs").
        ``unlabelled`` (U, channels, height, width) are pictures of the same classes beside the support set
        whose labels are not known.
        ``batch_norm``: where there is a support set, ``"support"`` measures the batch-norm statistics anew
        on its images (labels are not used), ``"generated"`` keeps them as generated; the report says which.
        ``seed`` is a whole number of any sign and size, of Python, numpy or torch.

        Raises:
            UnsupportedRequestError: the architecture, its input or its class count is outside what the
                generator is valid for, or the machine has not the memory for it.
            InputError: an instruction that is empty or too long, a support set of another class count or with
                images that no network can read, a seed or a number of samples that is no whole number;
                pictures without labels that the generator does not use, or that no network can read.
        """
        spec, names = self.named(architecture, instruction, classes, support)
        request = self.check(spec, instruction, support, num_samples, seed, sampling, batch_norm)
        request = replace(request, classes=names, unlabelled=self.check_unlabelled(unlabelled, request))
        start = time.perf_counter()
        flats, reports = self.sample_flats(request)
        has_statistics = any(slot.is_buffer for slot in layout_of(request.architecture).slots)
        norms = "generated" if has_statistics else "none"
        if has_statistics and request.support is not None and request.batch_norm == "support":
            norms = MEASURED
            if self.makes_statistics:
                norms = "generated, and re-estimated on the support set"
            else:
                flats = recalibrate(request.architecture, flats, request.support.flat()[0])
        seconds = time.perf_counter() - start
        require_finite({f"sample {i}": flat for i, flat in enumerate(flats)}, f"generator {self.name}")
        scores: list[dict[str, Any]] = [{}] * len(flats)
        if not all("support_loss" in report for report in reports):
            scores = support_scores(request.architecture, flats, request.support)
        held = self.zoo_index
        found = None if held is None else held.novelty(request.architecture, flats)
        novelty = [{}] * len(flats) if found is None else [{"novelty": one} for one in found]
        made = []
        for index, (flat, score, new, report) in enumerate(zip(flats, scores, novelty, reports, strict=True)):
            told = {
                "generator": self.name,
                "kind": self.kind,
                "instruction": request.instruction,
                "seed": request.seed,
                "sample": index,
                "seconds": seconds / len(flats),
                "batch_norm": norms,
                **score,
                **new,
                **report,
            }
            if request.support is not None and LEFT_OUT in told and "calibration" not in told:
                images, labels = request.support.flat()
                logits = run_networks(request.architecture, flat[None], images)[0]
                told["calibration"] = calibration(logits, labels, f"examples, {told[LEFT_OUT]}")
            made.append(Sample(request.architecture, flat, told, self.card(request, told)))
        return made

    def card(self, request: Request, report: Mapping[str, Any]) -> NetworkCard:
        """What a network that was made for ``request`` says of itself, its ``report`` among it."""
        spec, support = request.architecture, request.support
        card = NetworkCard.from_report(report, input=spec.input, classes=spec.classes)
        seen = "the names of the classes" if card.class_names else "an instruction"
        if support is not None:
            card = card.for_names(support.class_names, support.ranges, support.licence)
            seen = f"{support.shots} example{'s' * (support.shots > 1)} of each class"
        known = support or card.class_names or request.instruction
        return replace(card, made_by=f"{self.name}, from {seen}" if known else self.name).calibrated(
            report.get("calibration")
        )

    def named(
        self,
        architecture: str | ArchitectureSpec,
        instruction: str | None,
        classes: Sequence[str] | None,
        support: SupportSet | None,
    ) -> tuple[ArchitectureSpec, tuple[str, ...] | None]:
        """The architecture with its number of classes where that follows from their names, and the names that
        are known without examples.

        Raises:
            InputError: names that are none, or that do not fit the architecture or the examples.
        """
        spec = (
            architecture if isinstance(architecture, ArchitectureSpec) else parse_architecture(architecture)
        )
        names = None if classes is None else check_names(classes)
        if names is None and support is None and instruction is not None and self.reads_names:
            listed = names_in(check_instruction(instruction))
            names = listed if listed is not None and spec.classes in (None, len(listed)) else None
        if names is None:
            return spec, None
        if isinstance(support, SupportSet):
            check_same_names(names, support.class_names)
        if spec.classes is not None and spec.classes != len(names):
            raise InputError(
                f"the architecture has {spec.classes} classes, but {len(names)} class names are given"
            )
        return spec.resolve(classes=len(names)), names

    def generate(self, architecture: str | ArchitectureSpec, **options: Any) -> Sample:
        """The best of ``num_samples`` networks on the support set (the first one without a support set).

        Takes the arguments of :meth:`generate_many` and raises the same errors.
        """
        return best_of(self.generate_many(architecture, **options))

    def accuracies(self, samples: Sequence[Sample], data: TaskData) -> list[float]:
        """Share of right answers of each of ``samples``, of one architecture, on all pictures of ``data``."""
        flats = torch.stack([sample.flat for sample in samples])
        return [float(value) for value in accuracy_on(samples[0].architecture, flats, data)]

    def check(
        self,
        architecture: str | ArchitectureSpec,
        instruction: str | None,
        support: SupportSet | None,
        num_samples: int,
        seed: int,
        sampling: Sampling | None,
        batch_norm: str = "support",
    ) -> Request:
        """A request with every part checked and the architecture resolved."""
        spec = architecture
        if not isinstance(spec, ArchitectureSpec):
            spec = parse_architecture(spec)
        if support is not None:
            check_support(support)
        check_weights(self, None if support is None else support.images.device)
        if support is not None:
            if support.images.requires_grad:  # nothing that is generated is differentiated
                support = replace(support, images=support.images.detach())
            if spec.classes is not None and spec.classes != support.num_classes:
                raise InputError(
                    f"the architecture has {spec.classes} classes, the examples have {support.num_classes}"
                )
            spec = spec.resolve(classes=support.num_classes)
            shape, asked = tuple(support.images.shape[2:]), self.validity.input_for(spec)
            if shape != asked:
                wanted, got = ("x".join(map(str, s)) for s in (asked, shape))
                raise UnsupportedRequestError(
                    f"this generator reads {wanted} images, the examples are {got} (a task says its size: "
                    f"digits@{asked[-1]}c{asked[0]})"
                )
        if spec.input is None:
            spec = spec.resolve(input=self.validity.input_for(spec))
        if spec.classes is None:
            raise InputError(
                "the number of classes is not known; name the classes (--classes 'cat, dog', classes=[...]), "
                "or give examples, a task, or classes=N in the architecture"
            )
        self.validity.check(spec)
        num_samples = whole_number(num_samples, "the number of samples", 1, MAX_SAMPLES)
        if batch_norm not in ("support", "generated"):
            raise InputError(f"batch_norm is 'support' or 'generated', not {batch_norm!r}")
        check_cost(spec, num_samples)
        return Request(
            batch_norm=batch_norm,
            architecture=spec,
            instruction=None if instruction is None else check_instruction(instruction),
            support=support,
            num_samples=num_samples,
            seed=check_seed(seed),
            sampling=sampling or Sampling(),
        )

    def check_unlabelled(self, images: Tensor | None, request: Request) -> Tensor | None:
        """Pictures without labels as ``request`` can use them, (U, channels, height, width).

        Raises:
            InputError: they are of another shape or kind, or nothing would be done with them.
        """
        if images is None:
            return None
        if not self.reads_unlabelled:
            raise InputError(f"generator {self.name} does nothing with pictures without labels")
        if request.support is None and not self.unlabelled_alone:
            raise InputError("pictures without labels are used beside examples; give some of each class too")
        images = checked_images(images, "the pictures without labels", request.architecture.input)
        if images.dim() != 4:
            raise InputError(
                f"the pictures without labels are (U, channels, height, width), not {tuple(images.shape)}"
            )
        if request.support is not None and images.device != request.support.images.device:
            raise InputError(
                f"the pictures without labels are on {images.device}, the examples on "
                f"{request.support.images.device}; move one of them with .to()"
            )
        return images.detach()


class Baseline(Generator):
    """A generator that learns nothing: it is made in a moment from what another one carries of its zoo.

    Every method is worth what it is worth above these; leaderboards find them by this class.
    """

    @classmethod
    @abstractmethod
    def from_generator(cls, model: Generator) -> Self:
        """The baseline beside ``model``, over the zoo that it was trained on.

        Raises:
            InputError: ``model`` carries nothing that this baseline could be made from.
        """


def check_weights(model: object, device: torch.device | None = None) -> None:
    """Raise :class:`InputError` unless the weights of ``model`` are float32 with values, on ``device``.

    A generator that is made under another default dtype or device of torch, or was converted, has others.
    """
    for name, weight in model.named_parameters() if isinstance(model, nn.Module) else ():
        if weight.is_meta or weight.dtype is not torch.float32:
            what = "on the meta device" if weight.is_meta else str(weight.dtype)
            raise InputError(
                f"a generator's weights are float32 on a device with memory, but {name!r} is {what}; "
                "make or load it anew under torch's own defaults"
            )
        if device is not None and weight.device != device:
            raise InputError(
                f"the examples are on {device}, the generator on {weight.device}; move one of them with .to()"
            )


def check_support(support: SupportSet) -> None:
    """Raise :class:`InputError` unless ``support`` is a support set of images that a network can read."""
    if not isinstance(support, SupportSet):
        raise InputError(f"the examples must be a SupportSet, not {type(support).__name__}")
    if support.num_classes < 2:
        count = support.images.shape[0] * support.images.shape[1]
        raise InputError(f"{ONE_EXAMPLE}, but the examples are {count} of one class")
    checked_images(support.images, "the examples")


@torch.no_grad()
def support_scores(spec: ArchitectureSpec, flats: Tensor, support: SupportSet | None) -> list[dict[str, Any]]:
    """Loss and accuracy of (M, P) networks on the support set, with how many images that is and how sure."""
    if support is None:
        return [{} for _ in flats]
    images, labels = support.flat()
    logits = run_networks(spec, flats, images)  # (M, B, C)
    losses = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(flats), -1), reduction="none").mean(1)
    right = (logits.argmax(-1) == labels).float().mean(1)
    return [
        {
            "support_loss": float(loss),
            "support_accuracy": float(hit),
            "support_interval": interval_of(float(hit), len(labels)),
            "support_images": len(labels),
        }
        for loss, hit in zip(losses, right, strict=True)
    ]


def sample_generators(request: Request) -> list[torch.Generator]:
    """One private random stream for each sample, so that a batch equals its singles."""
    return [torch_generator("sample", request.seed, index) for index in range(request.num_samples)]


def measured_on_support(request: Request) -> dict[str, str]:
    """For the report of a network with a head from the examples: its statistics are theirs too."""
    slots = layout_of(request.architecture).slots
    return {"batch_norm": MEASURED} if request.support and any(slot.is_buffer for slot in slots) else {}


def merge_reports(count: int, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same report for every sample."""
    return [dict(common) for _ in range(count)]
