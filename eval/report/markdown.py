"""report.md: results as text that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vlmcompress.eval.report import tables, text
from vlmcompress.eval.report.text import Row

if TYPE_CHECKING:
    from vlmcompress.eval.report.examples import Example
    from vlmcompress.eval.report.plots import Picture


def render(results: Row, pictures: Sequence[Picture], examples: Sequence[Example] = ()) -> str:
    """The whole page.

    Args:
        results: content of results.json.
        pictures: that lie beside the page.
        examples: whose pictures lie beside the page.
    """
    parts = [_top(results), _loud(results)]
    for name, task in results["tasks"].items():
        own = [picture for picture in pictures if picture.task == name]
        parts += _task(name, task, own)
        parts += _examples([one for one in examples if one.picture.task == name])
    return "\n\n".join([*(part for part in parts if part), _provenance(results)]) + "\n"


def _top(results: Row) -> str:
    made = results["provenance"]
    scored = ", ".join(f"{task['scored']} of {name}" for name, task in results["tasks"].items())
    commit = (made["commit"] or "unknown")[:12]
    return (
        f"# Accuracy of {_cell(str(made['model']))} with fewer visual tokens\n\n"
        f"Questions: {_cell(scored)}. {made['date']}, {_cell(str(made['device']))}, "
        f"{made['dtype']}, commit {commit}.\n\n{text.LEGEND}"
    )


def _loud(results: Row) -> str:
    found = text.warnings(results)
    if not found:
        return ""
    lines = (f"> - **{_cell(one.task)}**: {_cell(one.text)}" for one in found)
    return "> [!WARNING]\n> Do not trust these results before each of these is explained:\n>\n" + (
        "\n".join(lines)
    )


def _task(name: str, task: Row, pictures: Sequence[Picture]) -> Iterable[str]:
    yield f"## {_cell(name)}"
    yield text.head(task)
    for heading, claims in text.sentences(task):
        yield f"**{heading}.**\n\n" + "\n".join(f"- {_cell(claim)}" for claim in claims)
    yield "### What a budget costs"
    yield _table(tables.costs(task))
    for picture in pictures:
        yield f"![{_cell(picture.title)}]({picture.name})"
    for section in tables.sections(task):
        yield f"### {section.heading}"
        if section.about:
            yield section.about
        if section.table:
            yield _table(section.table)
        if section.lines:
            yield "\n".join(f"- {_cell(line)}" for line in section.lines)


def _examples(found: Sequence[Example]) -> Iterable[str]:
    if found:
        yield "### Questions that divide the methods"
    for one in found:
        yield f"**{_cell(one.question)}** ({_cell(one.kind)}; right: {_cell(one.target)})"
        yield f"![{_cell(one.picture.title)}]({one.picture.name})"
        yield "\n".join(
            f"- {_cell(method)}: {_cell(answer)} ({'right' if right else 'wrong'})"
            for method, answer, right in one.answers
        )


def _provenance(results: Row) -> str:
    made = dict(results["provenance"])
    command: str = made.pop("command")
    versions: Mapping[str, str] = made.pop("versions")
    lines = [f"- {key}: {_cell(str(value))}" for key, value in made.items()]
    lines.append("- versions: " + ", ".join(f"{name} {one}" for name, one in versions.items()))
    lines += [f"- task: {_described(one)}" for one in results["descriptions"]]
    return "## How to make this again\n\n```\n" + command + "\n```\n\n" + "\n".join(lines)


def _described(task: Row) -> str:
    return ", ".join(f"{key} {_cell(str(value))}" for key, value in task.items())


def _table(found: tables.Table) -> str:
    names, rows = found
    return as_table([_cell(name) for name in names], ([_cell(one) for one in row] for row in rows))


def _cell(value: str) -> str:
    """Text of others, without what would be markup or end a cell of a table."""
    plain = " ".join(value.split())
    for sign in "\\|<>`*_[]":
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
