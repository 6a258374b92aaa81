"""How far each patch of an image, of its tiles, or of the steps of a clip gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vlmcompress.errors import VLMCompressError
from vlmcompress.report.report import ImageReport


class Step(NamedTuple):
    """The patches of one grid: an image, a tile, or one temporal step of a clip."""

    reached: npt.NDArray[np.float64]
    """[H, W] share of the decoder layers that each patch reaches."""
    labels: npt.NDArray[np.int64]
    """[H, W] which token a patch went into: equal ones are not divided by a line, -1 is none."""
    anchors: list[tuple[int, int]]
    """Row and column of the smallest member of each merged token."""
    kept: int
    """Tokens that enter the decoder, or the layer that is shown."""


def survival(report: ImageReport, layer: int | None = None) -> npt.NDArray[np.float64]:
    """Share of the decoder layers that a patch reaches, itself or in a merged token.

    Args:
        report: of one image or clip.
        layer: then it is 1 for what enters this decoder layer and 0 for all else.

    Returns:
        [T, H, W]; [1, 1, N] through all grids where it is laid out as several (tiles).

    Raises:
        VLMCompressError: there is no such layer.
    """
    reached = np.zeros(report.before)
    if layer is None:
        layers = max(len(report.per_layer), 1)
        for number in range(layers):
            reached[_entering(report, number)] += 1
        reached /= layers
    else:
        if layer not in range(len(report.per_layer)):
            raise VLMCompressError(
                f"there is no decoder layer {layer}: give 0 to {len(report.per_layer) - 1}"
            )
        reached[_entering(report, layer)] = 1
    for place, members in zip(report.kept, report.groups or [], strict=False):
        reached[members] = reached[place]
    return reached.reshape(report.grid)


def _entering(report: ImageReport, layer: int) -> list[int]:
    """The tokens that enter a decoder layer."""
    cuts = [number for number in report.cuts if number <= layer]
    return report.cuts[max(cuts)] if cuts else report.kept


def steps_of(reports: Sequence[ImageReport], layer: int | None = None) -> list[Step]:
    """What is drawn of each grid, over all reports of an image or clip."""
    return [step for report in reports for step in _of_report(report, layer)]


def _of_report(report: ImageReport, layer: int | None) -> list[Step]:
    reached = survival(report, layer).reshape(-1)
    labels = _labels(report, reached)
    inside = _entering(report, 0 if layer is None else layer)
    if report.groups is None:
        anchors = []
    else:
        anchors = [place for place in report.kept if reached[place] > 0]
    kept = report.kept if layer is None else inside
    steps, start = [], 0
    for frames, rows, columns in report.parts:
        for _ in range(frames):
            stop = start + rows * columns
            steps.append(
                Step(
                    reached[start:stop].reshape(rows, columns),
                    labels[start:stop].reshape(rows, columns),
                    [divmod(a - start, columns) for a in anchors if start <= a < stop],
                    sum(start <= token < stop for token in kept),
                )
            )
            start = stop
    return steps


def _labels(report: ImageReport, reached: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[N] the labels of all patches."""
    if report.groups is None:
        return np.where(reached > 0, 0, -1)
    labels = np.full(reached.size, -1)
    for number, (place, members) in enumerate(zip(report.kept, report.groups, strict=True)):
        if reached[place] > 0:
            labels[members] = number
    return labels
