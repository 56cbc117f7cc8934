"""JSON and YAML at the file border: sizes limited, duplicates refused, one sentence when it fails.

JSON is what we write ourselves, so that a bad file is a :class:`CheckpointError`. YAML is what people
write, so that a bad one is a :class:`SpecError` that names the field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
import yaml

from weightloom.errors import CheckpointError, SpecError, WeightloomError
from weightloom.io.atomic import write_text
from weightloom.io.files import read_bytes
from weightloom.whole import whole_number

JSON_LIMIT = 64 << 20
YAML_LIMIT = 1 << 20

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Recipe(pydantic.BaseModel):
    """The base of what people write: no field that is not known, and whole numbers that are whole.

    A field of type ``int`` takes whole numbers of any type and nothing else: pydantic itself would read
    ``true``, ``"1"`` and ``1.0`` as 1.

    Example:
        >>> class Sizes(Recipe):
        ...     width: int = 8
        >>> Sizes(width=np.int64(3)).width
        3
        >>> Sizes(width="3")
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for Sizes
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        return whole_number(value, "it") if field is not None and field.annotation is int else value


def read_json(path: str | Path, *, limit: int = JSON_LIMIT) -> Any:
    """What a JSON file holds.

    Raises:
        CheckpointError: missing, larger than ``limit`` bytes, or not strict JSON (a duplicate key,
            NaN, an absurd depth).
    """
    return parse_json(path, read_bytes(path, limit=limit))


def parse_json(path: str | Path, text: bytes | str, *, what: str = "text") -> Any:
    """What JSON ``text`` holds; ``path`` and ``what`` are for the error. Raises as :func:`read_json`.

    Example:
        >>> parse_json("index.json", '{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        weightloom.errors.CheckpointError: index.json: its text names 'a' twice
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(path, f"its {what} names {twice[:80]!r} twice")
        return found

    def refuse(constant: str) -> Any:
        raise CheckpointError(path, f"its {what} holds {constant}, which is not JSON")

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(path, f"its {what} is nested too deeply") from None
    except ValueError as error:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        reason = str(error).partition("; use sys.")[0]  # Python's advice on numbers of endless digits
        raise CheckpointError(path, f"its {what} is not JSON ({reason})") from error


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON text; equal values give equal text (keys are sorted).

    Paths become text and numpy scalars become numbers.

    Raises:
        WeightloomError: a value that JSON cannot hold (NaN, infinity, an object).

    Example:
        >>> dump_json({"b": np.float64(0.5), "a": [1, None]})
        '{"a": [1, null], "b": 0.5}'
    """

    def plain(item: Any) -> Any:
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"a {type(item).__name__} is not JSON")

    try:
        text = json.dumps(
            value, default=plain, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=True
        )
        text.encode("utf-8")  # half of a surrogate pair is text to Python and to nobody else
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightloomError(f"this cannot be written as JSON: {error}") from error
    return text


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> None:
    """Write ``value`` as JSON (as :func:`dump_json` does), atomically.

    Raises:
        WeightloomError: a value that JSON cannot hold, or a failed write.
        InputError: nothing can be written at this place.
    """
    try:
        text = dump_json(value, indent=1)
    except WeightloomError as error:
        raise WeightloomError(f"cannot write {path}: {error}") from error
    write_text(path, text + "\n", durable=durable)


def read_yaml(path: str | Path, model: type[Model], *, limit: int = YAML_LIMIT) -> Model:
    """A YAML file as a checked ``model``.

    Raises:
        CheckpointError: the file cannot be read or has more than ``limit`` bytes.
        SpecError: it is not YAML, or a field is missing, unknown or has a bad value.
    """
    data = read_bytes(path, limit=limit)
    try:
        value = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{path}{where}: {problem}") from error
    except RecursionError:
        raise SpecError(f"{path}: nested too deeply") from None
    except ValueError as error:  # not UTF-8; a date that does not exist
        raise SpecError(f"{path}: is not YAML ({error})") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: holds {type(value).__name__} where fields with values are expected")
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise SpecError(f"{path}: {_first_fault(error)}") from error


class _StrictLoader(yaml.SafeLoader):
    """Plain values only; no anchors (nine lines of them can stand for a billion), no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a field has a list or more for a name"
            elif key.value in seen:
                problem = f"field {key.value[:80]!r} is there twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _first_fault(error: pydantic.ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        text = f"field {field!r} is missing"
    elif first["type"] == "extra_forbidden":
        text = f"field {field!r} is not known"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"field {field!r}: {message}" if field else message
        if isinstance(first["input"], str | int | float):
            text += f" (found {str(first['input'])[:80]!r})"
    return text + (f"; and {len(faults) - 1} more" if len(faults) > 1 else "")
