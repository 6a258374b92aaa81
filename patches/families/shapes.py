"""Grids of pictures, from what a feature call was told of their sizes in any unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlmcompress.patches.families.family import square
from vlmcompress.tokens import Grid

Shape = Sequence[int]
_SIZES = ("grid_thw", "grid_hw", "grids", "image_sizes", "spatial_shapes", "target_sizes")
"""Names of arguments, or how they end, that have a row (t, h, w) or (h, w) for each picture."""
_ALIKE = math.log(2)
"""A grid whose sides relate otherwise by more than this factor is not that of the picture."""


def shapes_of(modality: str, call: Mapping[str, Any]) -> list[Shape | None]:
    """Per picture or clip its size in some unit, as the arguments of a call say; else nothing."""
    for name, value in call.items():
        own = ("video" in name) == (modality == "video")
        if own and value is not None and any(part in name for part in _SIZES):
            rows = value.tolist() if isinstance(value, Tensor) else [list(row) for row in value]
            return [row if len(row) in (2, 3) else None for row in rows]
    return []


def pieces_of(
    features: Any, modality: str, call: Mapping[str, Any], shapes: Sequence[Shape | None]
) -> list[int]:
    """How many tokens each encoded piece has.

    Args:
        features: a list with one tensor for each piece, [n, ..., D], or [N, D] for all together.
        modality: "image" or "video".
        call: arguments of the feature call by name.
        shapes: of the pictures.
    """
    if not isinstance(features, Tensor) or features.dim() >= 3:
        return [math.prod(piece.shape[:-1]) for piece in features]
    total, areas = len(features), [math.prod(row) if row else 0 for row in shapes]
    if areas and all(areas) and not any(total * area % sum(areas) for area in areas):
        return [total * area // sum(areas) for area in areas]
    pixels = (v for name, v in call.items() if name.startswith("pixel_values") and v is not None)
    count = len(shapes) or len(next(pixels, ()))
    return [total // count] * count if 0 < count < total and total % count == 0 else [total]


def grid_of(count: int, shape: Shape | None) -> Grid:
    """The grid of `count` tokens of a picture of a shape (t, h, w) or (h, w) in any unit.

    A square or a row where none fits.
    """
    if shape is None or min(shape) < 1:
        return square(count)
    t, h, w = shape if len(shape) == 3 else (1, *shape)
    # Frames may be merged in time, too.
    divided = [frames for frames in dict.fromkeys((t, -(-t // 2), 1)) if count % frames == 0]
    for frames in divided:
        area = count // frames
        rows = round(math.sqrt(area * h / w))
        if rows and rows * round(area / rows) == area and h * (area // rows) == w * rows:
            return Grid(frames, rows, area // rows)
    for frames in divided:
        area = count // frames
        sides = [side for side in range(1, area + 1) if area % side == 0]
        off, rows = min((abs(math.log(side * side * w / (area * h))), side) for side in sides)
        if off < _ALIKE:
            return Grid(frames, rows, area // rows)
    return square(count)
