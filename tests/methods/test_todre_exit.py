"""ToDRE, stage 2: all or none."""

import pytest
import torch

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.todre_exit import TodreExit


class Shown:
    layer = 28
    visual = torch.tensor([1, 2, 4])

    def __init__(self, rows):
        self.rows = torch.tensor(rows)
        self.asked = []

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked.append((rows, keys, rope, of))
        return self.rows


# Two heads, two rows of text: the visual columns hold .04, .12, .08 and .16 of the mass.
ROWS = [
    [[0.9, 0.01, 0.02, 0.06, 0.01], [0.8, 0.04, 0.04, 0.08, 0.04]],
    [[0.9, 0.04, 0.02, 0.02, 0.02], [0.8, 0.06, 0.06, 0.04, 0.04]],
]


@pytest.mark.parametrize(
    ("tau", "kept"), [(0.1, [0, 1, 2]), (0.09, [0, 1, 2]), (0.11, []), (1, [])]
)
def test_tokens_leave_together_below_the_mean_mass_of_text_rows(tau, kept):
    view = Shown(ROWS)
    assert TodreExit().score(view).sum().item() == pytest.approx(0.1)
    method = TodreExit(tau=tau if tau != 0.1 else 0.0999)
    assert method.keep(view, 3).tolist() == kept
    assert view.asked[-1] == ("text", "all", True, "this")


def test_a_mass_of_exactly_tau_is_enough():
    view = Shown([[[0.5, 0.25, 0.125, 0.0, 0.125]]])
    assert TodreExit(tau=0.5).keep(view, 3).tolist() == [0, 1, 2]
    assert TodreExit(tau=0.5001).keep(view, 3).tolist() == []


@pytest.mark.parametrize(("layers", "layer"), [(32, 28), (28, 24), (40, 35), (6, 5), (2, 1)])
def test_looked_at_after_seven_eighths(layers, layer):
    assert TodreExit().schedule(layers, 100, None) == {layer: 100}
    assert TodreExit().schedule(layers, 100, 99.6) == {layer: 100}


@pytest.mark.parametrize("budget", [64, 99.4, 0, float("nan")])
def test_no_budget_of_its_own(budget):
    with pytest.raises(BudgetError, match=r"may keep all 100 .* \"todre-select\+todre-exit\""):
        TodreExit().schedule(32, 100, budget)


def test_nan_is_one_clear_error():
    with pytest.raises(VLMCompressError, match="before layer 28 is not finite"):
        TodreExit().keep(Shown([[[float("nan")] * 5]]), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, "tau must be between 0 and 1, got -0.1"),
        ({"tau": "x"}, "tau must be a number, got 'x'"),
        ({"layer": 0}, "layer must be 1 or more, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message):
        TodreExit(**options)
