"""P-Sigmoid: figures of the reference, search, scores on a fake layer."""

import json
import math

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.methods.psigmoid import PSigmoid, sigmoid_shares, solve_alpha
from vlmcompress.tokens import Grid


@pytest.mark.parametrize(
    ("layers", "share", "kappa", "alpha"),
    [(32, 0.25, 0.5, 7.4634), (32, 0.125, 0.4, 2.9396), (4, 0.5, 1.0, 1.5)],
)
def test_alpha_of_the_reference(layers, share, kappa, alpha):
    assert solve_alpha(layers, kappa, share) == pytest.approx(alpha, abs=5e-5)


def test_hand_example():
    shares = sigmoid_shares(4, 1.0, 1.5)
    assert shares == pytest.approx([0.8176, 0.6225, 0.3775, 0.1824], abs=5e-5)
    assert [round(share * 100) for share in shares] == [82, 62, 38, 18]
    assert shares == pytest.approx([1 / (1 + math.exp(i - 1.5)) for i in range(4)])


@pytest.mark.parametrize("layers", [2, 6, 32])
@pytest.mark.parametrize("kappa", [0.01, 0.5, 9.0, 1000.0])
def test_alpha_meets_the_mean_with_all_tokens_in_layer_0(layers, kappa):
    mean = (1 + 1 / layers) / 2
    alpha = solve_alpha(layers, kappa, mean, all_enter=True)
    shares = sigmoid_shares(layers, kappa, alpha, all_enter=True)
    assert shares[0] == 1
    assert sum(shares) / layers == pytest.approx(mean, abs=1e-6)
    assert shares == sorted(shares, reverse=True)


def every_alpha(layers, tokens, kappa):
    """Every schedule that some alpha makes, one on each side of each step."""
    alphas = [-1e3, 1e3]
    for layer in range(1, layers):
        for n in range(tokens):
            step = layer - math.log((tokens - n - 0.5) / (n + 0.5)) / kappa
            alphas += [step - 1e-7, step + 1e-7]
    made = []
    for alpha in alphas:
        counts = {0: tokens}
        for layer in range(1, layers):
            share = 1 / (1 + math.exp(min(700.0, kappa * (layer - alpha))))
            counts[layer] = max(1, round(share * tokens))
        made.append(counts)
    return made


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("kappa", [0.2, 1.3])
@pytest.mark.parametrize("layers", [2, 6, 12])
def test_no_other_alpha_is_nearer_to_the_budget(layers, kappa, tokens):
    means = [mean_tokens(layers, tokens, counts) for counts in every_alpha(layers, tokens, kappa)]
    for step in range(1, 4 * tokens + 1):
        budget = step / 4
        if budget < min(means) - 1e-6:
            with pytest.raises(BudgetError):
                PSigmoid(kappa=kappa).schedule(layers, tokens, budget)
            continue
        schedule = PSigmoid(kappa=kappa).schedule(layers, tokens, budget)
        off = abs(mean_tokens(layers, tokens, schedule) - budget)
        assert off <= min(abs(mean - budget) for mean in means) + 1e-9
        assert off <= 0.5
        per_layer = tokens_per_layer(layers, tokens, schedule)
        assert per_layer[0] == tokens
        assert per_layer == sorted(per_layer, reverse=True)
        assert min(per_layer) >= 1


def test_without_a_budget_a_quarter_stays():
    assert mean_tokens(32, 576, PSigmoid().schedule(32, 576, None)) == pytest.approx(144, abs=0.5)
    half = PSigmoid(ratio=0.5).schedule(32, 576, None)
    assert mean_tokens(32, 576, half) == pytest.approx(288, abs=0.5)


def test_a_shallow_decoder_keeps_at_least_what_it_must():
    assert PSigmoid().schedule(2, 100, None) == {1: 1}


