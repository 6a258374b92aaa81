"""HiPrune and HiPrune++ against loops over the grid, and the hand examples of the reference."""

import pytest
import torch
from shown import tokens

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.hiprune import HiPrune
from vlmcompress.methods.hiprune_pp import HiPrunePP
from vlmcompress.tokens import Grid

BAD = [
    ({"ratio": 0}, "ratio"),
    ({"alpha": 5.1}, "alpha"),
    ({"alpha": -1}, "alpha"),
    ({"object_layer": 0}, "object_layer"),
    ({"object_layer": 1.5}, "object_layer"),
]


def best(scores, count, among):
    return sorted(among, key=lambda i: (-scores[i], i))[:count]


def beside(grid, i):
    """Up to four tokens next to token i of a frame, by rows and columns."""
    row, column = divmod(i, grid.w)
    places = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return {r * grid.w + c for r, c in places if 0 <= r < grid.h and 0 <= c < grid.w}


def hierarchy(grid, middle, deep, count, alpha):
    """HiPrune on one frame, in Python."""
    everyone = range(grid.h * grid.w)
    kept = set(best(middle, min(count, round(count * alpha / 5)), everyone))
    near = set().union(*(beside(grid, i) for i in kept)) - kept
    kept |= set(best(middle, count - len(kept), near))
    return kept | set(best(deep, count - len(kept), set(everyone) - kept))


def image(middle, deep, grid, **changes):
    received = {3: torch.as_tensor(middle).float(), 7: torch.as_tensor(deep).float()}
    return tokens(grid, encoder_attention=received, **changes)


def peaks(*places, of=16):
    return [1.0 if i in places else 0.1 for i in range(of)]


def test_hand_example_with_peaks_inside_the_image():
    shown = image(peaks(5, 10), range(16), Grid(1, 4, 4))
    assert HiPrune(alpha=1).select(shown, 10).tolist() == [1, 4, 5, 6, 9, 10, 11, 13, 14, 15]


def test_hand_example_with_peaks_in_corners_has_no_neighbours_across_the_edge():
    # The official code has buffers 0, 2, 4, 7, 8, 11, 13, 15: it clamps 3 - 4 and 12 + 4 to 0 and
    # 15, and takes 4 and 11 for neighbours of 3 and 12 across the end of a row.
    shown = image(peaks(3, 12), range(16), Grid(1, 4, 4))
    buffers, registers = [2, 7, 8, 13], [15, 14, 11, 10, 9, 6]
    expected = sorted([3, 12, *buffers, *registers])
    assert HiPrune(alpha=1).select(shown, 12).tolist() == expected


def test_hand_example_with_a_register_among_the_anchors_still_has_the_count():
    # The official code for Qwen lowers deep[5] by 1 only, takes 5 again, and returns 9 tokens.
    deep = [3.0 if i == 5 else 0.2 for i in range(16)]
    shown = image(peaks(5, 10), deep, Grid(1, 4, 4))
    assert HiPrune(alpha=1).select(shown, 10).tolist() == [0, 1, 2, 4, 5, 6, 9, 10, 11, 14]


@pytest.mark.parametrize("alpha", [0, 0.1, 1, 2.5, 5])
@pytest.mark.parametrize(
    "grid", [Grid(1, 3, 3), Grid(1, 2, 5), Grid(1, 1, 7), Grid(1, 6, 1)], ids=str
)
def test_it_follows_its_definition_on_every_grid(grid, alpha):
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        # Few levels, so that there are ties.
        middle, deep = torch.randint(5, (2, len(grid)), generator=g).tolist()
        for count in range(len(grid) + 1):
            kept = HiPrune(alpha=alpha).select(image(middle, deep, grid), count)
            assert kept.tolist() == sorted(hierarchy(grid, middle, deep, count, alpha))


def test_buffers_that_do_not_fit_are_those_that_the_object_layer_minds_least():
    middle = peaks(5)
    middle[4], middle[9] = 0.3, 0.2
    # Five tokens an anchor, but one anchor of three tokens already has four neighbours.
    shown = image(middle, range(16), Grid(1, 4, 4))
    assert HiPrune(alpha=2).select(shown, 3).tolist() == [4, 5, 9]


def test_frames_of_a_clip_are_taken_one_by_one():
    clip, frame = Grid(3, 3, 4), Grid(1, 3, 4)
    g = torch.Generator().manual_seed(0)
    middle, deep = torch.rand(2, 36, generator=g)
    kept = HiPrune(alpha=1).select(image(middle, deep, clip), 16).tolist()
    expected = []
    for start, quota in zip((0, 12, 24), (5, 5, 6), strict=True):
        own = slice(start, start + 12)
        found = hierarchy(frame, middle[own].tolist(), deep[own].tolist(), quota, 1)
        expected += sorted(start + i for i in found)
    assert kept == expected


