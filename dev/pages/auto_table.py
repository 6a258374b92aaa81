"""Which methods `method="auto"` takes, from the committed results of all methods.

python -m dev.pages.auto_table --out vlmcompress/methods/data/auto.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dev.pages import committed_results as committed
from vlmcompress.auto import ChoiceInputs, most_accurate
from vlmcompress.budget.budget import Budget
from vlmcompress.defaults import AUTO
from vlmcompress.errors import CompositionError
from vlmcompress.eval.report.text import methods_at
from vlmcompress.eval.results import statistics
from vlmcompress.files import write_json
from vlmcompress.methods.composition.pipeline import Pipeline
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.before_projector import TowerDropper
from vlmcompress.methods.contracts.method import OF_THE_QUESTION, Stage
from vlmcompress.patches.families.registry import FAMILIES

LEFT_OUT = OF_THE_QUESTION | {"projection"}
"""Signals of the question, for what is kept for it may be wrong for the next one, and probing the
projector, which takes longer than it saves."""
PLACES: dict[str, Sequence[Stage]] = {
    "pixels": ["pixels"],
    "encoder": ["encoder"],
    "behind": ["projector", "decoder"],
}
"""Where methods are taken from, and the stages that this stands for."""
INSIDE = "inside"
"""Whole pipelines that drop inside the tower and select behind it."""
Task = Mapping[str, Any]
"""Part of a results.json."""
Tables = Sequence[tuple[str, Task]]
"""The family of a model, and a task that it was asked."""


def usable(pipeline: Pipeline) -> bool:
    """Whether it takes a budget, needs none of `LEFT_OUT`, and leaves attention as it is.

    A bias in every layer rules out FlashAttention, which nobody who writes "auto" asked for.
    """
    if pipeline.attention_bias is not None:
        return False
    asks = {choice for need in pipeline.needs for choice in need.split("|")}
    return all(method.takes_budget for method in pipeline.methods) and not asks & LEFT_OUT


def acts_at(pipeline: Pipeline, family: str) -> set[Stage]:
    """Stages where it acts in models of a family; none where it cannot.

    Args:
        pipeline: of any methods.
        family: its name.
    """
    try:
        known = FAMILIES.get(family)
        settled = pipeline.for_stages(family, known.stages)
    except CompositionError:
        return set()
    return {method.acts_at for method in settled.methods}


def figures(tables: Tables, budget: str, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """How often each method is right that acts at these stages alone; the most accurate first.

    Answers of all tables are counted together; the interval takes them for independent, though two
    models may have been asked the same question. Methods are ranked by accuracy alone: equal ones
    by speed, but within the noise the more accurate remains the better guess, and how fast models
    this small are says little about larger ones.

    Args:
        tables: of which those count whose family has one of the stages; a method must have kept to
            the budget in each of these, so that one made for a single model is not among them.
        budget: as the results have it.
        stages: where a method may act.
    """
    asked = [(f, task) for f, task in tables if _lets_in(f, stages)]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for family, task in asked:
        for row in methods_at(task, budget):
            if row["method"] == AUTO or row["over_budget"]:
                continue
            pipeline = parse(row["method"])
            where = acts_at(pipeline, family)
            if usable(pipeline) and where and where <= set(stages):
                found.setdefault(row["method"], []).append(row)
    whole = [(name, rows) for name, rows in found.items() if len(rows) == len(asked)]
    listed = [(_speed(rows), _figure(name, rows)) for name, rows in whole]
    return [one for _, one in sorted(listed, key=lambda two: (-two[1]["accuracy"], -two[0]))]


def _lets_in(family: str, stages: Sequence[Stage]) -> bool:
    """Whether methods act there in models of a family; in the encoder where a token is a patch."""
    known = FAMILIES.get(family)
    inside = list(stages) == ["encoder"]
    return bool(set(known.stages) & set(stages)) and not (inside and known.encoder.blocks)


def drops_inside(tables: Tables, budget: str) -> list[dict[str, Any]]:
    """The same as `figures` of pipelines that drop inside the tower, in all of the tables."""
    every = [stage for stages in PLACES.values() for stage in stages]
    return [
        figure
        for figure in figures(tables, budget, every)
        if isinstance(upstream := parse(figure["method"]).upstream, TowerDropper)
        and upstream.shortens
    ]


def _speed(rows: Sequence[Mapping[str, Any]]) -> float:
    """Times as fast as the whole model, the slowest of the tables; 0 where nothing was timed."""
    return min(row["speed"] or 0.0 for row in rows)


def _figure(method: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.concatenate([committed.scores_of(row) for row in rows])
    interval = statistics.proportion(scores)
    return {
        "method": method,
        "accuracy": round(float(scores.mean()), 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "n": len(scores),
    }


def document(results: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of auto.json: place -> share of the tokens -> methods, the best first.

    Args:
        results: model -> content of its results.json; the committed ones by default.
    """
    inside = None if results is not None else committed.all_results(committed.INSIDE)
    results = committed.all_results() if results is None else results
    tables, shares = _tables_of(results)
    content: dict[str, Any] = {
        "origin": "measured by us, python -m dev.pages.auto_table: right answers over all "
        f"tasks in docs/eval of {' and '.join(results)}, of methods that act at these stages alone",
        **{
            place: {share: figures(tables, share, stages) for share in shares}
            for place, stages in PLACES.items()
        },
    }
    if inside is not None:
        tables, shares = _tables_of(inside)
        content[INSIDE] = {share: drops_inside(tables, share) for share in shares}
    return content


def _tables_of(results: Mapping[str, Any]) -> tuple[Tables, list[str]]:
    """All tasks, and the shares of the tokens that all of them were asked at."""
    tables = [
        (committed.FAMILIES[model], task)
        for model, content in results.items()
        for task in content["tasks"].values()
    ]
    lists = [[one["budget"] for one in task["budgets"]] for _, task in tables]
    shares = [
        budget
        for budget in lists[0]
        if Budget.parse(budget).unit == "percent" and all(budget in other for other in lists)
    ]
    return tables, shares


def taken(task: Task) -> dict[str, str]:
    """Budget -> what "auto" takes of the methods that could run there.

    Args:
        task: part of a results.json.
    """
    return {one["budget"]: _taken(task, one["budget"]) for one in task["budgets"]}


def _taken(task: Task, budget: str) -> str:
    ran = {row["method"] for row in methods_at(task, budget)}
    asked = Budget.parse(budget)
    share = asked.amount / (100 if asked.unit == "percent" else task["tokens"])
    return most_accurate(
        ChoiceInputs(budget, share, None, 0.0, ()), lambda spec, _: spec in ran
    ).spec


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m dev.pages.auto_table", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    write_json(parser.parse_args().out, document())


if __name__ == "__main__":
    main()
