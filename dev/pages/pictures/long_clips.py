"""Draws the picture of docs/long_clips.md: memory and accuracy over the frames of a clip.

python -m dev.pages.pictures.long_clips --out docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from dev.pages.long_clips import MB, figures
from dev.pages.pictures.concepts import save

matplotlib.use("svg")
from matplotlib import pyplot

_COLORS = ("#2b6cb0", "#d9822b", "#52606d")

Row = Mapping[str, Any]


def long_clips(measured: Mapping[str, Sequence[Row]]) -> Any:
    """Peak memory beside accuracy, both over frames."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    memory = measured["memory"]
    for limit, color in zip(dict.fromkeys(r["max_memory"] for r in memory), _COLORS, strict=False):
        rows = [row for row in memory if row["max_memory"] == limit]
        name = "at once" if limit is None else f"in chunks of {limit}"
        for what, line in (("process", "-"), ("tensors", ":")):
            left.plot(
                [row["frames"] for row in rows],
                [row[what] / MB for row in rows],
                line,
                marker="o",
                color=color,
                label=f"{what}, {name}",
            )
    left.set(xlabel="frames", ylabel="peak memory, MB", xscale="log", ylim=(0, None))
    accuracies = measured["accuracy"]
    for case, color in zip(dict.fromkeys(r["case"] for r in accuracies), _COLORS, strict=False):
        points = _means([row for row in accuracies if row["case"] == case])
        right.plot(*zip(*points, strict=True), marker="o", color=color, label=case)
    right.set(xlabel="frames", ylabel="accuracy", xscale="log", ylim=(0, 1))
    for axes in (left, right):
        frames = sorted({row["frames"] for row in [*memory, *accuracies]})
        axes.set_xticks(frames, [str(count) for count in frames])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _means(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """Frames and the mean over all questions of that length."""
    found = []
    for frames in sorted({row["frames"] for row in rows}):
        here = [row for row in rows if row["frames"] == frames]
        right = sum(row["accuracy"] * row["n"] for row in here)
        found.append((frames, right / sum(row["n"] for row in here)))
    return found


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(prog="python -m dev.pages.pictures.long_clips")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    save(parser.parse_args().out, {"long_clips": lambda: long_clips(figures())})


if __name__ == "__main__":
    main()
