"""How light tells how far a patch gets, in overlays and in the legend below them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_DROPPED = 0.4
"""Brightness of a patch that never enters the decoder; 1 is the image itself."""
EDGE = (255, 200, 40)
PAGE = (255, 255, 255)


def dimmed(
    pixels: npt.NDArray[np.float64], reached: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Pixels darker and greyer the fewer layers they reach.

    Args:
        pixels: [H, W, 3].
        reached: [H, W, 1] share of the layers.
    """
    light, color = _DROPPED + (1 - _DROPPED) * reached, (1 + reached) / 2
    shown: npt.NDArray[np.float64] = light * (
        color * pixels + (1 - color) * pixels.mean(axis=2, keepdims=True)
    )
    return shown
