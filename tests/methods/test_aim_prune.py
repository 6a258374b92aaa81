"""AIM inside the decoder: importance against matrices, the falling line against the paper."""

import pytest
import torch
from shown import Layer

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.aim_prune import AimPrune
from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.tokens import Grid


def test_counts_of_llava_onevision():
    counts = tokens_per_layer(28, 1568, AimPrune().schedule(28, 1568, None))
    assert counts == [1568] * 15 + [1372, 1176, 980, 784, 588, 392, 196] + [0] * 6
    assert sum(counts) / 28 / 1568 == pytest.approx(0.661, abs=5e-4)


def test_counts_of_llava_with_the_l1_of_the_paper():
    counts = tokens_per_layer(32, 72, AimPrune(l1=13).schedule(32, 72, None))
    assert counts == [72] * 14 + [63, 54, 45, 36, 27, 18, 9] + [0] * 11
    assert sum(counts) / 32 / 72 == pytest.approx(0.547, abs=5e-4)


def test_counts_are_truncated_but_not_by_floating_point():
    # 10 * (1 - 0.2 * 3) is 3.999999999999999.
    assert AimPrune(l1=0, fall=0.2).schedule(6, 10, None) == {1: 8, 2: 6, 3: 4, 4: 2, 5: 0}
    assert AimPrune(l1=0).schedule(32, 10, None) == {1: 8, 2: 7, 3: 6, 4: 5, 5: 3, 6: 2, 7: 1, 8: 0}


@pytest.mark.parametrize("layers", [6, 28, 32])
def test_the_default_is_found_again_from_its_mean(layers):
    default = AimPrune().schedule(layers, 576, None)
    mean = mean_tokens(layers, 576, default)
    assert AimPrune().schedule(layers, 576, mean) == default


def test_a_budget_moves_l1_before_it_changes_the_fall():
    shorter = AimPrune().schedule(32, 576, 200)
    # A mean of l1 + 4.5 of 32 layers: 6 is the last below 200. There the fall is less than 72.
    assert min(shorter) == 7
    falls = [576 - shorter[7], shorter[7] - shorter[8], shorter[8] - shorter[9]]
    assert all(61 <= fall <= 64 for fall in falls)
    assert mean_tokens(32, 576, shorter) == pytest.approx(200, abs=0.5)
    assert AimPrune().schedule(12, 100, 99.5) == {11: 94}
    lowest = AimPrune().schedule(32, 576, 20)
    assert tokens_per_layer(32, 576, lowest)[:3] == [576, 64, 0]


def brute(view, steps, temperature):
    """Importance from the whole matrix of each head, in float64."""
    n = view.logits.shape[-1]
    total = torch.zeros(n, dtype=torch.float64)
    for logits in view.logits.double():
        graph = torch.zeros(n, n, dtype=torch.float64)
        for row in range(n):
            graph[row, : row + 1] = (logits[row, : row + 1] / temperature).softmax(0)
        mass = torch.full((n,), 1 / n, dtype=torch.float64)
        for _ in range(steps):
            mass = mass @ graph
        total += mass.square()
    return (total / len(view.logits)).sqrt()[view.visual]


@pytest.mark.parametrize("options", [{}, {"steps": 1}, {"temperature": 1.0, "steps": 2}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_importance_against_powers_of_the_matrix(options, seed):
    view, method = Layer(Grid(1, 2, 4), seed=seed), AimPrune(**options)
    expected = brute(view, method.steps, method.temperature)
    scores = method.score(view)
    n = view.logits.shape[-1]
    torch.testing.assert_close(scores / n, expected.float(), atol=1e-6, rtol=1e-3)
    order = sorted(range(8), key=lambda place: (-expected[place], place))
    assert method.keep(view, 3).tolist() == sorted(order[:3])


def test_importance_is_of_the_layer_that_just_ran():
    asked = []

    class Listening(Layer):
        def propagate(self, mass, *, temperature=1.0, steps=1, of="this"):
            asked.append((temperature, steps, of))
            return super().propagate(mass, temperature=temperature, steps=steps, of=of)

    AimPrune().score(Listening(Grid(1, 2, 2)))
    assert asked == [(0.1, 5, "previous")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -1}, "l1 must be 0 or more, got -1"),
        ({"fall": 0.0}, "fall must be above 0 and at most 1, got 0.0"),
        ({"fall": 1.5}, "fall must be above 0 and at most 1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be 1e-06 or more, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be 1e-06 or more, got nan"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(VLMCompressError, match=message):
        AimPrune(**options)
