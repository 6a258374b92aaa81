"""PruneSID against its definition in Python, given the components."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from plain import CLIPS, clip, cosine, ranked

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.prunesid import PruneSID
from vlmcompress.ops.components import component_of
from vlmcompress.tokens import Grid, VisualTokens


def prunesid(shown, count):
    rows, attention = shown.features.tolist(), shown.cls_attention.tolist()
    own = component_of(shown.features, count // 4).tolist()
    groups = [[i for i in range(len(rows)) if own[i] == g] for g in range(max(1, count // 4))]
    pairs = list(combinations(range(len(rows)), 2))
    alike = {pair: cosine(rows[pair[0]], rows[pair[1]]) for pair in pairs}
    limit = count / 32 * sum(alike.values()) / max(1, len(pairs))
    survivors = []
    for group in groups:
        found = []
        for i in ranked(group, attention):
            if all(alike[min(i, j), max(i, j)] <= limit for j in found):
                found.append(i)
        survivors.append(found)
    sizes = [len(group) for group in groups]
    least = [min(1, size) for size in sizes]
    most = [
        min(5 * -(-count // 64), size, len(found))
        for size, found in zip(sizes, survivors, strict=True)
    ]
    while sum(most) < count:
        most = [min(top + 1, size) for top, size in zip(most, sizes, strict=True)]
    rest, total, done, quotas = count - sum(least), sum(map(len, survivors)), 0, []
    for g, found in enumerate(survivors):
        end = round(sum(map(len, survivors[: g + 1])) / total * rest)
        quotas.append(min(least[g] + end - done, most[g]))
        done = end
        assert len(found) <= sizes[g]
    for g in sorted(range(len(groups)), key=lambda g: -len(survivors[g])):
        while quotas[g] < most[g] and sum(quotas) < count:
            quotas[g] += 1
    kept = []
    for group, found, quota in zip(groups, survivors, quotas, strict=True):
        rest_of = [i for i in ranked(group, attention) if i not in found]
        kept += [*found, *rest_of][:quota]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grid", [*CLIPS, Grid(1, 6, 6), Grid(1, 9, 11)], ids=str)
def test_by_definition(grid, seed):
    shown = clip(grid, seed, width=24)
    # A mean cosine above 0, as that of features is, so that the limit suppresses something.
    shown.features.add_(1.0)
    step = max(1, len(grid) // 9)
    for count in range(1, len(grid) + 1, step):
        assert PruneSID().select(shown, count).tolist() == prunesid(shown, count)


def test_hand_example():
    """Two components: six tokens alike, and three with their opposites, in which 2 survive.

    8 of 12 go to 2 groups: one each, the other 6 as 1 and 2 survivors, so 3 and 5. The first keeps
    its three most attended; the second both survivors, 6 and 9, and then 7, 8 and 10.
    """
    one = 0.3 * torch.tensor([1.0, -1, 1, -1])
    other = 0.2 * torch.tensor([1.0, 1, -1, -1])
    ways = torch.stack([*[one] * 6, *[other] * 3, *[-other] * 3])
    attention = [0.1, 0.2, 0.6, 0.3, 0.5, 0.4, 0.9, 0.8, 0.7, 0.05, 0.04, 0.03]
    shown = VisualTokens(
        torch.logit(0.5 + ways), Grid(1, 3, 4), cls_attention=torch.tensor(attention)
    )
    found = component_of(shown.features, 2).tolist()
    assert found == [found[0]] * 6 + [1 - found[0]] * 6
    assert PruneSID().select(shown, 8).tolist() == [2, 4, 5, 6, 7, 8, 9, 10]
    assert PruneSID().select(shown, 12).tolist() == list(range(12))
    assert PruneSID().select(shown, 0).tolist() == []


def test_its_ratio_is_checked():
    with pytest.raises(VLMCompressError, match="prunesid: ratio must be above 0 and at most 1"):
        PruneSID(ratio=2)
    assert PruneSID().keep_count(Grid(1, 24, 24), None) == 64
