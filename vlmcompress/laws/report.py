"""What `check` found, for a person and for a program."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["holds", "void", "FAILS"]
_WIDTH = 79
_HEAD = ("law", "method", "result", "figure", "allowed")


@dataclass(frozen=True)
class LawResult:
    """One law of one medium, for one method where it is about a method."""

    medium: str
    """"image" or "video"."""
    law: str
    method: str | None
    state: State
    """"void" where it cannot be asked, because the bare model does not keep it, or there is no such
    stage."""
    figure: float | None
    """What was measured; None where nothing was."""
    allowed: float
    """The most that the figure may be, or for a law that asks for a difference the least."""
    at_least: bool = False
    """Whether `allowed` is the least."""
    reason: str | None = None
    """Why it is void, or what is wrong."""


@dataclass(frozen=True)
class CheckReport:
    """All laws that were asked of a model."""

    model_type: str
    class_name: str
    dtype: str
    device: str
    attention: str
    """The attention implementation."""
    standing: str
    """How well the type is known: "tested", or "by structure" and why."""
    results: list[LawResult]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether no law fails."""
        return not self.failed

    @property
    def failed(self) -> list[LawResult]:
        """The laws that do not hold."""
        return [result for result in self.results if result.state == "FAILS"]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values."""
        return {"holds": self.holds, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        told = (
            f"{self.model_type} ({self.class_name}), {self.dtype}, {self.device}, "
            f"{self.attention} attention; {self.standing}"
        )
        lines = textwrap.wrap(told, _WIDTH)
        for medium in dict.fromkeys(result.medium for result in self.results):
            lines += ["", *_table([one for one in self.results if one.medium == medium], medium)]
        return "\n".join([*lines, "", *textwrap.wrap(self._verdict(), _WIDTH)])

    def _verdict(self) -> str:
        count, void = len(self.results), sum(one.state == "void" for one in self.results)
        asked = f"{count - void} laws asked, {void} void"
        if self.holds:
            return f"All hold: {asked}, {self.seconds:.1f} s."
        return f"{len(self.failed)} FAIL: {asked}, {self.seconds:.1f} s."


def _table(results: list[LawResult], medium: str) -> list[str]:
    head = (f"{_HEAD[0]} ({medium})", *_HEAD[1:])
    rows = [_cells(result) for result in results]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [_line(head, widths)]
    for result, row in zip(results, rows, strict=True):
        lines.append(_line(row, widths))
        if result.reason is not None:
            indent = " " * 4
            lines += textwrap.wrap(
                result.reason, _WIDTH, initial_indent=indent, subsequent_indent=indent
            )
    return lines


def _cells(result: LawResult) -> tuple[str, ...]:
    figure = "-" if result.figure is None else f"{result.figure:.3g}"
    sign = ">" if result.at_least else ""
    return result.law, result.method or "-", result.state, figure, f"{sign}{result.allowed:.3g}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*left, *right]).rstrip()
