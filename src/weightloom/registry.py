"""A tiny typed registry: names to things, filled by the file that defines the thing.

There is no central list. A package calls :func:`discover` on itself once, which imports its
modules, and every module registers what it defines. Knows nothing of what is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Generic, TypeVar

from weightloom.errors import UnknownNameError

T = TypeVar("T")
U = TypeVar("U")


class Registry(Generic[T]):
    """Names to things of one kind.

    Example:
        >>> colours: Registry[int] = Registry("colour")
        >>> @colours.register("red")
        ... def red() -> int: ...
        >>> colours.names()
        ['red']
        >>> colours.get("read")
        Traceback (most recent call last):
        ...
        weightloom.errors.UnknownNameError: unknown colour 'read'; did you mean 'red'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator that files a thing under ``name``; a second thing under it is our own mistake."""

        def file(thing: U) -> U:
            assert name not in self._things, f"{self.kind} {name!r} is registered twice"
            self._things[name] = thing  # type: ignore[assignment]
            return thing

        return file

    def get(self, name: str) -> T:
        """The thing called ``name``. Raises :class:`UnknownNameError` with the nearest names."""
        try:
            return self._things[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._things) from None

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._things)

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def discover(package: ModuleType) -> None:
    """Import every module of ``package`` so that each can register what it defines."""
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")
