"""What `ask` prints: a text for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmcompress.files.untrusted import visible
from vlmcompress.media.video import Video
from vlmcompress.report.numbers import mean_text
from vlmcompress.report.report import by_medium, frame_counts

if TYPE_CHECKING:
    from vlmcompress.asking.answer import Answer
    from vlmcompress.asking.asker import Asker
    from vlmcompress.cli.ask.request import Request

_STAGES = ("encoder", "selection", "prefill", "decode", "other", "total")


def as_document(request: Request, asker: Asker, runs: Sequence[Answer]) -> str:
    """JSON of the reduced run; of a comparison also both runs, as `full` and `reduced`."""
    reduced, pairs = runs[-1], list(zip(request.files, request.media, strict=True))
    document = {
        "question": request.question,
        "images": [file for file, one in pairs if not isinstance(one, Video)],
        "videos": [{"file": f, **one.describe()} for f, one in pairs if isinstance(one, Video)],
        "model": request.model,
        "device": str(asker.model.device),
        "dtype": str(asker.model.dtype).removeprefix("torch."),
        "method": reduced.setting.label,
        "budget": reduced.setting.budget,
        "answer": reduced.answer,
        "report": reduced.report.to_dict(),
    }
    if len(runs) > 1:
        document["full"] = runs[0].to_dict()
        document["reduced"] = reduced.to_dict()
    return json.dumps(document, indent=2)


def as_text(request: Request, runs: Sequence[Answer]) -> str:
    """Question, answers, tokens and times."""
    reduced = runs[-1]
    setting = reduced.setting
    budget = f", budget {setting.budget}" if setting.budget else ""
    lines = [
        f"question   {visible(request.question)}",
        f"model      {visible(f'{request.model}, {setting.label}{budget}')}",
    ]
    if len(runs) == 1:
        lines.append(f"answer     {_shown(reduced)}")
    else:
        lines += [
            f"answer     {_shown(runs[0])}   (all visual tokens)",
            f"           {_shown(reduced)}   (reduced)",
        ]
    report = reduced.report
    lines += [] if report.reason is None else [f"method     {report.method}: {report.reason}"]
    lines += _tokens(request, reduced)
    notes = [note for image in report.images for note in image.notes] + report.notes
    lines += [f"note       {visible(note)}" for note in dict.fromkeys(notes)]
    lines += [] if report.asked is None else [f"cost       {report.cost}"]
    return "\n".join([*lines, "", *_times(runs)])


def _shown(run: Answer) -> str:
    return visible(run.answer) or "(empty)"


def _tokens(request: Request, run: Answer) -> list[str]:
    """How many tokens were kept of each image and clip, and of which frames."""
    frames = [len(one.frames) if isinstance(one, Video) else 1 for one in request.media]
    shared = by_medium(run.report.images, frames)
    lines = []
    for file, one, reports in zip(request.files, request.media, shared, strict=True):
        before, after = sum(r.before for r in reports), sum(r.after for r in reports)
        mean = sum(r.mean for r in reports)
        lines.append(
            f"tokens     {before} -> {after}, mean over layers {mean_text(mean)}"
            f"   ({visible(file)})"
        )
        if isinstance(one, Video):
            times = " ".join(f"{time:.2f}" for time in one.times)
            lines += [
                f"per frame  {frame_counts(reports)}",
                f"sampled    {len(one.times)} of {one.total} frames by {one.decoder}, "
                f"at {times} seconds",
            ]
    return lines


def _times(runs: Sequence[Answer]) -> list[str]:
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
