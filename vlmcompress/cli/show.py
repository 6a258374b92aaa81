"""What `ask` prints: a text for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmcompress.cli.asking import Asker, Run
    from vlmcompress.cli.request import Request

_STAGES = ("encoder", "selection", "prefill", "decode", "total")


def as_document(request: Request, asker: Asker, runs: Sequence[Run]) -> str:
    """JSON of the reduced run; of a comparison also both runs, as `full` and `reduced`."""
    reduced = runs[-1]
    document = {
        "question": request.question,
        "images": request.files,
        "model": request.model,
        "device": str(asker.model.device),
        "dtype": str(asker.model.dtype).removeprefix("torch."),
        "method": request.method,
        "budget": request.budget,
        "answer": reduced.answer,
        "report": reduced.report.to_dict(),
    }
    if len(runs) > 1:
        document["full"] = runs[0].to_dict()
        document["reduced"] = reduced.to_dict()
    return json.dumps(document, indent=2)


def as_text(request: Request, runs: Sequence[Run]) -> str:
    """Question, answers, tokens and times."""
    reduced = runs[-1]
    budget = f", budget {request.budget}" if request.budget else ""
    lines = [
        f"question   {request.question}",
        f"model      {request.model}, {request.method}{budget}",
    ]
    if len(runs) == 1:
        lines.append(f"answer     {reduced.answer}")
    else:
        lines += [
            f"answer     {runs[0].answer}   (all visual tokens)",
            f"           {reduced.answer}   (reduced)",
        ]
    for image in reduced.report.images:
        lines.append(
            f"tokens     {image.before} -> {image.after}, mean over layers {image.mean:.4g}"
            f"   ({request.files[image.index]})"
        )
    return "\n".join([*lines, "", *_times(runs)])


def _times(runs: Sequence[Run]) -> list[str]:
    """A row for each stage, a column for each run, and the change."""
    heads = [run.setting.label[:24] for run in runs]
    widths = [max(12, len(head) + 2) for head in heads]
    titles = "".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))
    lines = [f"{'ms':<10}{titles}"]
    for stage in _STAGES:
        values = [run.milliseconds[stage] for run in runs]
        cells = [f"{value:.1f}".rjust(width) for value, width in zip(values, widths, strict=True)]
        change = f"   {values[0] / values[1]:.2f} times as fast" if _compared(stage, values) else ""
        lines.append(f"{stage:<10}{''.join(cells)}{change}")
    return lines


def _compared(stage: str, values: Sequence[float]) -> bool:
    """Whether a factor is shown: for the stage that reduction is for, and for the whole."""
    return len(values) == 2 and stage in ("prefill", "total") and values[1] > 0
