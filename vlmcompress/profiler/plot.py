"""A picture of a profile: time against tokens, and the stages of every setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.errors import VLMCompressError

if TYPE_CHECKING:
    from vlmcompress.profiler.measure import Profile, ProfileRow

SUFFIXES = frozenset({".png", ".pdf", ".svg"})

_COLORS = {
    "media": "#bab0ac",
    "preprocess": "#9c755f",
    "encoder": "#4e79a7",
    "projector": "#a0cbe8",
    "selection": "#e15759",
    "prefill": "#f28e2b",
    "other": "#d4d4d4",
}
"""Stages up to the first token, in their order; selection stands out."""
_REFERENCE = ("full", "text-only")


def check_matplotlib() -> None:
    """Raise a VLMCompressError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise VLMCompressError(
            "--plot needs matplotlib: pip install 'vlmcompress[eval]'"
        ) from error


def draw(found: Profile, path: Path) -> None:
    """Write the picture to `path`; its suffix says the format.

    Raises:
        VLMCompressError: matplotlib is missing.
    """
    check_matplotlib()
    # Without pyplot nothing is registered anywhere, and no display is asked for.
    from matplotlib.figure import Figure

    rows = [row for row in found.rows if row.times is not None]
    height = max(4.0, 1.6 + 0.32 * len(rows))
    figure = Figure(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _against_tokens(left, rows)
    _stages(right, rows)
    figure.suptitle(_title(found.environment), fontsize=10)
    figure.savefig(path, dpi=150)


def _against_tokens(axes: Any, rows: list[ProfileRow]) -> None:
    """Time to the first token with quartiles; a line for each method, one between both ends."""
    ends = [_point(row) for row in rows if row.label in _REFERENCE]
    axes.plot(
        [x for x, *_ in ends],
        [y for _, y, _, _ in ends],
        color="0.75",
        linestyle="--",
        zorder=0,
        label="full to no visual tokens",
    )
    by_label: dict[str, list[ProfileRow]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    for label, own in by_label.items():
        x, y, *spread = zip(*sorted(map(_point, own)), strict=True)
        end = label in _REFERENCE
        style: dict[str, Any] = {"color": "black"} if end else {"label": label}
        axes.errorbar(x, y, spread, marker="o", markersize=4, capsize=2, **style)
        if end:
            away = {"xytext": (8, -14), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(label, (x[0], y[0]), **away)
    axes.set_xlabel("visual tokens, mean over decoder layers")
    axes.set_ylabel("time to the first token, ms")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.12)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)


def _point(row: ProfileRow) -> tuple[float, float, float, float]:
    """Tokens, median time, and how far the quartiles are below and above it."""
    assert row.seen is not None
    assert row.times is not None
    time = row.times.ttft
    return row.seen.tokens.mean, time.median, time.median - time.low, time.high - time.median


def _stages(axes: Any, rows: list[ProfileRow]) -> None:
    """A bar for each setting, the full model on top."""
    names = [row.label if row.budget is None else f"{row.label} @ {row.budget}" for row in rows]
    places, starts = range(len(rows)), [0.0] * len(rows)
    for stage, color in _COLORS.items():
        widths = [row.times.stages.get(stage, 0.0) if row.times else 0.0 for row in rows]
        if any(widths):
            axes.barh(places, widths, left=starts, color=color, label=stage, height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, end, row in zip(places, starts, rows, strict=True):
        saving = row.saving
        if saving is not None and saving.achieved is not None and row.label not in _REFERENCE:
            axes.text(end, place, f" {saving.achieved:.0%} achieved", va="center", fontsize=8)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=1.2 * max(starts))
    axes.set_xlabel("time up to the first token, with media and preprocessing, ms")
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _title(known: dict[str, Any]) -> str:
    device = known["device"] if known["device"] != "cpu" else known["cpu"]
    return (
        f"{known.get('model', 'model')}, {known['decoder_layers']} decoder layers, "
        f"{known['dtype']}, {known['attention']['decoder']}, "
        f"batch {known['prompt']['rows']}; {device}"
    )
