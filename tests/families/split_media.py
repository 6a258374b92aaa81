"""The pictures of one prompt, out of those of a batch of two with one picture each."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def of_prompt(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """What of the media `inputs` belongs to the prompt `row`."""
    return {name: _own(name, value, inputs, row) for name, value in inputs.items()}


def _own(name: str, value: Any, inputs: dict[str, Any], row: int) -> Any:
    if not isinstance(value, Tensor):
        return value[row : row + 1] if isinstance(value, list) else value
    if name == "image_token_pooling":  # numbers of patches, counted through all crops
        mine = value.chunk(2)[row]
        return mine - mine.min() // 64 * 64
    if name == "pixel_values":
        sizes = [inputs.get(key) for key in ("image_grid_thw", "image_grid_hw", "target_sizes")]
        areas = next((size.prod(-1).tolist() for size in sizes if size is not None), None)
        if areas and len(value) == sum(areas):
            return value.split(areas)[row]
        if areas and len(value) == 1:  # one strip of patches
            side = value.shape[2]
            return value.split([side * int(area) for area in areas], -1)[row]
    return value.chunk(2)[row] if len(value) % 2 == 0 else value
