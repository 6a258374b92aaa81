"""AdaptInfer: published settings, schedules against search, scores on a fake layer."""

import json

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.adaptinfer import PUBLISHED, AdaptInfer
from vlmcompress.methods.contracts.decoder import mean_tokens, tokens_per_layer
from vlmcompress.methods.shared.calibrated_schedules import cut, meet, scaled_cuts, stairs
from vlmcompress.tokens import Grid

SHARES = (1.0, 1.0, 0.6, 0.6, 0.25, 0.1)


def credited_early(layers, tokens, schedule):
    """The mean by the code's counter: a cut counts for the layer whose attention it used, too."""
    return mean_tokens(layers, tokens, {layer - 1: keep for layer, keep in schedule.items()})


@pytest.mark.parametrize(
    ("setting", "counts", "counter", "mean"),
    [
        ("llava-1.5-7b-128", (290, 72, 18), 128.8, 146.3),
        ("llava-1.5-7b-64", (133, 27, 3), 65.0, 82.9),
        ("llava-1.5-7b-48", (80, 24, 2), 48.8, 66.7),
        ("llava-1.5-7b-32", (40, 12, 0), 33.0, 51.0),
    ],
)
def test_settings_of_llava(setting, counts, counter, mean):
    schedule = AdaptInfer(setting).schedule(32, 576, None)
    assert schedule == dict(zip((2, 11, 21), counts, strict=True))
    assert mean_tokens(32, 576, schedule) == pytest.approx(mean, abs=0.051)
    assert credited_early(32, 576, schedule) == pytest.approx(counter, abs=0.051)


@pytest.mark.parametrize(
    ("setting", "counts", "counter"),
    [("llava-1.5-13b-128", (300, 94, 30), 128.8), ("llava-1.5-13b-64", (148, 40, 5), 64.7)],
)
def test_settings_of_the_larger_llava(setting, counts, counter):
    schedule = AdaptInfer(setting).schedule(40, 576, None)
    assert schedule == dict(zip((2, 12, 23), counts, strict=True))
    assert credited_early(40, 576, schedule) == pytest.approx(counter, abs=0.051)


@pytest.mark.parametrize(
    ("setting", "counter", "mean"),
    [("qwen2-vl-2b-10", 10.1, 13.6), ("qwen2-vl-2b-30", 29.7, 32.9), ("qwen2-vl-2b-50", 51.1, 54)],
)
def test_settings_of_qwen(setting, counter, mean):
    schedule = AdaptInfer(setting).schedule(28, 10_000, None)
    assert list(schedule) == [1, 10, 20]
    assert mean_tokens(28, 10_000, schedule) / 100 == pytest.approx(mean, abs=0.051)
    assert credited_early(28, 10_000, schedule) / 100 == pytest.approx(counter, abs=0.051)


def test_every_setting_says_where_it_is_from():
    for table in json.loads(PUBLISHED.read_text()).values():
        assert "published" in table["origin"]
        assert "early" in table["counter"]
        assert len(table["locations"]) == len(table.get("counts", table.get("ratios")))


@pytest.mark.parametrize(
    ("layers", "cuts"),
    [
        (32, [2, 11, 21]),
        (28, [2, 10, 18]),
        (40, [2, 14, 26]),
        (6, [1, 2, 4]),
        (3, [1, 2]),
        (2, [1]),
    ],
)
def test_the_cuts_lie_at_the_same_shares_of_the_depth(layers, cuts):
    assert list(AdaptInfer().schedule(layers, 1000, None)) == cuts
    assert scaled_cuts([2, 11, 21], 32, layers) == cuts


def test_without_a_budget_the_proportions_are_those_of_setting_64():
    assert AdaptInfer().schedule(32, 576, None) == {2: 133, 11: 27, 21: 3}


