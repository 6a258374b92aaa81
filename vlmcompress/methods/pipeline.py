"""Methods put together: what a spec such as "divprune+fastv(k=3)" means."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any

from vlmcompress.errors import BudgetError, CompositionError, UnknownNameError, VLMCompressError
from vlmcompress.methods import METHODS, DecoderMethod, Method, ProjectorMethod
from vlmcompress.methods.base import mean_tokens, tokens_per_layer
from vlmcompress.methods.checks import check_types
from vlmcompress.registry import unknown
from vlmcompress.tokens import Grid, Layout

_EXAMPLE = 'write for example "divprune", "divprune+fastv" or "divprune(ratio=0.1)+fastv(k=3)"'
_PART = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class ImagePlan:
    """How many visual tokens of one image or clip are kept, and where; known before the run."""

    parts: tuple[tuple[Grid, int], ...]
    """The grids that the projector method is given one by one, and the tokens it keeps of each."""
    schedule: dict[int, int]
    """Decoder layer -> tokens that enter it and all later ones; empty without a decoder method."""
    layers: int
    """Decoder layers."""

    @property
    def keep(self) -> int:
        """Tokens that enter the decoder."""
        return sum(kept for _, kept in self.parts)

    @property
    def per_layer(self) -> list[int]:
        """Tokens that enter each decoder layer."""
        return tokens_per_layer(self.layers, self.keep, self.schedule)

    @property
    def mean(self) -> float:
        """True mean over decoder layers: what a budget is about."""
        return mean_tokens(self.layers, self.keep, self.schedule)


@dataclass(frozen=True)
class Pipeline:
    """At most one method per stage.

    Composition rule: each method keeps the proportions of its paper's default. Let s be the mean
    over layers of the share that the decoder method's default schedule keeps of the tokens it is
    given. For a budget the projector method is asked for min(N, round(budget / s)) tokens, and the
    decoder schedule is then solved for the budget from the number really kept. Without a budget
    each method uses its own default.
    """

    projector: ProjectorMethod | None
    decoder: DecoderMethod | None

    @property
    def methods(self) -> tuple[Method, ...]:
        """In the order in which an image meets them."""
        return tuple(m for m in (self.projector, self.decoder) if m is not None)

    @property
    def name(self) -> str:
        """For example "divprune+fastv"."""
        return "+".join(method.name for method in self.methods)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `VisualTokens` that have to be collected."""
        return frozenset().union(*(method.needs for method in self.methods))

    def plan(
        self, layout: Layout | Grid, layers: int, budget: float | None, per_frame: bool = False
    ) -> ImagePlan:
        """Counts for one image. Several grids share a budget in proportion to their tokens.

        Args:
            layout: of its visual tokens.
            layers: of the decoder.
            budget: mean over decoder layers of the image's visual tokens; None for the defaults.
            per_frame: the projector method meets each temporal step by itself and keeps the same
                number of each. The decoder method ranks a clip as a whole all the same.

        Raises:
            BudgetError: the budget is no finite number of 0 or more, cannot be met, is given to a
                method that takes none, or is missing for a method without a default.
        """
        if budget is not None:
            self._check_budget(budget)
        split = per_frame and steps(layout) > 1
        grids, total, ask = _parts(layout, split), len(layout), budget
        kept = [len(grid) for grid in grids]
        if self.projector is not None:
            if budget is not None and self.decoder is not None:
                default = self.decoder.schedule(layers, total, None)
                ask = _before_decoder(budget, total, mean_tokens(layers, total, default))
            shares = _shares(ask, kept, even=split)
            kept = [self.projector.keep_count(*one) for one in zip(grids, shares, strict=True)]
        schedule = {} if self.decoder is None else self.decoder.schedule(layers, sum(kept), budget)
        return ImagePlan(tuple(zip(grids, kept, strict=True)), schedule, layers)

    def _check_budget(self, budget: float) -> None:
        if not (math.isfinite(budget) and budget >= 0):
            raise BudgetError(f"a budget is a number of tokens of 0 or more, got {budget}")
        for method in self.methods:
            if not method.takes_budget:
                raise BudgetError(
                    f"{method.name} {method.summary} and takes no budget, got {budget:g}"
                )


def parse(spec: str | Method | Sequence[Method], /, **options: Any) -> Pipeline:
    """The pipeline that `spec` describes.

    Args:
        spec: a text such as "divprune", "divprune+fastv" or "divprune(ratio=0.1)+fastv(k=3)" with
            Python literals as values; a method; or several. The order does not matter.
        options: each goes to the one method that has a field of this name.

    Raises:
        UnknownNameError: a method or option that does not exist; suggests the nearest.
        CompositionError: two methods at one stage, a method that goes with no other, or an option
            that several methods have.
        VLMCompressError: a malformed spec, or a value of the wrong type or out of range.
    """
    if isinstance(spec, str):
        parts = [_read(text) for text in _split(spec)]
    else:
        methods = [spec] if isinstance(spec, Method) else spec
        if not isinstance(methods, Sequence) or not all(isinstance(m, Method) for m in methods):
            raise VLMCompressError(f"{spec!r} is no method and no sequence of methods: {_EXAMPLE}")
        parts = [_Part(type(method), {}, method) for method in methods]
    _check_composition([part.method for part in parts])
    for option, value in options.items():
        part = _owner(parts, option)
        if option in part.options:
            raise CompositionError(f"{part.method.name}: {option} is given twice")
        part.options[option] = value
    built = [part.build() for part in parts]
    return Pipeline(
        next((method for method in built if isinstance(method, ProjectorMethod)), None),
        next((method for method in built if isinstance(method, DecoderMethod)), None),
    )


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


def steps(layout: Layout | Grid) -> int:
    """Temporal steps of a clip; an image is one, in however many grids it is laid out."""
    times = [grid.t for grid in _parts(layout)]
    return sum(times) if max(times) > 1 else 1


def _parts(layout: Layout | Grid, split: bool = False) -> tuple[Grid, ...]:
    """The grids of a layout, or those of its temporal steps."""
    grids = (layout,) if isinstance(layout, Grid) else layout.parts
    return tuple(Grid(1, g.h, g.w) for g in grids for _ in range(g.t)) if split else grids


def _shares(ask: float | None, sizes: Sequence[int], even: bool) -> Sequence[float | None]:
    """`ask` tokens over parts of the given sizes, in whole tokens where there are several."""
    if ask is None:
        return [None] * len(sizes)
    if len(sizes) == 1:
        return [ask]
    if even:
        return [round(ask / len(sizes))] * len(sizes)
    ends = [round(ask * end / sum(sizes)) for end in accumulate(sizes)]
    return [end - start for start, end in pairwise([0, *ends])]


def _before_decoder(budget: float, tokens: int, default_mean: float) -> int:
    """Tokens to ask the projector method for, so that the decoder method can do its default."""
    return min(tokens, round(budget * tokens / default_mean)) if tokens else 0


def _check_composition(methods: Sequence[type[Method]]) -> None:
    if not methods:
        raise VLMCompressError(f"no method given: {_EXAMPLE}")
    names = "+".join(str(getattr(method, "name", method)) for method in methods)
    for method in methods:
        if not issubclass(method, ProjectorMethod | DecoderMethod):
            raise CompositionError(f"{names}: {method!r} is no projector or decoder method")
        if len(methods) > 1 and not method.takes_budget:
            raise CompositionError(
                f"{names}: {method.name} {method.summary}, so it goes with no other method"
            )
    for base, stage in ((ProjectorMethod, "projector"), (DecoderMethod, "decoder")):
        same = [method.name for method in methods if issubclass(method, base)]
        if len(same) > 1:
            raise CompositionError(
                f"{names}: {' and '.join(same)} both act at the {stage} stage; one is possible"
            )


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


def _split(spec: str) -> list[str]:
    """The parts between the plus signs that are not inside parentheses."""
    parts, depth = [""], 0
    for letter in spec:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _read(text: str) -> _Part:
    """A part such as "fastv(k=3)"."""
    match = _PART.fullmatch(text)
    if match is None:
        raise VLMCompressError(f"cannot read the method {text.strip()!r}: {_EXAMPLE}")
    method = METHODS.get(match[1])
    options = _literals(match[2] or "", text)
    for option in options:
        if option not in _options(method):
            raise _no_option([method.name], option, _options(method))
    return _Part(method, options)


def _literals(arguments: str, text: str) -> dict[str, Any]:
    malformed = VLMCompressError(f"cannot read the options of {text.strip()!r}: {_EXAMPLE}")
    try:
        call = ast.parse(f"_({arguments})", mode="eval").body
        # "a=1)(b=2" parses too, as a call of a call.
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise malformed
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
        # Fewer where a name came twice or "**" hid one.
        if len(options) != len(call.keywords):
            raise malformed
        return options
    except VLMCompressError:
        raise
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise malformed from error
