"""Draws the pictures of docs/concepts.md.

python -m dev.pages.pictures.concepts --out docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from vlmcompress.methods.composition.spec import parse
from vlmcompress.tokens import Grid

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

LAYERS, TOKENS, BUDGET = 32, 576, 192
"""The decoder and the picture of LLaVA-1.5-7B, and a budget that it is often measured at."""
COMPARED = ("divprune", "fastv", "pyramiddrop")
_KEPT, _GONE, _LINE = "#d9822b", "#e4e7eb", "#52606d"
_STAGES = (
    ("pixels", "downsample, pixelprune"),
    ("encoder", "tome, pitome, unit-drop"),
    ("projector", "divprune, scope, visionzip"),
    ("decoder", "fastv, pyramiddrop, dart"),
)


def per_layer(spec: str) -> list[int]:
    """Visual tokens that enter each decoder layer when a method meets `BUDGET`.

    Args:
        spec: of methods at the projector or the decoder.
    """
    side = round(TOKENS**0.5)
    return parse(spec).plan(Grid(1, side, side), LAYERS, BUDGET).per_layer


def budgets() -> Any:
    """Tokens over layers: methods that cost the same."""
    figure, axes = pyplot.subplots(figsize=(7, 2.9))
    for spec, color in zip(COMPARED, ("#d9822b", "#2b6cb0", "#2f855a"), strict=True):
        counts = per_layer(spec)
        mean = sum(counts) / LAYERS
        axes.step(range(LAYERS), counts, where="mid", label=f"{spec}: mean {mean:.0f}", color=color)
    axes.axhline(TOKENS, color=_LINE, linestyle=":", linewidth=1)
    axes.text(LAYERS - 1, TOKENS - 12, "all tokens", ha="right", va="top", color=_LINE)
    axes.set(xlabel="decoder layer", ylabel="visual tokens", ylim=(0, TOKENS * 1.05))
    axes.legend(loc="center right", frameon=False)
    return figure


def stages() -> Any:
    """The way of a visual token, and where methods act."""
    figure, axes = pyplot.subplots(figsize=(8, 2.3))
    parts = ["pixels", "vision\nencoder", "projector", "decoder\nlayers", "answer"]
    for place, part in enumerate(parts):
        box = FancyBboxPatch(
            (2 * place, 1), 1.3, 0.8, boxstyle="round,pad=0.08", fc=_GONE, ec=_LINE
        )
        axes.add_patch(box)
        axes.text(2 * place + 0.65, 1.4, part, ha="center", va="center")
        if place:
            arrow = {"arrowstyle": "->", "color": _LINE}
            axes.annotate("", (2 * place - 0.1, 1.4), (2 * place - 0.6, 1.4), arrowprops=arrow)
    for (stage, examples), x in zip(_STAGES, (0.65, 2.65, 5.1, 7.0), strict=True):
        # What acts at the projector acts on what leaves it.
        tip = (5.6, 1.36) if stage == "projector" else (x, 0.9)
        axes.annotate("", tip, (x, 0.5), arrowprops={"arrowstyle": "->", "color": _KEPT})
        axes.text(x, 0.4, stage, ha="center", va="top", color=_KEPT, weight="bold")
        axes.text(x, 0.1, examples.replace(", ", "\n"), ha="center", va="top", color=_LINE, size=9)
    axes.set(xlim=(-0.3, 9.6), ylim=(-1.0, 2.0))
    axes.axis("off")
    return figure


def positions() -> Any:
    """Six visual tokens between words, three of which are kept: their position ids."""
    words, kept = ("what", "is"), (1, 4, 5)
    tokens = ["look", *(f"v{n}" for n in range(6)), *words]
    left = [place for place in range(len(tokens)) if place in (0, 7, 8) or place - 1 in kept]
    rows: Mapping[str, list[tuple[int, int]]] = {
        "all tokens": [(place, place) for place in range(len(tokens))],
        '"keep"': [(place, place) for place in left],
        '"renumber"': [(place, number) for number, place in enumerate(left)],
    }
    figure, axes = pyplot.subplots(figsize=(7.5, 2.4))
    for row, (name, cells) in enumerate(rows.items()):
        axes.text(-0.4, -row, name, ha="right", va="center")
        for place, number in cells:
            color = _KEPT if tokens[place].startswith("v") else _GONE
            axes.add_patch(_box((place, -row - 0.28), 0.7, 0.56, color, 0.04))
            axes.text(place + 0.35, -row, f"{tokens[place]}\n{number}", ha="center", va="center")
    axes.set(xlim=(-2, 9), ylim=(-2.5, 0.5))
    axes.axis("off")
    return figure


def _box(
    corner: tuple[float, float], width: float, height: float, color: str, pad: float
) -> FancyBboxPatch:
    style = f"round,pad={pad}"
    return FancyBboxPatch(corner, width, height, boxstyle=style, fc=color, ec=_LINE)


PICTURES = {"budgets": budgets, "stages": stages, "positions": positions}


def save(folder: Path, pictures: Mapping[str, Callable[[], Any]]) -> None:
    """Write figures as SVG files, NAME.svg each."""
    folder.mkdir(parents=True, exist_ok=True)
    # Text stays text, and equal figures make equal files.
    look: Any = {"svg.fonttype": "none", "svg.hashsalt": "vlmcompress", "font.family": "sans-serif"}
    with pyplot.rc_context(look):
        for name, make in pictures.items():
            figure = make()
            path = folder / f"{name}.svg"
            figure.savefig(path, bbox_inches="tight", facecolor="white", metadata={"Date": None})
            pyplot.close(figure)


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(prog="python -m dev.pages.pictures.concepts")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    save(parser.parse_args().out, PICTURES)


if __name__ == "__main__":
    main()