def test_a_budget_is_shared_out_as_ours():
    schedule = AdaptInfer().schedule(32, 57_600, 10_000)
    assert abs(mean_tokens(32, 57_600, schedule) - 10_000) <= 0.5
    first, second, third = schedule.values()
    assert second / first == pytest.approx(0.22, abs=1e-3)
    assert third / second == pytest.approx(0.2, abs=1e-3)


def test_counts_are_rounded_to_the_nearest():
    assert cut((1.0, 0.6, 0.25), 7) == {1: 4, 2: 2}
    assert cut((1.0, 1.0, 0.6, 0.6), 7, 0.5) == {2: 2}
    assert cut((1.0, 0.0), 7, least=1) == {1: 1}


def every_scale(shares, tokens):
    """Every schedule that some scale makes, one on each side of each step."""
    used = [max(share, 1e-6) for share in shares if share < 1]
    steps = {(n + 0.5) / share / tokens for share in used for n in range(tokens + 1)}
    scales = {step * (1 + d) for step in steps for d in (-1e-9, 1e-9)} | {0.0}
    return [cut(shares, tokens, scale) for scale in scales]


@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize(
    "shares", [SHARES, stairs([2, 11, 21], [0.5, 0.11, 0.022], 32), (1.0, 0.3, 0.3, 0.0)], ids=len
)
def test_no_other_scale_is_nearer_to_the_budget(shares, tokens):
    layers = len(shares)
    means = [mean_tokens(layers, tokens, schedule) for schedule in every_scale(shares, tokens)]
    for step in range(1, 4 * tokens + 1):
        budget = step / 4
        if budget < min(means) - 1e-6:
            with pytest.raises(BudgetError):
                meet("adaptinfer", shares, tokens, budget, earlier="x")
            continue
        schedule = meet("adaptinfer", shares, tokens, budget, earlier="x")
        off = abs(mean_tokens(layers, tokens, schedule) - budget)
        assert off <= min(abs(mean - budget) for mean in means) + 1e-9
        assert off <= 0.5
        per_layer = tokens_per_layer(layers, tokens, schedule)
        assert per_layer == sorted(per_layer, reverse=True)


def test_layers_without_tokens_get_some_only_when_all_others_keep_all():
    table = AdaptInfer("llava-1.5-7b-32")
    assert table.schedule(32, 576, 300)[21] == 0
    assert tokens_per_layer(32, 576, table.schedule(32, 576, 500))[20] == 576
    assert table.schedule(32, 576, 576) == {}


def test_a_budget_out_of_reach_names_the_smallest():
    with pytest.raises(BudgetError, match=r"2\*576/32 = 36 .* got 20: cut earlier with another ta"):
        AdaptInfer().schedule(32, 576, 20)
    assert AdaptInfer().schedule(32, 576, 36) == {2: 0}
    with pytest.raises(BudgetError, match="at least 2 layers, got 1"):
        AdaptInfer().schedule(1, 576, None)


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        found = {"kind": "adaptinfer", "version": 1, "shares": SHARES} | changes
        path = tmp_path / "s.json"
        path.write_text(json.dumps(found))
        return str(path)

    return write


def test_a_calibrated_file_is_followed_and_scaled(written):
    method = AdaptInfer(written())
    assert method.schedule(6, 100, None) == {2: 60, 4: 25, 5: 10}
    schedule = method.schedule(6, 100, 45)
    assert abs(mean_tokens(6, 100, schedule) - 45) <= 0.5
    assert list(schedule) == [2, 4, 5]
    assert schedule[2] / schedule[4] == pytest.approx(2.4, abs=0.2)
    with pytest.raises(BudgetError, match=r"2\*100/6"):
        method.schedule(6, 100, 30)


def test_a_file_is_read_once(written):
    path = written()
    method = AdaptInfer(path)
    written(shares=[1, 0.5])
    assert method.schedule(6, 100, None)[2] == 60
    assert AdaptInfer(path).schedule(2, 100, None) == {1: 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "gsearch"}, "its kind is 'gsearch', not 'adaptinfer'"),
        ({"version": 2}, "its version is 2, not 1"),
        ({"shares": [1, 0.5, 0.7]}, "must not rise"),
        ({"shares": [0.9, 0.5]}, "must be 1 for the first layer"),
        ({"shares": [1, -0.5]}, r"in \[0, 1\]"),
        ({"shares": [1, float("nan")]}, r"in \[0, 1\]"),
        ({"shares": [1]}, "no schedule"),
        ({"shares": 3}, "no schedule"),
        ({"shares": ["x", 2]}, "no schedule"),
    ],
)
def test_a_file_that_is_no_schedule_is_one_clear_error(written, changes, message):
    with pytest.raises(VLMCompressError, match=message) as error:
        AdaptInfer(written(**changes))
    assert "s.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert "`vlmcompress calibrate adaptinfer`" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no schedule"), ("[1]", "no schedule"), ("{}", "has no 'kind'"), ("3", "no schedule")],
)
def test_a_file_of_something_else_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(VLMCompressError, match=message) as error:
        AdaptInfer(str(path))
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_one_clear_error(tmp_path):
    (tmp_path / "s.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VLMCompressError, match="no schedule"):
        AdaptInfer(str(tmp_path / "s.json"))


def test_a_name_that_is_no_table_lists_those_there_are(tmp_path):
    for name in ("llava", str(tmp_path)):
        with pytest.raises(VLMCompressError, match=r"neither llava-1.5-7b-128.* nor a readable fi"):
            AdaptInfer(name)


def test_a_table_for_another_depth_is_refused(written):
    with pytest.raises(VLMCompressError, match=r"decoder of 6 layers, this one has 28"):
        AdaptInfer(written()).schedule(28, 100, None)
    with pytest.raises(VLMCompressError, match=r"'llava-1.5-7b-64' is for .* 32 layers, .* has 6"):
        AdaptInfer("llava-1.5-7b-64").schedule(6, 100, 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptInfer(lam=1.5), "lam must be from 0 to 1, got 1.5"),
        (lambda: AdaptInfer(lam="x"), "lam must be a number"),
        (lambda: AdaptInfer(3), "table must be a string or None"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(VLMCompressError, match=message):
        make()


class TwoWords:
    """The hand example as a layer: four visual tokens between a word and the text."""

    visual, text = torch.arange(1, 5), torch.tensor([5, 6])

    def __init__(self):
        self.asked = []

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked.append((rows, keys, rope, of))
        rows = [[0.0, 0.2, 0.1, 0.1, 0.1, 0.5, 0.0], [0.0, 0.1, 0.2, 0.1, 0.1, 0.2, 0.3]]
        return torch.tensor([rows])


def test_hand_example_keeps_the_first_two():
    view = TwoWords()
    torch.testing.assert_close(AdaptInfer().score(view), torch.tensor([0.19, 0.17, 0.12, 0.12]))
    assert AdaptInfer().keep(view, 2).tolist() == [0, 1]
    assert view.asked[0] == ("text", "all", True, "previous")
    # Without the prior the first two would tie.
    flat = AdaptInfer(lam=0.0).score(view)
    assert flat[0] == flat[1]


def test_heads_weigh_text_each_by_themselves():
    view = Layer(Grid(1, 3, 3))
    scores = AdaptInfer().score(view)
    attention = view.attention(rows="text")
    p, q = attention[..., view.text], attention[..., view.visual]
    both = p + p.transpose(1, 2) - torch.diag_embed(p.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(
        scores, sum(s.sum(0) @ rows for s, rows in zip(both, q, strict=True))
    )
    mean_first = both.mean(0).sum(0) @ q.mean(0)
    assert not torch.allclose(scores / scores.sum(), mean_first / mean_first.sum(), atol=1e-3)


def test_a_prompt_without_text_is_one_clear_error():
    with pytest.raises(VLMCompressError, match="there are none"):
        AdaptInfer().keep(Layer(Grid(1, 3, 3), words=0), 4)
