"""The common part of every architecture family: options, text, JSON, resolving, building.

A family is a frozen dataclass that subclasses :class:`ArchitectureSpec`, annotates each option with
a rule (:class:`Whole` or :class:`Choice`) and returns the network's body; everything else is here.
Knows no family by name, no weights, no tasks and no data.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from weightloom.defaults import with_plain_defaults
from weightloom.errors import SpecError, UnknownNameError
from weightloom.registry import Registry
from weightloom.seeding import check_seed, seed_for

MAX_TEXT = 1000
"""Longest architecture text, in characters; the longest sensible one is a fifth of it."""

MAX_PARAMETERS = 2**31
"""Largest network that :meth:`ArchitectureSpec.build` makes (8.6 GB of float32)."""

_HINT = "write it like cnn(depth=3,width=16)"
_UNDECIDED = "auto"  # how full_text() spells an option that is None
_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9_.+-]+)|(?P<mark>[(),=]))")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SHAPE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})")


def _shown(value: object, limit: int = 60) -> str:
    """``repr`` of what a user wrote, cut so that a message stays one readable sentence."""
    # Slice before repr so that a huge text or list costs nothing.
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[: limit + 1]
    elif isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits, wherever it sits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Rule(ABC):
    """What one option may be: reads it from text, checks it, writes it."""

    @abstractmethod
    def check(self, value: object) -> Any:
        """The value in its one canonical type; raises ``ValueError`` with what it must be."""

    def read(self, text: str) -> Any:
        """The value that ``text`` stands for, not yet checked; a text that is no value stays a text."""
        return text

    def write(self, value: Any) -> str:
        """The text that :meth:`read` turns back into ``value``."""
        return str(value)

    def to_json(self, value: Any) -> Any:
        """The value as JSON has it."""
        return value

    @abstractmethod
    def describe(self) -> str:
        """What the option may be, as the end of "must be ..."."""


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number from ``low`` to ``high``; only odd ones if ``odd``."""

    low: int
    high: int
    help: str
    odd: bool = False

    def describe(self) -> str:
        return f"{'an odd' if self.odd else 'a whole'} number from {self.low} to {self.high}"

    def read(self, text: str) -> int | str:
        return int(text) if _WHOLE.fullmatch(text) else text

    def check(self, value: object) -> int:
        if isinstance(value, (bool, str)) or not hasattr(value, "__index__"):
            raise ValueError
        try:
            number = operator.index(value)
        except TypeError:  # a tensor or array of several numbers has __index__ too
            raise ValueError from None
        if not self.low <= number <= self.high or (self.odd and number % 2 == 0):
            raise ValueError
        return number


