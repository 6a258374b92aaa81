"""CLSE: published settings, and scores on a fake layer."""

from __future__ import annotations

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.clse import CLSE
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.ops.spectrum import evolution, high_frequency
from vlmcompress.tokens import Grid


@pytest.mark.parametrize(
    ("setting", "counts", "mean"),
    [
        (192, (330, 210, 62), 208.0625),
        (128, (220, 140, 41), 144.59375),
        (64, (110, 70, 20), 81.125),
    ],
)
def test_settings_of_llava(setting, counts, mean):
    schedule = CLSE(setting).schedule(32, 576, None)
    assert schedule == dict(zip((1, 11, 21), counts, strict=True))
    assert mean_tokens(32, 576, schedule) == mean


def test_a_budget_scales_the_setting():
    schedule = CLSE().schedule(32, 57_600, 15_000)
    assert abs(mean_tokens(32, 57_600, schedule) - 15_000) <= 0.5
    first, second, third = schedule.values()
    assert first / second == pytest.approx(330 / 210, abs=0.01)
    assert second / third == pytest.approx(210 / 62, abs=0.01)
    with pytest.raises(BudgetError, match=r"1\*576/32 = 18 .* got 10"):
        CLSE().schedule(32, 576, 10)
    assert list(CLSE().schedule(6, 36, None)) == [1, 2, 4]


def attention(view):
    return view.attention(rows="last", of="previous").mean((0, 1))[view.visual]


@pytest.mark.parametrize("grid", [Grid(1, 4, 4), Grid(2, 3, 3)], ids=str)
def test_where_the_grid_is_whole_attention_is_multiplied_by_change(grid):
    view = Layer(grid)
    before, after = (
        high_frequency(hidden[view.visual], grid, 0.1) for hidden in (view.entered, view.hidden)
    )
    change = evolution(before, after, 0.1)
    assert torch.allclose(CLSE().score(view), attention(view) * change)
    assert not torch.allclose(change, change.mean())
    kept = CLSE().keep(view, 4).tolist()
    assert kept == sorted((attention(view) * change).topk(4).indices.tolist())


def test_every_grid_of_an_image_is_filtered_by_itself_and_all_are_compared():
    view = Layer(Grid(1, 1, 13))
    view.parts = (Grid(1, 2, 2), Grid(1, 3, 3))
    found = []
    for hidden in (view.entered, view.hidden):
        rows = hidden[view.visual]
        pieces = [high_frequency(rows[:4], view.parts[0], 0.1)]
        found.append(torch.cat([*pieces, high_frequency(rows[4:], view.parts[1], 0.1)]))
    assert torch.allclose(CLSE().score(view), attention(view) * evolution(*found, 0.1))


def test_where_tokens_are_missing_attention_decides():
    view = Layer(Grid(1, 4, 4), survivors=(0, 1, 5, 9, 12))
    assert torch.equal(CLSE().score(view), attention(view))


@pytest.mark.parametrize("options", [{"setting": 100}, {"cutoff": 0}, {"temperature": 0}])
def test_options_are_checked(options):
    with pytest.raises(VLMCompressError, match=f"clse: {next(iter(options))} must be"):
        CLSE(**options)
