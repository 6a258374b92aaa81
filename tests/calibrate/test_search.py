"""G-Search on made-up models, and the sigmoid through what it finds."""

import pytest

from vlmcompress.calibrate.gsearch import STEPS, fit_kappa, search
from vlmcompress.methods.psigmoid import sigmoid_shares, solve_alpha


def needs(wanted):
    """A model that loses some agreement for each step that a layer is short of `wanted`."""

    def agree(found):
        held = [*found, *[found[-1]] * (len(wanted) - len(found))]
        return 1 - sum(0.01 * max(0, need - have) for need, have in zip(wanted, held, strict=True))

    return agree


def greedy(agree, layers, tolerance):
    """The same without bisection: from the smallest count up."""
    found = [STEPS]
    for layer in range(1, layers):
        for count in range(1, found[-1] + 1):
            if count == found[-1] or agree([*found, count]) >= (
                1 - tolerance * layer / (layers - 1) - 1e-9
            ):
                found.append(count)
                break
    return found


WANTED = [16, 15, 9, 9, 2, 1]


def test_without_tolerance_it_finds_what_is_needed():
    # A count holds for all later layers, too, so what they need is a bound.
    assert search(needs(WANTED), 6, 0.0) == WANTED
    assert search(needs([16] * 4), 4, 0.0) == [16] * 4
    assert search(needs([16, 1, 1]), 3, 0.0) == [16, 1, 1]


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("wanted", [WANTED, [16, 1, 1, 1], [16, 12, 12, 5, 5, 5, 3]], ids=str)
def test_bisection_finds_what_trying_all_counts_finds(wanted, tolerance):
    agree = needs(wanted)
    found = search(agree, len(wanted), tolerance)
    assert found == greedy(agree, len(wanted), tolerance)
    assert agree(found) >= 1 - tolerance - 1e-9
    assert found == sorted(found, reverse=True)
    assert min(found) >= 1


def test_tolerance_is_spread_over_the_layers():
    found = search(needs([16, 16, 16]), 3, 0.1)
    # Half of it, five steps, may go at layer 1: two steps there cost two more in layer 2.
    assert found == [16, 14, 8]


def test_a_later_layer_never_gets_more():
    def agree(found):
        return float(len(found) == 2 and found[-1] >= 8)

    assert search(agree, 4, 0.0) == [16, 8, 8, 8]


@pytest.mark.parametrize("kappa", [0.1, 0.5, 1.5, 4.0])
def test_kappa_of_a_sigmoid_is_found_again(kappa):
    shares = sigmoid_shares(12, kappa, solve_alpha(12, kappa, 0.4, all_enter=True), all_enter=True)
    assert fit_kappa(shares) == pytest.approx(kappa, rel=0.06)


def test_what_cannot_be_steeper_or_flatter_is_at_an_end():
    assert fit_kappa([1.0] * 6 + [0.0] * 6) > 5
    assert fit_kappa([1.0] * 6) == pytest.approx(0.05)
