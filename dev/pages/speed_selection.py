"""The part of docs/speed.md about what the choices themselves cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dev.pages.provenance import marked, others, source
from vlmcompress.eval.report.markdown import as_table

Row = Mapping[str, Any]

WHY = {
    "aim-prune": "ranks by five steps over the whole attention graph of every layer before which "
    "it drops, up to eight of them: their products of all queries with all keys are the work of "
    "that many attention layers, once more",
    "zoo-prune": "runs the last layer of the projector on 64 moves of every token; "
    "`probe='expected'` replaces them by a closed form, where no patch is normalised by itself",
    "embedlens": "compares every token with every word of the vocabulary: one product of their "
    "number, which a small decoder does not outweigh",
    "hiprune": "works out what every token receives in two layers of the tower, all queries with "
    "all keys: fast attention does not give that away, so it is computed once more",
    "hiprune-pp": "does the same",
    "aim": "ends with `aim-prune`",
    "flashvid": "begins with what every token receives in the tower's last layer, as `hiprune` "
    "does in two",
    "psigmoid": "ranks before every layer, each time by the attention of all words of the question",
}
"""Method -> why its choice costs more than the limit, for those that do."""
MOST = 0.02
"""Share of a prefill of the decoder of 0.5B above which a choice inside a model is named."""

_COSTS = """## What the methods themselves cost

The work of each method alone, on random features, beside a full prefill ({prefill}). CPU time of
one thread. **Bold** above the limit: {limits}.

"""
_FARTHEST = """## Farthest-point selection (DivPrune)

The published loop computes all cosines by one product and gathers the rows of all picks in every
step. Features are independent (nothing is alike: the hardest case) or smooth over the picture, as
an encoder's are.

On a CPU this is where exact selection ends at a few thousand tokens: the first pick alone, the row
whose nearest is farthest, costs a quarter of the product where features are independent, for all
rows are about equally far apart. A seed that is only about right would be cheaper, and would pick
other tokens.

"""
_TOGETHER = """### Several images in one call

One call for a batch of images, beside a call for each; the picks are the same. What is shared is
the time between small operations. The products of wide features are most of the work on a CPU, and
are made one by one, as a batch must pick what its images pick alone. CPU time of one thread, taking
turns.

"""


def costs(results: Path) -> str:
    """The work of every method beside a prefill, and why some are above the limit."""
    measured = json.loads((results / "selection_cost.json").read_text())
    rows: Sequence[Row] = measured["rows"]
    made = measured["provenance"]
    limits = {row["model"]: row["limit"] for row in rows}
    head = _COSTS.format(
        prefill=made["prefill"],
        limits=", ".join(f"{100 * limit:g} % of {model}" for model, limit in limits.items()),
    )
    table = as_table(
        ["model", "picture", "method", "stage", "kept", "ms", "prefill, ms", "share"],
        (
            [
                *(str(row[name]) for name in ("model", "picture")),
                _named(row),
                row["stage"],
                str(row["keep"] or "-"),
                f"{row['ms']:.4g}",
                f"{row['prefill_ms']:.0f}",
                marked(row["share"], row["limit"]),
            ]
            for row in rows
        ),
    )
    return f"{head}{_above(rows)}{source(made)}{others(made, rows)}\n\n{table}\n"


def named(rows: Sequence[Row]) -> str:
    """A line for each method whose choice inside a model takes more than `MOST` of its prefill."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if "skipped" not in row and row["selector_overhead"] > MOST:
            shares.setdefault(row["method"], []).append(row["selector_overhead"])
    lines = [
        f"- `{name}` (up to {100 * max(found):.1f} %) {WHY[name]}."
        for name, found in shares.items()
    ]
    return (
        f"Selection above {100 * MOST:g} % on those days:\n\n" + "\n".join(lines) + "\n"
        if lines
        else ""
    )


def _above(rows: Sequence[Row]) -> str:
    """A line for each method that is above the limit of a model."""
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows if row["above"]):
        mine = [row for row in rows if row["above"] and row["method"] == name]
        shares = ", ".join(f"{100 * row['share']:.1f} % of {row['model']}" for row in mine)
        lines.append(f"- {_named(mine[0])} ({shares}) {WHY[name]}.")
    return "Above it:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _named(row: Row) -> str:
    return f"`{row['method']}`"


def farthest(results: Path) -> str:
    """Farthest-point selection beside the published loop."""
    measured = json.loads((results / "farthest_point.json").read_text())
    table = as_table(
        [
            *("features", "tokens", "picks", "width", "one product, s", "published loop, s"),
            *("ours, s", "times as fast", "same picks"),
        ],
        (
            [
                row["features"],
                *(str(row[name]) for name in ("tokens", "picks", "width")),
                f"{row['product_s']:.3g}",
                f"{row['published_s']['median']:.3g}",
                f"{row['ours_s']['median']:.3g}",
                f"{row['ratio']['median']:.2f} "
                f"({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})",
                "yes" if row["identical"] else f"{row['common']} of {row['picks']}",
            ]
            for row in measured["rows"]
        ),
    )
    return f"{_FARTHEST}{source(measured['provenance'])}\n\n{table}\n"


def together(results: Path) -> str:
    """Several images in one call."""
    measured = json.loads((results / "selection_together.json").read_text())
    table = as_table(
        [
            *("images", "tokens", "picks", "width", "alone, ms an image", "together, ms an image"),
            *("times as fast", "same picks"),
        ],
        (
            [
                *(str(row[name]) for name in ("images", "tokens", "picks", "width")),
                f"{row['alone_ms']:.2f}",
                f"{row['together_ms']:.2f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]),
                "yes" if row["identical"] else "no",
            ]
            for row in measured["rows"]
        ),
    )
    return f"{_TOGETHER}{source(measured['provenance'])}\n\n{table}\n"
