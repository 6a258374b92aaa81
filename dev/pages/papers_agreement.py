"""The part of docs/papers_geometry.md that asks whether our ranking is that of the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from dev.pages.committed_results import scores_of
from dev.pages.papers_published import BUDGETS, MEASURED_AS, blocks, counted_otherwise
from dev.pages.papers_ranking import Agreement, Cell, Scores, agreement, cells
from vlmcompress.eval.report.markdown import as_table
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.scores import RANDOM_NAME

MODEL, TASK = "small-llava", "posters"
FEWEST = 4
"""Methods in a cell that is shown alone."""
MOVES = 1.5
"""Points by which one method's figure differs between papers: CDPruner's, HoloV's and FlowCut's at
64 tokens do by 1.3 to 1.8."""
Row = Mapping[str, Any]
Kinds = Mapping[str, tuple[Agreement, float]]
"""Kind -> agreement, and its p corrected over the kinds."""

_HEAD = """## Do the rankings agree?

Kendall's tau-b between our ranking and the published one, over pairs of methods that stand in the
same block at the same count: 1 is the same order, 0 is none, -1 the reverse. In brackets its 95 %
interval over our questions (paired bootstrap; a resample is noisier than all questions are, so the
interval need not lie around the figure), then the pairs in the same order of all pairs. Blocks with
{fewest} methods or more at a count stand alone; the last line pools every pair of every block.
"""

_KINDS = """### By kind of question

The same over all counts and blocks, with our ranking by the questions of one kind. Where most
methods keep all of a kind, ties are many, and tau-b of many ties is small. p is how often tau would
be as high if our methods had each other's results at all counts, corrected over the kinds (Holm).
"""

_MEANING = """### What that means

{verdict}

- One model of a few million weights and one drawn world. The papers' averages are over natural
  pictures and 8 to 12 benchmarks, asked of a model with a thousand times as many weights. That the
  orders agree does not make either right about your model, and where they do not, neither is wrong:
  [tune](tuning.md) on your own.
- {scored} questions: 95 % intervals of an accuracy reach about {half:.0f} points either way at
  {budget} tokens. The papers' differences are smaller: {close} of {pairs} pairs are closer than the
  {moves} points by which one method moves from paper to paper.
- The cells are not independent: the same methods stand in most of them, and our results are the
  same in all. The interval is about our questions; p is about which methods there happen to be.
- A cut between the decoder's layers costs more of the budget on a few layers than on 32. So the
  methods with † do worse here than their papers can be blamed for, and most of them are missing at
  64 and 32. That helps the agreement where papers rank them low, and hurts it where they do not.
- `{relevant}` ranks by a text tower that was trained on the words of these very questions, which no
  CLIP of a real model was. Its lead is no finding about real ones.
