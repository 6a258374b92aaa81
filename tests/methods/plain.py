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


def diverse(rows, weights, count):
    """Places in the order picked: each the farthest from those picked so far, by its weight."""
    places = range(len(rows))
    apart = [
        [(1 - cosine(rows[i], rows[j])) * weights[j] if i != j else 0.0 for j in places]
        for i in places
    ]
    score = {j: sorted(apart[i][j] for i in places)[min(1, len(rows) - 1)] for j in places}
    picked = []
    for _ in range(count):
        left = [j for j in places if j not in picked]
        picked.append(max(left, key=lambda j: (round(score[j], 6), -j)))
        score = {j: min(apart[i][j] for i in picked) for j in places}
    return picked


def hangs(frames, free, theta, least):
    """(frame, place) -> the token of the frame before that it hangs on, in trees over time.

    Args:
        frames: [T][N] rows.
        free: [T][N] bool: which tokens may hang and be hung on.
        theta: cosine above which they do.
        least: trees that must be left, if need be by a higher cosine.
    """
    best = {}
    for f in range(1, len(frames)):
        for j, row in enumerate(frames[f]):
            over = [n for n in range(len(frames[f])) if free[f - 1][n]]
            if free[f][j] and over:
                parent = max(over, key=lambda n: (cosine(row, frames[f - 1][n]), -n))
                best[f, j] = cosine(row, frames[f - 1][parent]), (f - 1, parent)
    found = {token: parent for token, (value, parent) in best.items() if value > theta}
    spare = len(frames) * len(frames[0]) - least
    if len(found) > spare:
        bound = sorted((v for v, _ in best.values()), reverse=True)[spare - 1] if spare else 2
        found = {t: p for t, p in found.items() if best[t][0] > bound}
    return found


def dealt(quotas, total, most, least=0):
    """Token by token to the part that is furthest below its quota."""
    shares = [least] * len(quotas)
    for _ in range(total - sum(shares)):
        room = [i for i in range(len(quotas)) if shares[i] < most[i]]
        shares[max(room, key=lambda i: (round(quotas[i] - shares[i], 5), -i))] += 1
    return shares


def frames_of(kept, grid):
    return [int(place) // (grid.h * grid.w) for place in kept]
