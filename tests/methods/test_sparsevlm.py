"""SparseVLM: published settings, raters and scores on a fake layer."""

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.methods.sparsevlm import SparseVLM
from vlmcompress.tokens import Grid


@pytest.mark.parametrize(
    ("setting", "counts", "mean"),
    [
        (192, (300, 200, 110), 202.75),
        (128, (303, 110, 36), 140.8125),
        (64, (66, 30, 17), 79.1875),
    ],
)
def test_settings_of_llava(setting, counts, mean):
    schedule = SparseVLM(setting).schedule(32, 576, None)
    assert schedule == dict(zip((3, 7, 16), counts, strict=True))
    assert mean_tokens(32, 576, schedule) == mean


@pytest.mark.parametrize(
    ("layers", "cuts"), [(28, [3, 6, 14]), (40, [4, 9, 20]), (6, [1, 2, 3]), (3, [1, 2]), (2, [1])]
)
def test_the_cuts_lie_at_the_same_shares_of_the_depth(layers, cuts):
    assert list(SparseVLM().schedule(layers, 576, None)) == cuts


def test_a_budget_scales_the_setting():
    schedule = SparseVLM().schedule(32, 57_600, 15_000)
    assert abs(mean_tokens(32, 57_600, schedule) - 15_000) <= 0.5
    first, second, third = schedule.values()
    assert first / second == pytest.approx(1.5, abs=0.01)
    assert second / third == pytest.approx(200 / 110, abs=0.01)
    with pytest.raises(BudgetError, match=r"3\*576/32 = 54 .* got 20"):
        SparseVLM().schedule(32, 576, 20)


def test_a_setting_that_is_not_published_is_refused():
    with pytest.raises(VLMCompressError, match="setting must be one of 192, 128, 64, got 100"):
        SparseVLM(100)


class Two(Layer):
    """Two words after the picture of which only the first is about it."""

    def __post_init__(self):
        self.words = 2
        super().__post_init__()
        self.hidden = torch.zeros_like(self.hidden)
        self.hidden[self.visual, 0] = 1.0
        self.hidden[self.text[0], 0] = 3.0

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        assert (rows, keys, rope, of) == ("text", "all", True, "previous")
        return super().attention(rows, keys, rope=rope, of=of)


def test_only_raters_rank():
    view = Two(Grid(1, 3, 3))
    rows = view.attention(rows="text", of="previous")[..., view.visual]
    scores = SparseVLM().score(view)
    torch.testing.assert_close(scores, rows[:, 0].mean(0))
    assert not torch.allclose(scores, rows.mean(dim=(0, 1)))


def test_where_all_words_are_alike_all_of_them_rank():
    view = Two(Grid(1, 3, 3))
    view.hidden[view.text] = 0.0
    rows = view.attention(rows="text", of="previous")[..., view.visual]
    torch.testing.assert_close(SparseVLM().score(view), rows.mean(dim=(0, 1)))


def test_a_prompt_without_text_is_one_clear_error():
    with pytest.raises(VLMCompressError, match="there are none"):
        SparseVLM().keep(Layer(Grid(1, 3, 3), words=0), 4)
