"""Which methods `method="auto"` takes, from the committed tables of all methods.

python -m vlmcompress.eval.auto_table --out vlmcompress/methods/data/auto.json
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmcompress.eval.accuracy_table import SHARES
from vlmcompress.files import write_json
from vlmcompress.methods.base import Stage
from vlmcompress.methods.pipeline import Pipeline
from vlmcompress.methods.spec import parse
from vlmcompress.patches import FAMILIES

HERE = Path(__file__).parent
TABLES = {"methods_llava.json": "llava", "methods_qwen.json": "qwen2_5_vl"}
"""File -> the family of its model."""
LEFT_OUT = frozenset({"text", "relevance", "projection"})
"""Signals of the question, for what is kept for it may be wrong for the next one, and probing the
projector, which takes longer than it saves."""
PLACES: tuple[tuple[str, Sequence[Stage], int], ...] = (
    ("pixels", ["pixels"], 1),
    ("encoder", ["encoder"], 1),
    ("behind", ["projector", "decoder"], 3),
)
"""Name, stages, and the tables that a method must be in: no model has both of the first."""
Figures = list[tuple[str, float]]


def usable(pipeline: Pipeline) -> bool:
    """Whether it takes a budget and needs none of `LEFT_OUT`."""
    asks = {choice for need in pipeline.needs for choice in need.split("|")}
    return all(method.takes_budget for method in pipeline.methods) and not asks & LEFT_OUT


def acts_at(pipeline: Pipeline, family: str) -> set[Stage]:
    """Stages where it acts in models of a family."""
    stages = FAMILIES.get(family).stages
    return {method.acts_at for method in pipeline.for_stages(family, stages).methods}


def accuracies(share: int, stages: Iterable[Stage], least: int) -> Figures:
    """Mean accuracy of what acts at these stages alone and keeps a part of the tokens; best first.

    Args:
        share: which part: 4 for a quarter.
        stages: where it may act.
        least: tables that it must be in.
    """
    found: dict[str, list[float]] = {}
    for file, family in TABLES.items():
        content = json.loads((HERE / file).read_text())
        for part in ("pictures", "clips"):
            for row in content.get(part, {}).get("rows", []):
                tokens = content[part]["rows"][0]["kept_mean"]
                if row["budget"] != tokens // share or "impossible" in row or row["options"]:
                    continue
                pipeline = parse(row["method"])
                if usable(pipeline) and acts_at(pipeline, family) <= set(stages):
                    found.setdefault(row["method"], []).append(row["accuracy"])
    means = [(name, sum(v) / len(v)) for name, v in found.items() if len(v) >= least]
    return [(name, round(mean, 4)) for name, mean in sorted(means, key=lambda one: -one[1])]


def document() -> dict[str, Any]:
    """The contents of auto.json: for each share the methods, the most accurate first."""
    return {
        "origin": "measured by us, python -m vlmcompress.eval.auto_table: mean accuracy over the "
        f"tables in {' and '.join(TABLES)} that hold the method, alone at these stages",
        **{
            where: {f"1/{share}": accuracies(share, stages, least) for share in SHARES}
            for where, stages, least in PLACES
        },
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmcompress.eval.auto_table", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    write_json(parser.parse_args().out, document())


if __name__ == "__main__":
    main()
