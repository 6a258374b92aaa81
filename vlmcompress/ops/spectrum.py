"""Tokens on their grid as signals: what of them is high frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmcompress.tokens import Grid


def high_frequency(features: Tensor, grid: Grid, cutoff: float) -> Tensor:
    """Mean magnitude over the channels of each token after a Gaussian high-pass filter.

    Every channel of every frame is filtered by itself: frequency (u, v), counted from the middle of
    the spectrum, is multiplied by 1 - exp(-(u^2 + v^2) / (2 s^2)), s = cutoff * half the shorter
    side of the frame (rounded down, at least 1).

    Args:
        features: [N, D], N = len(grid), any floating dtype; computed in float32.
        grid: where the tokens lie.
        cutoff: above 0.

    Returns:
        [N] float32.

    Source: CLSE, arXiv 2606.24165, official code.
    """
    with torch.autocast(features.device.type, enabled=False):
        frames = features.detach().float().view(grid.t, grid.h, grid.w, -1)
        middle = (grid.h // 2, grid.w // 2)
        rows, columns = (
            (torch.arange(side, device=features.device) - half).square()
            for side, half in zip((grid.h, grid.w), middle, strict=True)
        )
        width = cutoff * max(1, min(middle))
        # Shifted back, so that it fits the spectrum as it comes.
        passed = 1 - torch.exp(-(rows[:, None] + columns) / (2 * width**2))
        passed = torch.fft.ifftshift(passed)[..., None]
        filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(frames, dim=(1, 2)) * passed, dim=(1, 2))
        return filtered.abs().mean(dim=-1).flatten()


def evolution(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """How unusually much each value changed: sigmoid(z / temperature).

    z is the standard score, over the tokens, of min(1, |after - before| / (before + mean(before))).

    Args:
        before, after: [N] float32, 0 or more.
        temperature: above 0.

    Returns:
        [N] float32 between 0 and 1.

    Source: CLSE, arXiv 2606.24165, official code.
    """
    changed = ((after - before).abs() / (before + before.mean() + _EPSILON)).clamp_max(1)
    spread = changed.std(correction=int(len(changed) > 1)) + _EPSILON
    return ((changed - changed.mean()) / spread / temperature).sigmoid()


_EPSILON = 1e-6