@dataclass(frozen=True)
class Choice(Rule):
    """One of a few names."""

    names: tuple[str, ...]
    help: str

    def describe(self) -> str:
        return "one of " + ", ".join(self.names)

    def check(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value


@dataclass(frozen=True)
class Shape(Rule):
    """A picture's shape, ``(channels, height, width)``, in text ``3x16x16``."""

    channels: int
    side: int
    help: str

    def describe(self) -> str:
        return (
            "channels x height x width such as 3x16x16, "
            f"with 1 to {self.channels} channels and sides of 1 to {self.side} pixels"
        )

    def read(self, text: str) -> tuple[int, ...] | str:
        match = _SHAPE.fullmatch(text)
        return tuple(int(part) for part in match.groups()) if match else text

    def check(self, value: object) -> tuple[int, int, int]:
        if not isinstance(value, (tuple, list)) or len(value) != 3:
            raise ValueError
        side = Whole(1, self.side, "")
        return Whole(1, self.channels, "").check(value[0]), side.check(value[1]), side.check(value[2])

    def write(self, value: tuple[int, int, int]) -> str:
        return "x".join(str(part) for part in value)

    def to_json(self, value: tuple[int, int, int]) -> list[int]:
        return list(value)


@dataclass(frozen=True)
class Option:
    """One option of a family, for ``weightloom info`` and the docs.

    Attributes:
        name: As written in the text.
        default: Canonical text of the default; ``auto`` where the task decides.
        allowed: What it may be, as the end of "must be ...".
        help: What it does.
    """

    name: str
    default: str
    allowed: str
    help: str


class TargetNetwork(nn.Module):
    """A network that classifies pictures: a body and one last linear layer, always called ``head``.

    Args:
        body: Pictures ``(B, C, H, W)`` to features ``(B, width)``.
        width: Number of features.
        classes: Rows of the head.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        # Last, so that networks that differ only in their classes draw the same body from one seed.
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` to what the head sees, ``(B, head.in_features)``."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` to logits ``(B, classes)``."""
        logits: Tensor = self.head(self.features(x))
        return logits


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec(ABC):
    """A target network's description: everything that decides its modules, nothing of its weights.

    Attributes:
        classes: Number of classes, or None while the task has not decided it.
        input: ``(channels, height, width)`` of the pictures, or None while undecided.

    Raises:
        SpecError: If an option is outside its bounds or the options contradict each other.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("cnn(depth=2, width=8)").resolve(classes=10, input=(3, 16, 16))
        >>> str(spec)
        'cnn(depth=2,width=8,classes=10,input=3x16x16)'
        >>> spec.num_parameters()
        1154
    """

    family: ClassVar[str]

    classes: Annotated[int | None, Whole(2, 100_000, "number of classes, from the task if left out")] = None
    input: Annotated[
        tuple[int, int, int] | None,
        Shape(1024, 4096, "pictures' channels x height x width, from the task if left out"),
    ] = None

    def __post_init__(self) -> None:
        for name, rule, default in option_rules(type(self)):
            value = getattr(self, name)
            if value is None and default is None:
                continue
            try:
                object.__setattr__(self, name, rule.check(value))
            except ValueError:
                near: list[str] = []
                if isinstance(rule, Choice) and isinstance(value, str):
                    near = difflib.get_close_matches(value[:60], rule.names, n=1)
                raise SpecError(
                    f"{self.family}: {name} must be {rule.describe()}, got {_shown(value)}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                ) from None
        problem = self.contradiction()
        if problem is not None:
            raise SpecError(f"{self.family}: {problem}")

    # What a family defines.

    @abstractmethod
    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        """The network without its head, and the number of features that it hands to the head.

        Every module must be made on the current default device, change none of its inputs in place
        and take no branch that depends on data, so that ``torch.func.vmap`` can run it.

        Args:
            input: ``(channels, height, width)`` of the pictures.
        """

    def contradiction(self) -> str | None:
        """Why these options cannot go together, or None; called when each is valid by itself."""
        return None

    def place(self, layer: str) -> tuple[str, float] | None:
        """What the layer called ``layer`` does in its network, whatever the network's depth and width.

        Layers of one role have one shape up to their width and may share weights; where a role has several
        layers, the second number is where this one stands among them, from 0 (first) to 1 (last). None where
        a family does not say; such a family cannot be made layer by layer at any depth.
        """
        return None

    @classmethod
    @abstractmethod
    def example_texts(cls) -> tuple[str, ...]:
        """One to three good texts of this family, for docs, ``weightloom info`` and tests."""

    # What every family has.

    @property
    def head_name(self) -> str:
        """Name of the last linear layer, whose rows are the classes."""
        return "head"

    @property
    def resolved(self) -> bool:
        """Whether classes and input are both decided, so that the network can be built."""
        return self.classes is not None and self.input is not None

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The family's options in text order."""
        return tuple(
            Option(
                name=name,
                default=_UNDECIDED if default is None else rule.write(default),
                allowed=rule.describe(),
                help=getattr(rule, "help", ""),
            )
            for name, rule, default in option_rules(cls)
        )

    def __str__(self) -> str:
        """The canonical short text: only the options that differ from their defaults."""
        return self._text(short=True)

    def full_text(self) -> str:
        """The text with every option spelled out; an undecided one reads ``auto``."""
        return self._text(short=False)

    def _text(self, *, short: bool) -> str:
        parts = []
        for name, rule, default in option_rules(type(self)):
            value = getattr(self, name)
            if short and value == default:
                continue
            parts.append(f"{name}={_UNDECIDED if value is None else rule.write(value)}")
        return f"{self.family}({','.join(parts)})" if parts else self.family

    def to_json(self) -> dict[str, Any]:
        """Every option as JSON types, with the family's name; :func:`architecture_from_json` inverts it."""
        answer: dict[str, Any] = {"family": self.family}
        for name, rule, _ in option_rules(type(self)):
            value = getattr(self, name)
            answer[name] = None if value is None else rule.to_json(value)
        return answer

    def resolve(self, *, classes: int | None = None, input: tuple[int, int, int] | None = None) -> Self:
        """This spec with what the task decides filled in; what is None stays undecided.

        Raises:
            SpecError: If the spec already says something else, or the options do not fit the input.
        """
        filled = dataclasses.replace(
            self,
            classes=self.classes if classes is None else classes,
            input=self.input if input is None else input,
        )
        if self.classes not in (None, filled.classes):
            raise SpecError(f"{self} is for {self.classes} classes, but {filled.classes} are asked for")
        if self.input is not None and self.input != filled.input:
            assert filled.input is not None
            asked, own = ("x".join(map(str, shape)) for shape in (filled.input, self.input))
            raise SpecError(f"{self} is for pictures of {own}, but {asked} is asked for")
        return filled

    def build(self) -> TargetNetwork:
        """A new network with torch's default initialisation, on the current default device.

        Draws from the global random state, as every torch module does; see :meth:`initialise`.

        Raises:
            SpecError: If classes or input are undecided, or the network is larger than
                :data:`MAX_PARAMETERS`.
        """
        count = self.num_parameters()
        if count > MAX_PARAMETERS:
            raise SpecError(f"{self} has {count:,} parameters; at most {MAX_PARAMETERS:,} can be built")
        return self._build()

    def _build(self) -> TargetNetwork:
        if self.classes is None or self.input is None:
            missing = " and ".join(name for name in ("classes", "input") if getattr(self, name) is None)
            raise SpecError(f"{self} does not say its {missing}; add it, or resolve it with a task")
        body, width = self.body(self.input)
        return TargetNetwork(body, width, self.classes)

    @with_plain_defaults
    def initialise(self, seed: int) -> TargetNetwork:
        """A new network on the CPU whose weights depend on ``seed`` alone; no global state is changed.

        Specs that differ only in ``classes`` get the same body from the same seed, so that networks
        of tasks with different numbers of classes can share an initialisation.
        """
        seed = check_seed(seed)
        address = dataclasses.replace(self, classes=None).full_text()
        # Only the CPU's generator is used, so only it is seeded and put back (devices=[]).
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed_for("architecture", address, seed))
            return self.build()

    def num_parameters(self) -> int:
        """Number of trainable parameters, counted without allocating any.

        Raises:
            SpecError: If classes or input are undecided.
        """
        return _count(self)


@functools.lru_cache(maxsize=4096)
def _count(spec: ArchitectureSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in spec._build().parameters())


@functools.cache
def option_rules(cls: type[ArchitectureSpec]) -> tuple[tuple[str, Rule, Any], ...]:
    """``(name, rule, default)`` of each option in text order: the family's own first, then the task's."""
    hints = get_type_hints(cls, include_extras=True)
    common = {field.name for field in dataclasses.fields(ArchitectureSpec)}
    ordered = sorted(dataclasses.fields(cls), key=lambda field: field.name in common)  # sorted() is stable
    answer = []
    for field in ordered:
        rule = getattr(hints[field.name], "__metadata__", (None,))[0]
        assert isinstance(rule, Rule), f"{cls.__name__}.{field.name} is not annotated with a rule"
        answer.append((field.name, rule, field.default))
    return tuple(answer)


architectures: Registry[type[ArchitectureSpec]] = Registry("architecture family")
"""Every family by name."""

S = TypeVar("S", bound=ArchitectureSpec)


def architecture(name: str) -> Callable[[type[S]], type[S]]:
    """Class decorator: names a family and registers it."""

    def file(cls: type[S]) -> type[S]:
        cls.family = name
        return architectures.register(name)(cls)

    return file


def architecture_families() -> list[str]:
    """Names of all families, sorted."""
    return architectures.names()


def _tokens(text: str) -> list[str]:
    """The words and marks of ``text``, lower case, closed by an empty one."""
    tokens, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            bad = text[place:].lstrip()[0]
            raise SpecError(f"architecture {_shown(text)} has a stray {bad!r}; {_HINT}")
        tokens.append((match["word"] or match["mark"]).lower())
        place = match.end()
    return [*tokens, ""]


def parse_architecture(text: str) -> ArchitectureSpec:
    """The spec that ``text`` describes: ``family`` or ``family(option=value, ...)``.

    Spaces and case do not matter; ``auto`` leaves classes or input undecided. The inverse of
    ``str(spec)`` and of :meth:`ArchitectureSpec.full_text`.

    Raises:
        SpecError: If the text cannot be read or a value is not allowed.
        UnknownNameError: If no family or option has that name.

    Example:
        >>> parse_architecture("cnn( width = 32, depth=3 )").full_text()
        'cnn(depth=3,width=32,kernel=3,norm=batch,activation=relu,classes=auto,input=auto)'
        >>> parse_architecture("cnn(dept=3)")
        Traceback (most recent call last):
        ...
        weightloom.errors.UnknownNameError: unknown option of cnn 'dept'; did you mean 'depth'?
    """
    if not isinstance(text, str):
        raise SpecError(f"an architecture is a text, not {type(text).__name__}; {_HINT}")
    if len(text) > MAX_TEXT:
        raise SpecError(f"an architecture text has at most {MAX_TEXT:,} characters, this has {len(text):,}")
    tokens = iter(_tokens(text))

    def take(what: str, marks: tuple[str, ...] = (), *, closing: bool = False) -> str:
        """The next token: one of ``marks``, or a word if there are none (or ")", if ``closing``)."""
        token = next(tokens)
        if closing and token == ")":
            return token
        if token not in marks if marks else token in ("(", ")", ",", "=", ""):
            got = _shown(token) if token else "nothing"
            raise SpecError(f"architecture {_shown(text)} has {got} where {what} belongs; {_HINT}")
        return token

    family = take("a family's name")
    cls = architectures.get(family)
    rules = {name: (rule, default) for name, rule, default in option_rules(cls)}
    values: dict[str, Any] = {}
    mark = take("'('", ("(", ""))
    while mark in ("(", ","):
        name = take("an option's name", closing=mark == "(")
        if name == ")":  # "cnn()" is "cnn"
            mark = name
            break
        if name not in rules:
            raise UnknownNameError(f"option of {family}", name, rules)
        if name in values:
            raise SpecError(f"architecture {_shown(text)} gives {name} twice")
        take(f"'=' after {name}", ("=",))
        word = take(f"a value of {name}")
        rule, default = rules[name]
        values[name] = None if word == _UNDECIDED and default is None else rule.read(word)
        mark = take("',' or ')'", (",", ")"))
    if mark == ")":
        take("the end", ("",))
    return cls(**values)


def architecture_from_json(data: Mapping[str, Any]) -> ArchitectureSpec:
    """The spec that :meth:`ArchitectureSpec.to_json` wrote; an option left out has its default.

    Raises:
        SpecError: If ``data`` is not an object with a family, or a value is not allowed.
        UnknownNameError: If no family or option has that name.

    Example:
        >>> str(architecture_from_json({"family": "mlp", "depth": 3}))
        'mlp(depth=3)'
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"an architecture's JSON is an object, not {type(data).__name__}")
    family = data.get("family")
    if not isinstance(family, str):
        raise SpecError('an architecture\'s JSON needs a "family", such as {"family": "cnn"}')
    cls = architectures.get(family)
    known = {name for name, _, _ in option_rules(cls)}
    values = {key: value for key, value in data.items() if key != "family"}
    for key in values:
        if key not in known:
            raise UnknownNameError(f"option of {family}", str(key), known)
    return cls(**values)
