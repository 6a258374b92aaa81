"""Questions that divide the methods, with pictures of what the decoder still gets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from vlmcompress.api import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.report.plots import Picture, file_name
from vlmcompress.eval.report.text import Row, ran, shown_budget
from vlmcompress.eval.results.read import Run
from vlmcompress.eval.results.scores import RANDOM_NAME
from vlmcompress.eval.run.answering import Batch
from vlmcompress.eval.run.cases import BASELINES, FULL, RANDOM, Case
from vlmcompress.eval.tasks.task import Sample, Task
from vlmcompress.report import overlay

_MOST = 6
_SIDE = 320
"""Longer side of an image, pixels."""
_PANELS = 3
_ROW = 1000
"""Panels that would be wider together stand one below the other."""
_TITLE = 24


@dataclass(frozen=True)
class Example:
    """A question that the best method answers and others do not.

    Attributes:
        index: of the sample.
        kind: of the question.
        question: as it was asked.
        target: the right answer.
        answers: method, its answer, and whether that is right; the whole model first.
        picture: what some of the methods keep.
    """

    index: int
    kind: str
    question: str
    target: str
    answers: Sequence[tuple[str, str, bool]]
    picture: Picture


@dataclass(frozen=True)
class _Divided:
    """A sample, and which cases answer it right."""

    sample: Sample
    right: dict[Case, bool]

    @property
    def wrong(self) -> list[Case]:
        return [case for case, right in self.right.items() if not right]


def examples(
    run: Run, results: Row, tasks: Sequence[Task], model: Any, processor: Any
) -> list[Example]:
    """A few questions of every task, one of each kind, at the budget that stands for all.

    What is kept is computed again; the answers are those of the run.

    Args:
        run: whose answers are shown.
        results: content of its results.json.
        tasks: of the run.
        model: that was evaluated, not compressed.
        processor: its own.
    """
    found = []
    for task in tasks:
        for number, divided in enumerate(_choose(run, results["tasks"][task.name], task), 1):
            name = file_name(task.name, f"example{number}")
            picture = _picture(task.name, name, divided, model, processor)
            if picture is not None:
                found.append(_example(run, divided, picture))
    return found


def _choose(run: Run, found: Row, task: Task) -> list[_Divided]:
    """Questions that `full` and the best method answer right, and the most baselines do not."""
    shown = shown_budget(found)
    if shown is None:
        return []
    rows = {Case(row["method"], row["budget"]): row for row in ran(found)}
    best = next((name for name in shown["leaders"] if name != RANDOM_NAME), None)
    names = [best, RANDOM[0], *(name for name in BASELINES if name not in RANDOM)]
    wanted = [Case(name, shown["budget"]) for name in dict.fromkeys(names) if name is not None]
    cases = [Case(FULL, None), *(case for case in wanted if case in rows)]
    if best is None or len(cases) < 3:
        return []
    samples = {
        sample.index: sample
        for sample in task.samples(run.limit_of(task.name), run.provenance["seed"])
    }
    divided = [
        _Divided(samples[index], {case: float(rows[case]["scores"][k]) >= 0.5 for case in cases})
        for k, index in enumerate(found["questions"]["index"])
    ]
    open_ = [one for one in divided if one.right[cases[0]] and one.right[cases[1]] and one.wrong]
    first: dict[str, _Divided] = {}
    for one in sorted(open_, key=lambda one: -len(one.wrong)):
        first.setdefault(one.sample.kind, one)
    return list(first.values())[:_MOST]


def _example(run: Run, divided: _Divided, picture: Picture) -> Example:
    sample = divided.sample
    answers = [
        (case.method, run.answers[sample.task, case][sample.index].text, right)
        for case, right in divided.right.items()
    ]
    return Example(sample.index, sample.kind, sample.question, sample.answers[0], answers, picture)


def _picture(task: str, name: str, divided: _Divided, model: Any, processor: Any) -> Picture | None:
    """What the best method and the first that are wrong keep; None where it cannot be drawn."""
    best = list(divided.right)[1]
    shown = [best, *divided.wrong][:_PANELS]
    batch = Batch(model, processor, [divided.sample])
    try:
        panels = [_kept(model, processor, batch, case) for case in shown]
    except VLMCompressError:
        return None  # an image that is laid out in tiles, for example
    title = f"what {', '.join(case.method for case in shown)} keep at {best.budget}"
    labels = [f"{case.method}: {'right' if divided.right[case] else 'wrong'}" for case in shown]
    file = io.BytesIO()
    # A palette keeps a page with its pictures inside small enough to send around.
    _page(panels, labels).quantize(256).save(file, format="PNG", optimize=True)
    return Picture(task, name, title, file.getvalue())


def _kept(model: Any, processor: Any, batch: Batch, case: Case) -> Image.Image:
    inputs = batch.inputs(case)
    with (
        compress(model, case.method, case.budget, processor=processor) as handle,
        torch.inference_mode(),
    ):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    media = batch.samples[0].load()
    return overlay.draw(media, handle.report().images, processor, side=_SIDE)


def _page(panels: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Panels under their labels, side by side where they fit."""
    gap = 16
    beside = sum(panel.width for panel in panels) <= _ROW
    step_x = [panel.width + gap if beside else 0 for panel in panels]
    step_y = [0 if beside else panel.height + _TITLE + gap for panel in panels]
    tallest = max(panel.height for panel in panels)
    width = sum(step_x) - gap if beside else max(panel.width for panel in panels)
    height = tallest + _TITLE if beside else sum(step_y) - gap
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for k, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        x, y = sum(step_x[:k]), sum(step_y[:k])
        pen.text((x + 2, y + 3), label, fill="black", font=font)
        page.paste(panel, (x, y + _TITLE))
    return page
