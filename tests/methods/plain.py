"""Definitions in Python floats that the oracles of several methods share."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vlmcompress.tokens import Grid, VisualTokens

CLIPS = [Grid(1, 1, 1), Grid(1, 3, 3), Grid(2, 1, 3), Grid(5, 1, 2), Grid(3, 2, 2), Grid(9, 1, 1)]


def clip(grid, seed=0, width=6, **changes):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(len(grid), width, generator=draw)
    attention = torch.rand(len(grid), generator=draw)
    return replace(VisualTokens(features, grid, cls_attention=attention), **changes)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def ranked(indices, score):
    """From the highest score, of equals the first."""
    return sorted(indices, key=lambda i: (-score[i], i))


def dealt(quotas, total, most, least=0):
    """Token by token to the part that is furthest below its quota."""
    shares = [least] * len(quotas)
    for _ in range(total - sum(shares)):
        room = [i for i in range(len(quotas)) if shares[i] < most[i]]
        shares[max(room, key=lambda i: (round(quotas[i] - shares[i], 5), -i))] += 1
    return shares


def frames_of(kept, grid):
    return [int(place) // (grid.h * grid.w) for place in kept]
