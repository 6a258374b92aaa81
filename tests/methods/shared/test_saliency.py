"""What methods share that go by the attention of the vision tower, image by image."""

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods import get_method
from vlmcompress.methods.shared.per_frame import frame_quotas, select_by_frame
from vlmcompress.methods.shared.saliency import saliency
from vlmcompress.tokens import Grid, VisualTokens


def test_saliency_is_the_attention_of_cls_or_what_the_deepest_layer_gives():
    shown = tokens(Grid(1, 2, 3))
    assert torch.equal(saliency(shown), shown.cls_attention)
    without = tokens(Grid(1, 2, 3), cls_attention=None)
    assert torch.equal(saliency(without), shown.encoder_attention[5])
    half = tokens(Grid(1, 2, 3), cls_attention=shown.cls_attention.bfloat16())
    assert saliency(half).dtype == torch.float32


@pytest.mark.parametrize("received", [None, {}], ids=["none", "empty"])
def test_saliency_says_what_is_missing_or_broken(received):
    plain = VisualTokens(torch.zeros(4, 2), Grid(1, 2, 2), encoder_attention=received)
    with pytest.raises(VLMCompressError, match="cls_attention or encoder_attention is needed"):
        saliency(plain)
    bad = torch.tensor([0.1, torch.nan, 0.2, torch.inf])
    with pytest.raises(VLMCompressError, match="cls_attention must be finite: 2 of 4"):
        saliency(VisualTokens(torch.zeros(4, 2), Grid(1, 2, 2), cls_attention=bad))
    with pytest.raises(VLMCompressError, match=r"each of 4 tokens, got shape \(3,\)"):
        saliency(VisualTokens(torch.zeros(4, 2), Grid(1, 2, 2), cls_attention=bad[:3]))


@pytest.mark.parametrize("frames", range(1, 7))
def test_quotas_of_frames_are_even_and_sum_to_the_count(frames):
    grid = Grid(frames, 2, 2)
    for count in range(-1, len(grid) + 3):
        quotas = [quota for _, quota in frame_quotas(grid, count)]
        assert sum(quotas) == max(0, min(count, len(grid)))
        assert all(quotas)
        if count >= frames:
            assert len(quotas) == frames
            assert max(quotas) - min(quotas) <= 1
    assert [own for own, _ in frame_quotas(grid, len(grid))] == [
        slice(4 * frame, 4 * frame + 4) for frame in range(frames)
    ]


def test_picks_of_frames_are_numbered_through_and_sorted():
    grid = Grid(3, 2, 2)
    asked = []

    def last_first(own, quota):
        asked.append((own.start, own.stop, quota))
        return torch.tensor([3, 1, 0, 2])[:quota]

    found = select_by_frame(grid, 5, last_first, torch.device("cpu"))
    assert asked == [(0, 4, 1), (4, 8, 2), (8, 12, 2)]
    assert found.tolist() == [3, 5, 7, 9, 11]
    assert select_by_frame(grid, 0, last_first, torch.device("cpu")).tolist() == []


@pytest.mark.parametrize(
    "name", ["hiprune-pp", "todre-select", "visionzip", "vispruner", "holov(side=1, alpha=0)"]
)
def test_autocast_changes_no_pick(name):
    method = get_method(name)
    act = method.reduce if name == "visionzip" else method.select
    shown = tokens(Grid(1, 20, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = act(shown, 90)
    expected = act(shown, 90)
    if name == "visionzip":
        assert torch.equal(found.features, expected.features)
        found, expected = found.members, expected.members
    assert torch.equal(found, expected)
