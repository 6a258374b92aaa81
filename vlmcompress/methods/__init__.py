"""Token-reduction methods by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, TypeVar

from vlmcompress.errors import CompositionError, VLMCompressError
from vlmcompress.methods.contracts.decoder import DecoderMethod, DecoderReducer
from vlmcompress.methods.contracts.layer_view import LayerView
from vlmcompress.methods.contracts.method import Method, ProjectorMethod, Reducer, Selector, Stage
from vlmcompress.methods.registry import METHODS

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class MethodInfo:
    """What a table says about a method."""

    name: str
    stages: frozenset[Stage]
    needs: frozenset[str]
    paper: str
    summary: str
    options: Mapping[str, object]
    """Option -> its default, the paper's; "required" where a method of a user has none."""
    package: str | None = None
    """The other installed package that it comes from; None for built-in and registered methods."""


def list_methods() -> list[MethodInfo]:
    """All registered methods in the order of registration, then those of other packages.

    A package whose method cannot be loaded is left out; a UserWarning says what is wrong with it.
    """
    return [
        MethodInfo(
            name,
            cls.stages,
            cls.needs,
            cls.paper,
            cls.summary,
            {f.name: _default(f) for f in fields(cls)},
            METHODS.package_of(name),
        )
        for name, cls in METHODS.items()
    ]


def _default(option: Field[Any]) -> object:
    """As a table shows it; methods of this package have one for every option."""
    if option.default_factory is not MISSING:
        return option.default_factory()
    return "required" if option.default is MISSING else option.default


def get_method(name: str, **options: Any) -> Method:
    """One method by name or spec, for calling it by hand.

    Args:
        name: such as "divprune" or "divprune(ratio=0.1)".
        options: fields of the method.

    Raises:
        VLMCompressError: see `vlmcompress.methods.composition.spec.parse`; also for a composition.
    """
    # It needs the registry above.
    from vlmcompress.methods.composition.spec import parse

    pipeline = parse(name, **options)
    if len(pipeline.methods) > 1:
        raise CompositionError(f"{name!r} is several methods; get_method gives one at a time")
    return pipeline.methods[0]


def register_method(cls: type[M], name: str | None = None) -> type[M]:
    """Add a user's own method, also as a decorator; it then works wherever a name does.

    Args:
        cls: a frozen dataclass that derives from `Selector`, `Reducer` or `DecoderMethod`.
        name: if it is to differ from `cls.name`.

    Raises:
        VLMCompressError: the name is malformed or taken, or the class is not a method.
    """
    name = getattr(cls, "name", None) if name is None else name
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w-]*", name)):
        raise VLMCompressError(
            f"{cls.__name__} needs a name of letters, digits, '-' and '_', got {name!r}"
        )
    METHODS.register(name, cls)
    return cls


__all__ = [
    "METHODS",
    "DecoderMethod",
    "DecoderReducer",
    "LayerView",
    "Method",
    "MethodInfo",
    "ProjectorMethod",
    "Reducer",
    "Selector",
    "get_method",
    "list_methods",
    "register_method",
]
