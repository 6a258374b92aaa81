"""Checks that several methods share: types of options, cuts and budgets that can be met."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vlmcompress.errors import VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.methods.contracts.method import Method

TEMPERATURE = "[1e-6, inf)"
"""What a softmax or a power may be divided by: by less float32 makes infinities and NaN of it."""


def check_types(method: type[Any], values: Mapping[str, object]) -> None:
    """Compare `values` with the annotations of the fields of `method`, or of what else has a name.

    Raises:
        VLMCompressError: a value is of another type; the message names field, type and value.
    """
    hints = get_type_hints(method)
    for field in fields(method):
        if field.name in values and not _fits(values[field.name], hints[field.name]):
            raise VLMCompressError(
                f"{method.name}: {field.name} must be {_describe(hints[field.name])}, "
                f"got {short(values[field.name])}"
            )


def check_fields(method: Method, **ranges: str) -> None:
    """Types of all fields, and ranges of some: `check_fields(self, ratio="(0, 1]")`.

    Args:
        method: whose fields they are.
        ranges: field -> interval in the usual notation, a round bracket for a bound that is itself
            left out. What is infinite is never inside.

    Raises:
        VLMCompressError: a field is of another type or outside; the message names it.
    """
    check_types(type(method), vars(method))
    for name, interval in ranges.items():
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        value = getattr(method, name)
        above = value > low if interval[0] == "(" else value >= low
        below = value < high if interval[-1] == ")" else value <= high
        if not (above and below):
            raise VLMCompressError(
                f"{method.name}: {name} must be {_words(interval, low, high)}, got {value}"
            )


def _words(interval: str, low: float, high: float) -> str:
    if interval[0] + interval[-1] == "[]":
        return f"from {low:g} to {high:g}"
    lower = f"above {low:g}" if interval[0] == "(" else f"{low:g} or more"
    if math.isinf(high):
        return lower
    upper = f"below {high:g}" if interval[-1] == ")" else f"at most {high:g}"
    return f"{lower} and {upper}"


def _fits(value: object, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple and args[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if hint in (int, float) and (isinstance(value, bool) or _is_huge(value)):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_huge(value: object) -> bool:
    """An integer that neither a tensor nor a float can hold."""
    return isinstance(value, int) and abs(value) >= 2**63


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a tuple of {_describe(args[0])}"
    words = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    return words.get(hint, "None" if hint is type(None) else str(hint))
