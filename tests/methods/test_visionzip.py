"""VisionZip against its steps in Python."""

import math

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.visionzip import VisionZip
from vlmcompress.tokens import Grid


def zipped(features, keys, attention, count, share):
    """Groups as (target, others that join it), in Python floats, sorted by smallest member."""
    n = len(features)
    contextual = max(1, round(share * count))
    order = sorted(range(n), key=lambda i: (-attention[i], i))
    dominant = order[: count - contextual]
    rest = [i for i in range(n) if i not in dominant]
    targets = rest[:: len(rest) // contextual][:contextual]

    def cosine(i, j):
        dot = sum(a * b for a, b in zip(keys[i], keys[j], strict=True))
        return dot / (math.hypot(*keys[i]) * math.hypot(*keys[j]))

    groups = {i: [] for i in [*dominant, *targets]}
    for i in rest:
        if i not in targets:
            groups[max(targets, key=lambda t: (cosine(i, t), -t))].append(i)
    return sorted(groups.items(), key=lambda group: min([group[0], *group[1]]))


def check(reduction, features, groups):
    assert reduction.groups() == [sorted([target, *others]) for target, others in groups]
    for made, (target, others) in zip(reduction.features, groups, strict=True):
        if others:
            expected = (features[target].double() + features[others].double().mean(0)) / 2
            torch.testing.assert_close(made, expected.float())
        else:
            assert torch.equal(made, features[target])


def test_hand_example():
    # Attention keeps 4. Of the rest, 0 1 2 3 5 6 7, every third is a target: 0 and 3 for two.
    attention = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1])
    keys = torch.tensor([[1.0, 0], [1, 2], [2, 1], [0, 1], [1, 1], [0, 3], [5, 0], [1, 5]])
    features = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    shown = tokens(Grid(1, 2, 4), features=features, keys=keys, cls_attention=attention)
    made = VisionZip(contextual=0.6).reduce(shown, 3)
    assert made.groups() == [[0, 2, 6], [1, 3, 5, 7], [4]]
    # (0 + (2 + 6) / 2) / 2, (3 + (1 + 5 + 7) / 3) / 2, and 4 as it was.
    torch.testing.assert_close(made.features[:, 0], torch.tensor([2.0, 11 / 3, 4.0]))
    torch.testing.assert_close(made.features[:, 1], made.features[:, 0] * 10)


@pytest.mark.parametrize("share", [0.15625, 0.5, 1])
def test_it_follows_its_definition(share):
    for seed, size in [(0, 10), (1, 9), (2, 5), (3, 1), (4, 2)]:
        shown = tokens(Grid(1, 1, size), seed)
        lists = [shown.features, shown.keys, shown.cls_attention]
        features, keys, attention = (x.double().tolist() for x in lists)
        for count in range(1, size + 1):
            made = VisionZip(contextual=share).reduce(shown, count)
            check(made, shown.features, zipped(features, keys, attention, count, share))


@pytest.mark.parametrize(("count", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_splits_of_the_paper(count, contextual):
    shown = tokens(Grid(1, 24, 24))
    made = VisionZip().reduce(shown, count)
    dominant = shown.cls_attention.argsort(descending=True)[: count - contextual].tolist()
    alone = {group[0] for group in made.groups() if len(group) == 1}
    assert alone >= set(dominant)
    assert len(made.groups()) == count
    # The other tokens are all in the groups of targets.
    assert sum(len(group) > 1 for group in made.groups()) <= contextual
    assert VisionZip().keep_count(Grid(1, 24, 24), None) == 64


@pytest.mark.parametrize("grid", [Grid(1, 5, 5), Grid(3, 3, 3), Grid(7, 1, 1)], ids=str)
def test_every_token_stands_in_exactly_one_group(grid):
    shown = tokens(grid)
    for count in range(1, len(grid) + 1):
        made = VisionZip().reduce(shown, count)
        assert len(made.groups()) == len(made.features) == count
        assert sorted(made.members.tolist()) == list(range(len(grid)))
        assert made.anchors.tolist() == sorted(made.anchors.tolist())
    assert torch.equal(made.features, shown.features)


def test_frames_of_a_clip_are_one_pool_only_where_there_is_not_enough_for_each():
    shown = tokens(Grid(3, 3, 3))
    lists = [shown.features, shown.keys, shown.cls_attention]
    features, keys, attention = (x.double().tolist() for x in lists)
    expected = []
    for start in (0, 9, 18):
        own = slice(start, start + 9)
        for target, others in zipped(features[own], keys[own], attention[own], 2, 0.15625):
            expected.append((start + target, [start + i for i in others]))
    check(VisionZip().reduce(shown, 6), shown.features, expected)
    pool = zipped(features, keys, attention, 5, 0.15625)
    check(VisionZip().reduce(shown, 5), shown.features, pool)
    assert any(
        min(group) // 9 != max(group) // 9 for group in VisionZip().reduce(shown, 5).groups()
    )


def test_without_keys_features_stand_in():
    shown = tokens(Grid(1, 4, 4), keys=None)
    method = VisionZip(contextual=0.5)
    expected = method.reduce(tokens(Grid(1, 4, 4), keys=shown.features), 6)
    assert method.reduce(shown, 6).groups() == expected.groups()
    assert expected.groups() != method.reduce(tokens(Grid(1, 4, 4)), 6).groups()


def test_merged_tokens_are_averaged_in_float32_and_keep_the_dtype():
    shown = tokens(Grid(1, 4, 4))
    half = (shown.features * 1000).half()
    made = VisionZip().reduce(tokens(Grid(1, 4, 4), features=half), 4)
    whole = VisionZip().reduce(tokens(Grid(1, 4, 4), features=half.float()), 4)
    assert made.features.dtype == torch.float16
    assert torch.equal(made.features, whole.features.half())
    # Sums of such tokens are beyond float16.
    big = torch.full((16, 2), 60000.0).half()
    assert (VisionZip().reduce(tokens(Grid(1, 4, 4), features=big), 4).features == 60000).all()


def test_nothing_is_asked_for_and_broken_input_is_named():
    shown = tokens(Grid(1, 3, 3))
    made = VisionZip().reduce(shown, 0)
    assert made.features.shape == (0, 16)
    assert made.groups() == []
    keys = shown.keys.clone()
    keys[2] = torch.nan
    with pytest.raises(VLMCompressError, match="keys must be finite: 1 of 9"):
        VisionZip().reduce(tokens(Grid(1, 3, 3), keys=keys), 3)
    for options, named in [({"ratio": 2}, "ratio"), ({"contextual": 0}, "contextual")]:
        with pytest.raises(VLMCompressError, match=f"visionzip: {named} must be above 0"):
            VisionZip(**options)
