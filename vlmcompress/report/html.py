"""A report as a notebook shows it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from vlmcompress.report.numbers import mean_text
from vlmcompress.report.report import entry

if TYPE_CHECKING:
    from vlmcompress.report.report import Report


def as_html(report: Report) -> str:
    """A line about the call, a table of its images, its notes and its times."""
    at_budget = f" at {report.budget}" if report.budget else ""
    state = "engaged" if report.engaged else "not engaged: no token was removed"
    rows = [
        [
            str(image.index),
            " + ".join("x".join(map(str, part[part[0] == 1 :])) for part in image.parts),
            f"{image.before} &rarr; {image.after}{entry([image])}",
            mean_text(image.mean),
            _bars(image.per_layer, image.before),
        ]
        for image in report.images
    ]
    heads = ("image", "grid", "tokens", "mean over layers", "tokens in each decoder layer")
    notes = [note for image in report.images for note in image.notes] + report.notes
    notes += [] if report.reason is None else [report.reason]
    notes += [] if report.asked is None else [report.cost]
    said = "".join(f"<li>{html.escape(note)}</li>" for note in dict.fromkeys(notes))
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in report.milliseconds.items())
    return (
        f"<div><p><strong>{html.escape(report.method + at_budget)}</strong>, positions "
        f"{html.escape(report.positions)}: {state}</p>{as_table(heads, rows, escaped=True)}"
        f"{f'<ul>{said}</ul>' if said else ''}<p>{times} ({report.decode_tokens} decode steps)</p>"
        "</div>"
    )


def as_table(heads: Sequence[str], rows: Sequence[Sequence[str]], escaped: bool = False) -> str:
    """A table; `escaped` where the cells are HTML already."""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{c if escaped else html.escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def as_image(picture: Image.Image) -> str:
    """A picture inside the page itself."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="what was kept" style="max-width:100%">'


def _bars(counts: Sequence[int], most: int) -> str:
    """A bar for each decoder layer, as high as its share of all tokens, and the numbers."""
    bar, height = 4, 24
    bars = "".join(
        f'<rect x="{bar * place}" y="{height - high:g}" width="{bar - 1}" height="{high:g}"/>'
        for place, count in enumerate(counts)
        for high in [round(height * count / max(most, 1), 1)]
    )
    title = " ".join(map(str, counts))
    return (
        f'<svg width="{bar * len(counts)}" height="{height}" fill="currentColor" role="img" '
        f'aria-label="{title}"><title>{title}</title>{bars}</svg>'
    )