- Where figures are from notes or from a later table, the paper itself was not compared.
"""


def agreements(task: Row) -> list[str]:
    """Tables by block and count and by kind, and what they mean.

    Args:
        task: part of a results.json.
    """
    scores, kinds = our_scores(task), by_kind(task)
    table = as_table(["block", *(f"{b} tokens" for b in BUDGETS), "all"], list(_by_block(scores)))
    return [
        _HEAD.format(fewest=FEWEST),
        f"{table}\n",
        _otherwise(scores),
        _KINDS,
        f"{_kinds(task, kinds)}\n",
        _meaning(task, scores, kinds),
    ]


def measured(task: Row, budget: str) -> dict[str, Row]:
    """Spec -> row of what kept to a budget."""
    return {row["method"]: row for row in methods_at(task, budget) if not row["over_budget"]}


def relative(row: Row, task: Row) -> float:
    """Right answers in % of those of the whole model."""
    return float(100 * row["accuracy"] / task["full"]["accuracy"])


def our_scores(task: Row, kind: str | None = None) -> Scores:
    """Scores of what kept to a budget, of all questions or those of one kind."""
    asked = np.array(task["questions"]["kind"], dtype=object)
    mask = np.full(len(asked), True) if kind is None else asked == kind
    return {
        budget: {name: scores_of(row)[mask] for name, row in measured(task, budget).items()}
        for budget in BUDGETS
    }


def pooled(scores: Scores, without: Sequence[str] = (), apart: float = 0.0) -> Agreement:
    """Of every pair of every block; see `agreement`."""
    return agreement(cells(blocks(), scores, without), scores, apart)


def headline(task: Row) -> str:
    """What README says of it."""
    found, budget = pooled(our_scores(task)), "64"
    rows = list(measured(task, budget).values())
    best, chance = rows[0], next(row for row in rows if row["method"] == RANDOM_NAME)
    return (
        f"At the counts of tokens that papers use, {budget} of {task['tokens']:g} on `{MODEL}`, "
        f"`{best['method']}` keeps {relative(best, task):.0f} % of the whole model's right answers "
        f"and `{RANDOM_NAME}` {relative(chance, task):.0f} %; Kendall's tau of our ranking, on a "
        f"toy, and the published ones is {_brief(found)} ([beside the "
        "papers](docs/papers_geometry.md))."
    )


def by_kind(task: Row) -> Kinds:
    """Kind -> agreement over all pairs, and its p corrected over the kinds; 1 where there is none.

    Args:
        task: part of a results.json.
    """
    found = {kind: pooled(our_scores(task, kind)) for kind in task["kinds"]}
    corrected = statistics.holm([1.0 if one.p is None else one.p for one in found.values()])
    return dict(zip(found, zip(found.values(), corrected, strict=True), strict=True))


def verdict(found: Agreement, kinds: Kinds) -> str:
    """One sentence on all pairs, and one on the kinds."""
    if found.tau is None or found.interval is None or found.p is None:
        return "Nothing can be said: one of the rankings has ties only."
    goes = "goes" if found.p < statistics.SIGNIFICANT else "is not shown to go"
    shown = {kind: p < statistics.SIGNIFICANT for kind, (_, p) in kinds.items()}
    with_it = [f"`{kind}`" for kind, sure in shown.items() if sure]
    without = [f"`{kind}`" for kind, sure in shown.items() if not sure]
    return (
        f"Our ranking {goes} with the published ones: {found.same} of {found.pairs} pairs are in "
        f"the same order, tau {_brief(found)}, p {found.p:.2g}. By single kinds of question this "
        f"is shown for {', '.join(with_it) or 'none'}, and not for {', '.join(without) or 'none'}."
    )


def _meaning(task: Row, scores: Scores, kinds: Kinds) -> str:
    every, budget = cells(blocks(), scores), "64"
    rows = measured(task, budget).values()
    half = median((row["interval"][1] - row["interval"][0]) / 2 for row in rows)
    found = agreement(every, scores)
    return _MEANING.format(
        verdict=verdict(found, kinds),
        scored=task["scored"],
        half=100 * half,
        budget=budget,
        close=found.pairs - agreement(every, scores, apart=MOVES).pairs,
        pairs=found.pairs,
        moves=MOVES,
        relevant=MEASURED_AS["cdpruner"],
    )


def _by_block(scores: Scores) -> Sequence[list[str]]:
    every = cells(blocks(), scores)
    lines = []
    for paper in dict.fromkeys(cell.block.paper for cell in every):
        own = [cell for cell in every if cell.block.paper == paper and len(cell.specs) >= FEWEST]
        if own:
            lines.append([paper, *_line(own, scores)])
    return [*lines, [f"all {len({c.block.paper for c in every})} blocks", *_line(every, scores)]]


def _line(of: Sequence[Cell], scores: Scores) -> list[str]:
    """Agreement at each count, and over all of them."""
    groups = [[cell for cell in of if cell.budget == budget] for budget in BUDGETS]
    return [_cell(agreement(own, scores)) if own else "-" for own in [*groups, list(of)]]


def _cell(found: Agreement) -> str:
    return "-" if found.tau is None else f"{_brief(found)}, {found.same} of {found.pairs}"


def _brief(found: Agreement) -> str:
    if found.tau is None or found.interval is None:
        return "-"
    return f"{found.tau:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})"


def _otherwise(scores: Scores) -> str:
    """The pooled figure where something is counted another way."""
    plain = {
        budget: {name: rows.get(other.get(name, name), rows[name]) for name in rows}
        for budget, rows in scores.items()
        for other in [{MEASURED_AS["cdpruner"]: "cdpruner"}]
    }
    return (
        "All pairs without the methods whose papers count tokens otherwise (†): "
        f"{_cell(pooled(scores, list(counted_otherwise())))}. Without pairs that are published "
        f"closer than {MOVES} points: {_cell(pooled(scores, apart=MOVES))}. All pairs with "
        f"`cdpruner` at its default sign, OpenAI's: {_cell(pooled(plain))}.\n"
    )


def _kinds(task: Row, kinds: Kinds) -> str:
    lines = []
    chance = measured(task, "64")[RANDOM_NAME]["by_kind"]
    whole = task["cases"][0]["by_kind"]
    for kind, (found, p) in kinds.items():
        lines.append(
            [
                f"{kind} ({task['kinds'][kind]})",
                f"{100 * whole[kind]['accuracy']:.0f}",
                f"{100 * chance[kind]['accuracy']:.0f}",
                _cell(found),
                "-" if found.p is None else f"{p:.2g}",
            ]
        )
    heads = ["kind (questions)", "whole model, %", f"`{RANDOM_NAME}` at 64, %", "tau", "p"]
    return as_table(heads, lines)
