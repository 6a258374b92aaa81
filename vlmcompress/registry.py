"""A lazy registry: names map to classes that are imported when first asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from vlmcompress.errors import UnknownNameError

T = TypeVar("T")


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for `name`: the nearest known name, then all of them."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


class Registry(Generic[T]):
    """Names to classes of one base class.

    An entry is a class or a string `"module:Class"`, imported on first use, so that registering
    costs no import. The base is given the same way.
    """

    def __init__(self, kind: str, base: str) -> None:
        self.kind = kind
        self._base = base
        self._entries: dict[str, str | type[T]] = {}

    def register(self, name: str, entry: str | type[T]) -> None:
        """Add `entry` under `name`.

        Raises:
            UnknownNameError: the name is taken, or a class does not derive from the base.
        """
        if name in self._entries:
            raise UnknownNameError(f"{self.kind} {name!r} is already registered")
        if not isinstance(entry, str):
            self._check(name, entry)
        self._entries[name] = entry

    def get(self, name: str) -> type[T]:
        """The class registered under `name`.

        Raises:
            UnknownNameError: nothing is registered under it; the message suggests the nearest.
        """
        if name not in self._entries:
            raise unknown(self.kind, name, self.names())
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._check(name, _load(entry))
            self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """Registered names in the order of registration."""
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Pairs of name and class; imports every entry."""
        for name in self.names():
            yield name, self.get(name)

    def _check(self, name: str, entry: object) -> type[T]:
        base = _load(self._base)
        if not (isinstance(entry, type) and issubclass(entry, base)):
            raise UnknownNameError(
                f"{self.kind} {name!r} must be a subclass of {base.__name__}, got {entry!r}"
            )
        return cast("type[T]", entry)


def _load(path: str) -> type:
    module, _, attribute = path.partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded
