"""The report of a run: results.json, report.md, report.html and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.eval.results.summary import Run, summarise
from vlmcompress.eval.tasks.task import Task
from vlmcompress.files import whole_file, write_json

if TYPE_CHECKING:
    from vlmcompress.eval.report.examples import Example

RESULTS, TEXT, PAGE = "results.json", "report.md", "report.html"


def write_report(
    folder: Path, run: Run, tasks: Sequence[Task], model: Any = None, processor: Any = None
) -> list[Path]:
    """Score a run and write all about it.

    Args:
        folder: to write to.
        run: finished or not, see `read_run`.
        tasks: of the run.
        model: that was evaluated; without it no examples are shown.
        processor: its own.

    Returns:
        The files.

    Raises:
        VLMCompressError: the run cannot be summed up (see `summarise`), a file cannot be written,
            or a package of the extra `eval` is missing.
    """
    results = summarise(run, tasks)
    examples: list[Example] = []
    if model is not None:
        from vlmcompress.eval.report import examples as report_examples

        examples = report_examples.examples(run, results, tasks, model, processor)
    write_json(folder / RESULTS, results)
    return [folder / RESULTS, *render(folder, results, examples)]


def render(folder: Path, results: dict[str, Any], examples: Sequence[Example] = ()) -> list[Path]:
    """Write what people read about the content of a results.json.

    Args:
        folder: to write to.
        results: of `summarise`, or read back.
        examples: to show.

    Returns:
        The files.

    Raises:
        VLMCompressError: a file cannot be written, or a package of the extra `eval` is missing.
    """
    from vlmcompress.eval.report import html as report_html
    from vlmcompress.eval.report import markdown as report_md
    from vlmcompress.eval.report import plots as report_plots

    pictures = report_plots.draw(results)
    contents = {
        TEXT: report_md.render(results, pictures, examples).encode(),
        PAGE: report_html.render(results, pictures, examples).encode(),
        **{one.name: one.content for one in pictures},
        **{one.picture.name: one.picture.content for one in examples},
    }
    for name, content in contents.items():
        with whole_file(folder / name) as draft:
            draft.write_bytes(content)
    return [folder / name for name in contents]