def test_budgets_of_the_paper_have_the_anchors_of_the_paper():
    # 192, 128 and 64 tokens of LLaVA-1.5: 4, 3 and 1 anchors.
    grid = Grid(1, 24, 24)
    places = [2 * 24 + 2, 6 * 24 + 6, 10 * 24 + 10, 14 * 24 + 14, 18 * 24 + 18]
    middle = torch.zeros(576)
    middle[places] = torch.tensor([5.0, 4, 3, 2, 1])
    for count, anchors in [(192, 4), (128, 3), (64, 1), (25, 0)]:
        # Registers are the first tokens, which are no neighbours of anchors, and never the last.
        deep = torch.zeros(576)
        kept = set(HiPrune().select(image(middle, deep, grid), count).tolist())
        crosses = [{i} | beside(grid, i) for i in places]
        assert [cross <= kept for cross in crosses].count(True) >= anchors
        below = [cross for cross in crosses if min(cross) >= count]
        assert [cross <= kept for cross in below].count(True) == max(
            0, anchors - (len(crosses) - len(below))
        )
    assert HiPrune().keep_count(grid, None) == 192
    assert HiPrune(ratio=0.112).keep_count(grid, None) == 65


@pytest.mark.parametrize(
    ("depth", "whole", "layers"),
    [
        (23, range(23), [8, 22]),
        (32, [7, 15, 23, 31], [15, 31]),
        (26, range(26), [12, 25]),
        (12, [2, 9], [2, 9]),
        (2, range(2), [0, 1]),
        (1, range(1), [0]),
    ],
    ids=["CLIP of LLaVA", "Qwen2.5-VL", "SigLIP", "few whole layers", "two layers", "one layer"],
)
def test_layers_are_those_of_the_paper_or_the_middle_and_the_last(depth, whole, layers):
    assert sorted(HiPrune().encoder_layers(depth, whole)) == layers
    assert sorted(HiPrunePP().encoder_layers(depth, whole)) == layers


def test_the_object_layer_can_be_chosen():
    assert sorted(HiPrune(object_layer=3).encoder_layers(23, range(23))) == [2, 22]


def test_one_layer_serves_as_both():
    scores = torch.arange(16.0)
    shown = tokens(Grid(1, 4, 4), encoder_attention={0: scores})
    assert HiPrune(alpha=1).select(shown, 5).tolist() == [11, 12, 13, 14, 15]


@pytest.mark.parametrize(("options", "named"), BAD, ids=str)
def test_options_out_of_range_are_named(options, named):
    with pytest.raises(VLMCompressError, match=f"hiprune: {named}"):
        HiPrune(**options)
    with pytest.raises(VLMCompressError, match=f"hiprune-pp: {named}"):
        HiPrunePP(**options)


def test_beta_out_of_range_and_missing_signals_are_named():
    with pytest.raises(VLMCompressError, match="beta must be from 0 to 1"):
        HiPrunePP(beta=1.1)
    nothing = tokens(Grid(1, 4, 4), encoder_attention=None)
    with pytest.raises(VLMCompressError, match="needs encoder_attention"):
        HiPrune().select(nothing, 3)
    for text in (None, torch.zeros(0, 16)):
        with pytest.raises(VLMCompressError, match="hiprune-pp needs"):
            HiPrunePP().select(tokens(Grid(1, 4, 4), text=text), 3)
    broken = tokens(Grid(1, 4, 4), features=torch.full((16, 16), torch.nan))
    with pytest.raises(VLMCompressError, match="features must be finite"):
        HiPrune().select(broken, 3)
    with pytest.raises(VLMCompressError, match="each of 16 tokens"):
        HiPrune().select(image(range(9), range(9), Grid(1, 4, 4)), 3)


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("grid", [Grid(1, 3, 3), Grid(2, 2, 4)], ids=str)
def test_text_has_its_share_of_what_hiprune_left(grid, beta):
    size = grid.h * grid.w
    for seed in range(3):
        shown = tokens(grid, seed)
        middle, deep = (shown.encoder_attention[n].tolist() for n in (0, 5))
        text = shown.text.double().mean(0)
        features = shown.features.double()
        closeness = (features @ text / features.norm(dim=1)).tolist()
        for count in range(len(grid) + 1):
            expected = []
            for frame in range(grid.t):
                quota = (frame + 1) * count // grid.t - frame * count // grid.t
                own = slice(frame * size, (frame + 1) * size)
                by_text = round(beta * quota)
                kept = hierarchy(grid, middle[own], deep[own], quota - by_text, 1)
                kept |= set(best(closeness[own], by_text, set(range(size)) - kept))
                expected += sorted(frame * size + i for i in kept)
            found = HiPrunePP(alpha=1, beta=beta).select(shown, count).tolist()
            assert found == expected


def test_another_question_keeps_other_tokens():
    grid = Grid(1, 6, 6)
    shown, other = tokens(grid), tokens(grid, text=tokens(grid, 9).text)
    assert HiPrune().select(shown, 12).tolist() == HiPrune().select(other, 12).tolist()
    assert HiPrunePP(beta=0.5).select(shown, 12).tolist() != (
        HiPrunePP(beta=0.5).select(other, 12).tolist()
    )
