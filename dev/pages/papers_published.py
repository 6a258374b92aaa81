"""What papers report of LLaVA-1.5-7B at 192, 128, 64 and 32 of its 576 visual tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("papers_published.json")
BUDGETS = ("192", "128", "64", "32")
"""Visual tokens, of `TOKENS`."""
MEASURED_AS = {
    "fastv": "fastv(k=1)",
    "dart": "dart(k=1)",
    "priortr": "priortr(k=1)",
    "cdpruner": "cdpruner(negate=False)",
}
"""Method of a paper -> the setting that stands for it on a model of six layers with our CLIP tower.

The cuts of the first three come before layer 2 or 3, which is 6 to 9 % of 32 layers and 33 to 50 %
of six; before layer 1 is the nearest. `negate` is a property of the tower, and the patches of ours
do resemble the words that name them (tests/dev/training/test_shipped_small.py), unlike OpenAI's.
"""


@dataclass(frozen=True)
class Block:
    """Figures of one table, which were measured on the same benchmarks in the same way.

    Attributes:
        paper: whose table it is.
        arxiv: its number there.
        read: how we know the figures, a key of `sources`.
        rows: method -> budget -> mean relative accuracy in % of the whole model.
    """

    paper: str
    arxiv: str
    read: str
    rows: Mapping[str, Mapping[str, float]]


def blocks() -> list[Block]:
    """All blocks of the file."""
    return [
        Block(
            one["paper"],
            one["arxiv"],
            one["read"],
            {row["method"]: {b: row[b] for b in BUDGETS if b in row} for row in one["rows"]},
        )
        for one in _content()["blocks"]
    ]


def sources() -> Mapping[str, str]:
    """Ways in which figures are known, and what they mean."""
    return dict(_content()["read"])


def counted_otherwise() -> Mapping[str, str]:
    """Method -> what its paper counts where a budget is the mean over decoder layers with us."""
    return dict(_content()["counted"])


def measured_as(method: str) -> str:
    """The spec that stands for a method of a paper in our results."""
    return MEASURED_AS.get(method, method)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content
