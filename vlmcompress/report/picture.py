"""The picture of a call: what was kept of its images, over method, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmcompress.arguments import check_count
from vlmcompress.errors import VLMCompressError
from vlmcompress.report.footer import with_footer
from vlmcompress.report.overlay import SHEET, draw, side_by_side

if TYPE_CHECKING:
    from vlmcompress.media.video import Video
    from vlmcompress.report.report import Report


def picture(
    report: Report,
    media: Sequence[Image.Image | Video],
    processor: Any,
    *,
    question: str | None = None,
    answer: str | None = None,
    model: str | None = None,
    layer: int | None = None,
    width: int = SHEET,
) -> Image.Image:
    """What `draw` draws, over a footer; see `Report.overlay`.

    Raises:
        VLMCompressError: there is no processor to tell where the patches lie, or see `draw`.
    """
    check_count("width", width)
    if processor is None:
        raise VLMCompressError(
            "nobody said where the patches of an image lie: give compress(..., processor=...) or "
            "overlay(..., processor=...)"
        )
    at_budget = f" at {report.budget}" if report.budget else ""
    at_layer = "" if layer is None else f", what enters layer {layer}"
    about = [", ".join(filter(None, (model, f"{report.method}{at_budget}{at_layer}")))]
    if question is not None:
        about.append(f"question: {question}")
    if answer is not None:
        about.append(f"answer: {answer or '(empty)'}")
    return with_footer(draw(media, report.images, processor, layer=layer, width=width), about)


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, to be compared.

    Raises:
        VLMCompressError: `columns` is no count.
    """
    check_count("columns", columns)
    return side_by_side(pictures, [""] * len(pictures), min(columns, len(pictures)))
