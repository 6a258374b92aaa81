"""report.html: results as one page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.report import tables, text
from vlmcompress.eval.report.text import Row

with needs_eval():
    import jinja2

if TYPE_CHECKING:
    from vlmcompress.eval.report.examples import Example
    from vlmcompress.eval.report.plots import Picture

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(results: Row, pictures: Sequence[Picture], examples: Sequence[Example]) -> str:
    """The whole page; answers and questions are shown as text, whatever they hold.

    Args:
        results: content of results.json.
        pictures: of all tasks.
        examples: of all tasks.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        made=results["provenance"],
        descriptions=results["descriptions"],
        legend=text.LEGEND,
        warnings=text.warnings(results),
        summary=(
            tables.SUMMARY,
            [row for name, one in results["tasks"].items() for row in tables.summary(name, one)],
        ),
        tasks=[_task(name, one, pictures, examples) for name, one in results["tasks"].items()],
    )


def _task(
    name: str, task: Row, pictures: Sequence[Picture], examples: Sequence[Example]
) -> dict[str, Any]:
    return {
        "name": name,
        "head": text.head(task),
        "sentences": text.sentences(task),
        "pictures": [_embedded(one) for one in pictures if one.task == name],
        "best": tables.best_by_budget(task),
        "costs": tables.costs_and_speed(task),
        "sections": list(tables.sections(task)),
        "examples": [_shown(one) for one in examples if one.picture.task == name],
        "everything": tables.everything(task),
    }


def _shown(example: Example) -> dict[str, Any]:
    rows = [
        [method, answer, "right" if right else "wrong"] for method, answer, right in example.answers
    ]
    return {
        "question": example.question,
        "kind": example.kind,
        "index": example.index,
        "target": example.target,
        "picture": _embedded(example.picture),
        "table": (["method", "answer", ""], rows),
    }


def _embedded(picture: Picture) -> dict[str, str]:
    data = base64.b64encode(picture.content).decode()
    return {"title": picture.title, "uri": f"data:image/png;base64,{data}"}
