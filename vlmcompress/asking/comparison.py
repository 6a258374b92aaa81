"""Answers of several settings side by side."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from vlmcompress.asking.answer import Answer
from vlmcompress.report.numbers import mean_text

_HEADS = ("method", "answer", "tokens", "mean over layers", "prefill ms", "total ms", "as fast")


@dataclass(frozen=True)
class Comparison:
    """The answer on all visual tokens, then those on fewer; a sequence of `Answer`."""

    answers: Sequence[Answer]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Settings that could not be run, and why."""

    def rows(self) -> list[list[str]]:
        """A row of cells for each answer, under `method`, `answer`, `tokens` and the times."""
        full = self.answers[0].milliseconds["total"]
        return [
            [
                one.setting.name,
                one.answer or "(empty)",
                f"{one.before} -> {one.after}",
                mean_text(one.mean),
                f"{one.milliseconds['prefill']:.1f}",
                f"{one.milliseconds['total']:.1f}",
                f"{full / one.milliseconds['total']:.2f}",
            ]
            for one in self.answers
        ]

    def reasons(self) -> dict[str, str]:
        """What "auto" took in each setting that asks for it, and why."""
        given = {one.setting.name: one.report.reason for one in self.answers}
        return {name: reason for name, reason in given.items() if reason is not None}

    def changed(self) -> str:
        """In one line, what changed: which settings answer otherwise than all tokens do."""
        first, *others = self.answers
        other = [f"{one.setting.name} ({one.answer or 'empty'})" for one in others]
        other = [
            text for one, text in zip(others, other, strict=True) if one.answer != first.answer
        ]
        if not others:
            return "nothing was compared"
        if not other:
            return f"nothing, {len(others)} of {len(others)} answer as with all tokens"
        same = f"{len(others) - len(other)} of {len(others)} answer as with all tokens"
        return f"{same}; otherwise: {', '.join(other)}"

    def overlay(self, columns: int = 2) -> Image:
        """What each of them kept, in a grid of pictures."""
        from vlmcompress.report.picture import sheet

        return sheet([one.overlay() for one in self.answers], columns)

    def plot(self) -> Any:
        """A matplotlib figure: milliseconds of each stage, one bar a setting.

        Raises:
            VLMCompressError: matplotlib is not installed.
        """
        from vlmcompress.report.plot import stage_bars

        return stage_bars({one.setting.name: one.milliseconds for one in self.answers})

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, place: int) -> Answer:
        return self.answers[place]

    def __str__(self) -> str:
        table = [list(_HEADS), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        lines += [f"{name}: {why}" for name, why in self.reasons().items()]
        lines += [f"refused: {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, f"changed: {self.changed()}"])

    def _repr_html_(self) -> str:
        from vlmcompress.report.html import as_image, as_table

        lines = [f"changed: {self.changed()}"]
        lines += [f"{name}: {why}" for name, why in self.reasons().items()]
        lines += [f"refused: {name}: {why}" for name, why in self.refused.items()]
        said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        return f"<div>{as_table(_HEADS, self.rows())}{said}{as_image(self.overlay())}</div>"
