"""Plots of a call; matplotlib comes with the extra `eval`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmcompress.errors import VLMCompressError

if TYPE_CHECKING:
    from vlmcompress.report.report import Report


def plot(report: Report) -> Any:
    """A figure: tokens in each decoder layer of each image, and the milliseconds of each stage.

    Raises:
        VLMCompressError: matplotlib is not installed.
    """
    figure = _figure(9, 3)
    left, right = figure.subplots(1, 2)
    for image in report.images:
        layers = range(len(image.per_layer))
        left.step(layers, image.per_layer, where="mid", label=f"image {image.index}")
        left.axhline(image.before, color="0.7", linestyle=":")
    left.set(xlabel="decoder layer", ylabel="visual tokens", ylim=(0, None))
    if len(report.images) > 1:
        left.legend()
    _bars(right, {report.method: report.milliseconds})
    at_budget = f" at {report.budget}" if report.budget else ""
    figure.suptitle(f"{report.method}{at_budget}")
    return figure


def stage_bars(times: Mapping[str, Mapping[str, float]]) -> Any:
    """A figure: a bar for each setting, cut into its stages.

    Args:
        times: setting -> stage -> milliseconds; `total` is left out.
    """
    figure = _figure(8, 1.2 + 0.4 * len(times))
    _bars(figure.subplots(), times)
    return figure


def _bars(axes: Any, times: Mapping[str, Mapping[str, float]]) -> None:
    names = list(times)
    ends = [0.0] * len(names)
    stages = [stage for stage in next(iter(times.values())) if stage != "total"]
    for stage in stages:
        values = [times[name].get(stage, 0.0) for name in names]
        axes.barh(names, values, left=ends, label=stage)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.legend(fontsize="small")


def _figure(width: float, height: float) -> Any:
    try:
        # Without pyplot nothing is registered anywhere, and no display is asked for.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VLMCompressError(
            "a plot needs matplotlib: pip install 'vlmcompress[eval]'"
        ) from error

    class Shown(Figure):
        """A figure that a notebook shows without being told how."""

        def _repr_png_(self) -> bytes:
            written = io.BytesIO()
            self.savefig(written, format="png")
            return written.getvalue()

    return Shown(figsize=(width, height), layout="constrained")
