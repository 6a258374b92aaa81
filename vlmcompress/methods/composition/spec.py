"""What a spec such as "divprune+fastv(k=3)" means."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vlmcompress.defaults import AUTO
from vlmcompress.errors import CompositionError, UnknownNameError, VLMCompressError
from vlmcompress.files.untrusted import short
from vlmcompress.methods import Method
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.contracts.options import check_types
from vlmcompress.methods.registry import COMPOSITIONS, METHODS
from vlmcompress.registry import unknown

_EXAMPLE = 'write for example "divprune", "divprune+fastv" or "divprune(ratio=0.1)+fastv(k=3)"'
_LONGEST = 10_000
_NOTHING = frozenset({"none", "no", "off", "null", "nothing", "baseline", "vanilla", "original"})
"""What people call a model that is left alone."""
_PART = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def parse(spec: str | Method | Sequence[Method] | None, /, **options: Any) -> Pipeline:
    """The pipeline that `spec` describes.

    Args:
        spec: a text such as "divprune", "divprune+fastv" or "divprune(ratio=0.1)+fastv(k=3)" with
            Python literals as values, "restore(divprune)" for a method around another; a method; or
            several. The order does not matter.
        options: each goes to the one method that has a field of this name.

    Raises:
        UnknownNameError: a method or option that does not exist; suggests the nearest.
        CompositionError: two methods at one stage, a method that goes with no other, or an option
            that several methods have.
        VLMCompressError: a malformed spec, or a value of the wrong type or out of range.
    """
    if isinstance(spec, str):
        if len(spec) > _LONGEST:
            raise VLMCompressError(f"the method has more than {_LONGEST} letters: {_EXAMPLE}")
        parts = [part for text in split(spec, "+") for part in _read(text)]
    else:
        methods = () if spec is None else [spec] if isinstance(spec, Method) else spec
        if not isinstance(methods, Sequence) or not all(isinstance(m, Method) for m in methods):
            raise VLMCompressError(f"{spec!r} is no method and no sequence of methods: {_EXAMPLE}")
        parts = [_Part(type(method), {}, method) for method in methods]
    if not parts:
        raise VLMCompressError(f"no method given: {_EXAMPLE}")
    _give(parts, options)
    return Pipeline.of([part.build() for part in parts])


@dataclass
class _Part:
    """A method of a spec before its options are complete."""

    method: type[Method]
    options: dict[str, Any]
    instance: Method | None = None

    def build(self) -> Method:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}
        check_types(self.method, values)
        if self.instance is not None:
            return replace(self.instance, **values)
        return self.method(**values)


def _give(parts: Sequence[_Part], options: Mapping[str, Any]) -> None:
    """Hand each option to the one method that has it."""
    for option, value in options.items():
        part = _owner(parts, option)
        _check_once(part.method.name, option, part.options)
        part.options[option] = value


def _owner(parts: Sequence[_Part], option: str) -> _Part:
    """The one part whose method has the option."""
    owners = [part for part in parts if option in _options(part.method)]
    if len(owners) > 1:
        names = [part.method.name for part in owners]
        raise CompositionError(
            f"{' and '.join(names)} both have the option {option!r}: say which, for example "
            f'"{names[0]}({option}=...)+{names[1]}"'
        )
    if not owners:
        names = [part.method.name for part in parts]
        raise _no_option(names, option, [o for part in parts for o in _options(part.method)])
    return owners[0]


def _options(method: type[Method]) -> list[str]:
    return [field.name for field in fields(method) if field.init]


def _no_option(names: list[str], option: str, known: list[str]) -> UnknownNameError:
    if not known:
        return UnknownNameError(f"{'+'.join(names)} has no options, got {option!r}")
    return unknown(f"option of {'+'.join(names)}", option, list(dict.fromkeys(known)))


def split(text: str, separator: str) -> list[str]:
    """The parts between separators, of one letter, that are not inside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _read(text: str) -> list[_Part]:
    """A part such as "fastv(k=3)"; several for the name of a composition."""
    text, inner = _unwrapped(text)
    called, options = read_call(text)
    if inner is not None:
        _check_once(called, "of", options)
        options["of"] = inner
    if called in COMPOSITIONS:
        parts = [part for name in split(COMPOSITIONS[called], "+") for part in _read(name)]
        _give(parts, options)
        return parts
    if called in _NOTHING and called not in METHODS:
        raise UnknownNameError(
            f"unknown method {called!r}: 'full' keeps all visual tokens, 'text-only' none"
        )
    if called == AUTO:
        raise CompositionError(
            f"{AUTO} chooses methods for all stages, so it goes with no other and has no options: "
            f'give "{AUTO}" alone'
        )
    if called not in METHODS:
        raise unknown("method", called, [*METHODS.names(), *COMPOSITIONS])
    method = METHODS.get(called)
    for option in options:
        if option not in _options(method):
            raise _no_option([method.name], option, _options(method))
    return [_Part(method, options)]


def _unwrapped(text: str) -> tuple[str, str | None]:
    """A call of a method that goes around another: without that one's spec, and the spec."""
    match = _PART.fullmatch(text)
    if match is None or match[1] not in METHODS or not METHODS.get(match[1]).wraps:
        return text, None
    first, *rest = split(match[2] or "", ",")
    if not first.strip() or "=" in first.partition("(")[0]:
        return text, None
    return f"{match[1]}({','.join(rest)})", first.strip()


def _check_once(name: str, option: str, given: Mapping[str, Any]) -> None:
    if option in given:
        raise CompositionError(f"{name}: {option} is given twice")


def read_call(
    text: str, kind: str = "method", example: str = _EXAMPLE
) -> tuple[str, dict[str, Any]]:
    """Name and options of a text such as "fastv(k=3)", with Python literals as values.

    Args:
        text: what was given.
        kind: of what it names, for messages.
        example: for messages, too.

    Raises:
        VLMCompressError: it cannot be read.
    """
    match = _PART.fullmatch(text)
    if match is None:
        raise VLMCompressError(f"cannot read the {kind} {short(text.strip())}: {example}")
    return match[1], _literals(match[2] or "", text, example)


def _literals(arguments: str, text: str, example: str) -> dict[str, Any]:
    malformed = VLMCompressError(f"cannot read the options of {short(text.strip())}: {example}")
    whole = f"_({arguments})"
    try:
        call = ast.parse(whole, mode="eval").body
        # "a=1)(b=2" parses too, as a call of a call.
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise malformed
        options = {k.arg: _literal(k.value, k.arg, text, whole) for k in call.keywords if k.arg}
        # Fewer where a name came twice or "**" hid one.
        if len(options) != len(call.keywords):
            raise malformed
        return options
    except VLMCompressError:
        raise
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise malformed from error


def _literal(given: ast.expr, name: str, text: str, call: str) -> Any:
    """The value of an option. Most often what is none is a text, such as a file, without quotes."""
    try:
        return ast.literal_eval(given)
    except ValueError as error:
        if not isinstance(given, ast.Name | ast.Attribute | ast.BinOp):
            raise
        words = short(ast.get_source_segment(call, given) or "")
        raise VLMCompressError(
            f"cannot read the options of {short(text.strip())}: a text needs quotes, "
            f"as in {short(name)[1:-1]}={words}"
        ) from error