@pytest.mark.parametrize("tokens", [0, 1])
def test_of_one_token_nothing_is_dropped(tokens):
    assert PSigmoid().schedule(6, tokens, None) == {}
    assert PSigmoid().schedule(6, tokens, tokens) == {}


def test_a_budget_out_of_reach_names_the_smallest():
    with pytest.raises(BudgetError, match=r"\(576 \+ 31\) / 32 = 18\.97 .* got 18: comb.*\+psigm"):
        PSigmoid().schedule(32, 576, 18)
    assert PSigmoid().schedule(32, 576, 18.97) == {1: 1}
    with pytest.raises(BudgetError, match="got nan"):
        PSigmoid().schedule(32, 576, float("nan"))
    with pytest.raises(BudgetError, match="at least 2 layers, got 1"):
        PSigmoid().schedule(1, 576, None)


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        found = {"kind": "gsearch", "version": 1, "shares": [1, 0.5, 0.001], "kappa": 3.0}
        path = tmp_path / "g.json"
        path.write_text(json.dumps(found | changes))
        return str(path)

    return write


def test_a_calibrated_file_gives_its_shares_or_its_kappa(written):
    method = PSigmoid(table=written())
    assert method.schedule(3, 100, None) == {1: 50, 2: 1}
    assert method.schedule(3, 100, 60) == PSigmoid(kappa=3.0).schedule(3, 100, 60)
    assert method.schedule(3, 100, 60) != PSigmoid().schedule(3, 100, 60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "adaptinfer"}, "its kind is 'adaptinfer', not 'gsearch'"),
        ({"kappa": 0}, "kappa must be above 0"),
        ({"kappa": "steep"}, "no schedule"),
        ({"shares": [1, 0.2, 0.3]}, "must not rise"),
    ],
)
def test_a_file_that_is_no_schedule_is_one_clear_error(written, changes, message):
    with pytest.raises(VLMCompressError, match=message) as error:
        PSigmoid(table=written(**changes))
    assert "`vlmcompress calibrate gsearch`" in str(error.value)


def test_a_file_that_is_not_there_or_for_another_depth_is_one_clear_error(written):
    with pytest.raises(VLMCompressError, match=r"'no\.json' is not a readable file"):
        PSigmoid(table="no.json")
    with pytest.raises(VLMCompressError, match="decoder of 3 layers, this one has 6"):
        PSigmoid(table=written()).schedule(6, 100, 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PSigmoid(kappa=0), "kappa must be above 0, got 0"),
        (lambda: PSigmoid(kappa=math.inf), "kappa must be above 0, got inf"),
        (lambda: PSigmoid(ratio=1.5), "ratio must be above 0 and at most 1, got 1.5"),
        (lambda: PSigmoid(rows="first"), "rows must be one of 'text', 'last'"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(VLMCompressError, match=message):
        make()


class Asked(Layer):
    """Remembers of which layer attention was asked."""

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked = (rows, keys, rope, of)
        return super().attention(rows, keys, rope=rope, of=of)


@pytest.mark.parametrize("rows", ["text", "last"])
def test_the_rank_is_the_mean_over_heads_and_rows_of_the_layer_before(rows):
    view = Asked(Grid(1, 3, 3))
    expected = [0.0] * 9
    weights = view.attention(rows=rows).tolist()
    for head in weights:
        for row in head:
            for v, column in enumerate(view.visual.tolist()):
                expected[v] += row[column] / len(weights) / len(head)
    torch.testing.assert_close(PSigmoid(rows=rows).score(view), torch.tensor(expected))
    assert view.asked == (rows, "all", True, "previous")


def test_the_rows_matter():
    view = Layer(Grid(1, 3, 3))
    kept = [PSigmoid(rows=rows).keep(view, 4).tolist() for rows in ("text", "last")]
    assert kept[0] != kept[1]


def test_a_prompt_without_text_is_one_clear_error():
    with pytest.raises(VLMCompressError, match="there is none"):
        PSigmoid().keep(Layer(Grid(1, 3, 3), words=0), 4)
