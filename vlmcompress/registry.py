"""Lazy registries: names map to classes that are imported when first asked for.

Other installed packages add names through entry points. These are looked up where a name is not
built in, or where all names are listed, and never when vlmcompress is imported.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from vlmcompress.errors import PlugInError, UnknownNameError, VLMCompressError
from vlmcompress.files.untrusted import short

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for `name`: the nearest known name, then all of them."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {short(name)}: {hint}known: {', '.join(known)}")


class PlugIns:
    """What other installed packages offer under one group of entry points.

    The packages are searched once, at the first call of `names`.
    """

    def __init__(self, kind: str, group: str) -> None:
        """Take note of what to search for.

        Args:
            kind: what an entry point gives, for messages: "method".
            group: of the entry points: "vlmcompress.methods".
        """
        self.kind, self.group = kind, group
        self._entries: dict[str, list[EntryPoint]] | None = None

    def names(self, taken: Collection[str]) -> list[str]:
        """Names that other packages add to those that are `taken`, as the packages are found.

        A package that offers a taken name does not get it; a UserWarning says so once.
        """
        if self._entries is None:
            from importlib.metadata import entry_points  # not needed for built-in names

            self._entries = {}
            for entry in entry_points(group=self.group):
                self._entries.setdefault(entry.name, []).append(entry)
            for name in (name for name in self._entries if name in taken):
                warnings.warn(
                    f"{self.kind} {name!r} of {self._packages(name)} is not used: "
                    f"vlmcompress has a {self.kind} of this name",
                    stacklevel=2,
                )
        return [name for name in self._entries if name not in taken]

    def package_of(self, name: str) -> str:
        """The package, or packages, that offer one of `names`."""
        return " and ".join(dict.fromkeys(map(_package, (self._entries or {})[name])))

    def load(self, name: str, accept: Callable[[object], T]) -> T:
        """What the package offers under one of `names`.

        Args:
            name: one of `names`.
            accept: checks what was loaded and may make something of it; what it raises counts as a
                fault of the package.

        Raises:
            PlugInError: it cannot be imported or is not accepted, or several packages offer it.
        """
        first, *more = (self._entries or {})[name]
        if more:
            raise PlugInError(
                f"{self.kind} {name!r} is offered by {self._packages(name)}: uninstall all but one"
            )
        try:
            return accept(first.load())
        except Exception as error:  # whatever happens while foreign code is imported
            told = "" if isinstance(error, VLMCompressError) else f"{type(error).__name__}: "
            raise PlugInError(
                f"{self.kind} {name!r} of {self._packages(name)} does not work "
                f"(entry point {first.value!r}): {told}{' '.join(str(error).split())}"
            ) from error

    def _packages(self, name: str) -> str:
        found = self.package_of(name)
        return f"the packages {found}" if " and " in found else f"the package {found}"


class Registry(Generic[T]):
    """Names to classes of one base class.

    An entry is a class or a string `"module:Class"`, imported on first use, so that registering
    costs no import. The base is given the same way.
    """

    def __init__(
        self, kind: str, base: str, group: str | None = None, reserved: Collection[str] = ()
    ) -> None:
        """Make an empty registry.

        Args:
            kind: what is registered, for messages.
            base: `"module:Class"`.
            group: of the entry points with which other packages add names; None if they may not.
            reserved: names that mean something else already.
        """
        self.kind = kind
        self._base = base
        self._reserved = frozenset(reserved)
        self._entries: dict[str, str | type[T]] = {}
        self._plug_ins = None if group is None else PlugIns(kind, group)
        self._plugged: dict[str, type[T]] = {}

    def register(self, name: str, entry: str | type[T]) -> None:
        """Add `entry` under `name`.

        Raises:
            UnknownNameError: the name is taken, or a class does not derive from the base.
        """
        if name in self._entries or name in self._reserved:
            raise UnknownNameError(f"{self.kind} {name!r} is already registered")
        if not isinstance(entry, str):
            self._check(name, entry)
        self._entries[name] = entry

    def get(self, name: str) -> type[T]:
        """The class registered under `name`, or that another package offers under it.

        Raises:
            UnknownNameError: there is none; the message suggests the nearest.
            PlugInError: the package that offers it is broken.
        """
        if name not in self:
            raise unknown(self.kind, name, self.names())
        if name not in self._entries:
            return self._from_package(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._check(name, _load(entry))
            self._entries[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        """Whether `get` knows the name; other packages are looked at for unregistered ones only."""
        return name in self._entries or name in self._others()

    def names(self) -> list[str]:
        """Registered names in the order of registration, then those of other packages."""
        return [*self._entries, *self._others()]

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Pairs of name and class; imports every entry. A broken package is left out and warned of.

        Raises:
            ImportError: an entry that was registered cannot be imported.
        """
        for name in list(self._entries):
            yield name, self.get(name)
        for name in self._others():
            try:
                found = self.get(name)
            except PlugInError as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            yield name, found

    def package_of(self, name: str) -> str | None:
        """The other package that offers `name`; None for what is registered, or by nobody."""
        if self._plug_ins is None or name not in self._others():
            return None
        return self._plug_ins.package_of(name)

    def _others(self) -> list[str]:
        if self._plug_ins is None:
            return []
        return self._plug_ins.names(self._entries.keys() | self._reserved)

    def _from_package(self, name: str) -> type[T]:
        assert self._plug_ins is not None
        if name not in self._plugged:
            self._plugged[name] = self._plug_ins.load(name, lambda found: self._whole(name, found))
        return self._plugged[name]

    def _check(self, name: str, entry: object) -> type[T]:
        base = _load(self._base)
        if not (isinstance(entry, type) and issubclass(entry, base)):
            raise UnknownNameError(
                f"{self.kind} {name!r} must be a subclass of {base.__name__}, got {entry!r}"
            )
        return cast("type[T]", entry)

    def _whole(self, name: str, entry: object) -> type[T]:
        """The class of another package, which nobody has tested here, with nothing missing."""
        found = self._check(name, entry)
        missing = [
            attribute
            for kind in found.__mro__
            for attribute, annotation in inspect.get_annotations(kind).items()
            if "ClassVar" in str(annotation) and not hasattr(found, attribute)
        ]
        missing += sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise UnknownNameError(f"{found.__name__} does not define {', '.join(missing)}")
        return found


def _package(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else entry.dist.name


def _load(path: str) -> type:
    module, _, attribute = path.partition(":")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded
