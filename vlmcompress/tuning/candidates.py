"""What races: methods, their main options, and compositions."""

from __future__ import annotations

from collections.abc import Iterator

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.registry import COMPOSITIONS, METHODS

OPTIONS = (
    "tome(stage='projector')",
    "pitome(stage='projector')",
    "mctf(stage='projector')",
    "cdpruner(negate=False)",
    "psigmoid(rows='last')",
    "ppllava(repair='window')",
    "ppllava(repair='count')",
    "fastv(k=1)",
)
"""Options that change what a method keeps: its stage, how a paper is read, which rows rank."""

MODIFIED = ("restore(divprune)", "restore(scope)")
"""Selectors with a modifier around them."""

COMPOSED = (
    "divprune+fastv",
    "scope+fastv",
    "mmtok+fastv",
    "cdpruner(negate=False)+fastv",
    "mctf(stage='projector')+fastv",
    "scope+pyramiddrop",
    "mmtok+pyramiddrop",
    "cdpruner(negate=False)+pyramiddrop",
    "mctf(stage='projector')+pyramiddrop",
    "scope+adaptinfer",
    "pitome+divprune+adaptinfer",
    "unit-drop+divprune",
)
"""What selects well before the decoder, with what ranks well inside it."""


def candidates(question_blind: bool = False) -> list[str]:
    """Every registered method that meets budgets, other packages' too, then papers of several
    stages, `OPTIONS`, `MODIFIED` and `COMPOSED`.

    A model runs not all of them; what it refuses leaves the race at its first batch.

    Args:
        question_blind: only those that keep the same whatever is asked.
    """
    found = [spec for spec in _every() if takes_budget(spec)]
    return [one for one in found if not question_blind or not parse(one).reads_question]


def takes_budget(spec: str) -> bool:
    """Whether it can be built without being told more, and keeps to a budget.

    A method that needs a table of the very model is left out, and so is what defines its own count.
    """
    try:
        return all(method.takes_budget for method in parse(spec).methods)
    except VLMCompressError:
        return False


def _every() -> Iterator[str]:
    yield from METHODS.names()
    yield from COMPOSITIONS
    yield from OPTIONS
    yield from MODIFIED
    yield from COMPOSED
