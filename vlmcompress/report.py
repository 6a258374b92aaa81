"""What a compressed call did, in numbers that a person or a program can read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageReport:
    """One image or clip of the call. All indices are raster indices in `grid`."""

    index: int
    """Which image of the call, in the order given to the processor."""
    row: int
    """Which prompt of the batch it belongs to."""
    grid: tuple[int, int, int]
    before: int
    after: int
    """Tokens that enter the decoder."""
    kept: list[int]
    """The tokens that enter the decoder; for merged tokens the smallest member of each group."""
    groups: list[list[int]] | None
    """For mergers and poolers: the tokens that each output token stands for."""
    cuts: dict[int, list[int]]
    """Decoder layer -> the tokens that enter it and the layers after it."""
    per_layer: list[int]
    mean: float
    """True mean of `per_layer`."""


@dataclass(frozen=True)
class Report:
    """The last call of a compressed model."""

    method: str
    budget: str | None
    positions: str
    order: str
    images: list[ImageReport]
    milliseconds: dict[str, float]
    """`encoder`, `selection`, `prefill` (decoder only, without selection), `decode` (all steps)."""
    decode_tokens: int
    """Decoder steps after the prefill."""
    engaged: bool
    """Whether any visual token was removed."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        asked = f", budget {self.budget}" if self.budget else ""
        state = "engaged" if self.engaged else "NOT engaged: no token was removed"
        lines = [f"{self.method}{asked}, positions {self.positions}: {state}"]
        for image in self.images:
            t, h, w = image.grid
            grid = f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}"
            lines.append(
                f"  image {image.index} ({grid}): {image.before} -> {image.after} tokens, "
                f"mean over layers {image.mean:g}, per layer {_runs(image.per_layer)}"
            )
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in self.milliseconds.items())
        lines.append(f"  {times} ({self.decode_tokens} decode steps)")
        return "\n".join(lines)


def _runs(values: list[int]) -> str:
    """`[144, 144, 36]` as `144 x2, 36 x1`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return ", ".join(f"{value} x{count}" for value, count in runs)
