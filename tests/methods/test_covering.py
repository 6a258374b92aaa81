"""CDPruner, SCOPE and MMTok against their definitions in Python floats."""

import math
from dataclasses import replace

import pytest
import torch
from plain import cosine

from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.cdpruner import CDPruner
from vlmcompress.methods.mmtok import MMTok
from vlmcompress.methods.scope import Scope
from vlmcompress.ops.coverage import facility_location
from vlmcompress.ops.similarity import cosines
from vlmcompress.tokens import Grid, VisualTokens

METHODS = [CDPruner(), CDPruner(negate=False), Scope(), Scope(alpha=0.5), MMTok(), MMTok(alpha=2.0)]
BY_METHOD = pytest.mark.parametrize("method", METHODS, ids=str)


def image(grid, seed=0, width=12, **changes):
    draw = torch.Generator().manual_seed(seed)
    shown = VisualTokens(
        torch.randn(len(grid), width, generator=draw),
        grid,
        cls_attention=torch.rand(len(grid), generator=draw),
        text=torch.randn(3, width, generator=draw),
        relevance=torch.randn(len(grid), generator=draw) / 4,
    )
    return replace(shown, **changes)


def table(rows, columns):
    return [[cosine(row, column) for column in columns] for row in rows]


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def greedy(tokens, count, gain):
    """Picks of the largest gain(picks, candidate), of equals the first."""
    picked = []
    for _ in range(count):
        picked.append(max(others(tokens, picked), key=lambda i: (gain(picked, i), -i)))
    return picked


def others(tokens, picked):
    return [i for i in range(tokens) if i not in picked]


def rise(similarity, picks, candidate):
    """How much more `candidate` covers."""
    covered = [max([0, *(row[p] for p in picks)]) for row in similarity]
    return math.fsum(max(row[candidate] - c, 0) for row, c in zip(similarity, covered, strict=True))


def most_probable(shown, weight, count):
    """Greedy determinant of the kernel weight_i cos(i, j) weight_j."""
    kernel = torch.tensor(table(*[shown.features.tolist()] * 2), dtype=torch.float64)
    kernel *= torch.tensor(weight)[:, None].double() * torch.tensor(weight).double()

    def gain(picks, i):
        found = torch.tensor([*picks, i])
        return float(torch.linalg.det(kernel[found][:, found]))

    return greedy(len(weight), count, gain)


def cdpruner(shown, count, negate):
    if shown.relevance is not None:
        given = [-value if negate else value for value in shown.relevance.tolist()]
    else:
        words = table(shown.text.tolist(), shown.features.tolist())
        given = [sum(column) / len(column) for column in zip(*words, strict=True)]
    low, high = min(given), max(given)
    return most_probable(shown, [(value - low) / (high - low) for value in given], count)


def scope(shown, alpha):
    """gain(picks, candidate)."""
    similarity, attention = table(*[shown.features.tolist()] * 2), shown.cls_attention.tolist()
    return lambda picks, i: rise(similarity, picks, i) * attention[i] ** alpha


def mmtok(shown, count, alpha):
    features, text = shown.features.tolist(), shown.text.tolist()
    words = [softmax(row, 0.02) for row in table(text, features)]
    whole = [softmax(row, 0.2) for row in table(features, features)]

    def gain(picks, i):
        covered = rise(words, picks, i) / len(words)
        return covered + alpha * rise(whole, picks, i) / len(whole)

    return greedy(len(features), count, gain)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("negate", [True, False])
@pytest.mark.parametrize("signal", ["relevance", "text"])
def test_cdpruner_is_the_greedy_determinant_of_its_kernel(signal, negate, seed):
    other = {"relevance": "text", "text": "relevance"}[signal]
    shown = image(Grid(1, 2, 5), seed, **{other: None})
    # The last, of weight 0, is left out: the determinant says nothing about it.
    picks = cdpruner(shown, 9, negate)
    assert CDPruner(negate=negate).pick(shown, 9).tolist() == picks
    assert CDPruner(negate=negate).select(shown, 4).tolist() == sorted(picks[:4])


def test_cdpruner_hand_example():
    """Two pairs of equal tokens. Relevance 0, 1, .5, .25: of each pair the more relevant."""
    pairs = torch.tensor([[1.0, 0], [3, 0], [0, 1], [0, 2]])
    shown = VisualTokens(pairs, Grid(1, 2, 2), relevance=torch.tensor([-0.1, 0.3, 0.1, 0]))
    assert CDPruner(negate=False).pick(shown, 4).tolist() == [1, 2, 0, 3]
    # The negative: 1, 0, .5, .75.
    assert CDPruner().pick(shown, 4).tolist() == [0, 3, 1, 2]


def test_cdpruner_reads_words_only_where_there_is_no_relevance():
    shown = image(Grid(1, 4, 4), 1)
    with_both, words = CDPruner().select(shown, 5), replace(shown, relevance=None)
    assert torch.equal(with_both, CDPruner().select(replace(shown, text=None), 5))
    assert not torch.equal(with_both, CDPruner().select(words, 5))
    # The sign is CLIP's affair.
    assert torch.equal(CDPruner().select(words, 5), CDPruner(negate=False).select(words, 5))


def test_cdpruner_is_diversity_alone_where_all_is_equally_relevant():
    shown = image(Grid(1, 3, 3), relevance=torch.full((9,), 0.2))
    picks = CDPruner().pick(shown, 9).tolist()
    # All single tokens are equally good: the first one. From there on the oracle knows.
    assert picks[0] == 0
    assert picks == most_probable(shown, [1 + 1e-6] + [1.0] * 8, 9)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_scope_is_greedy_coverage_times_attention(alpha, seed):
    shown = image(Grid(1, 2, 5), seed)
    gain, picks = scope(shown, alpha), Scope(alpha=alpha).pick(shown, 10).tolist()
    for count, one in enumerate(picks):
        gains = {i: gain(picks[:count], i) for i in others(10, picks[:count])}
        # Of candidates that gain alike, rounding says which is the first: it depends on the CPU.
        ahead = [i for i, found in gains.items() if found > max(gains.values()) - 1e-6]
        assert one in ahead
    assert Scope(alpha=alpha).select(shown, 4).tolist() == sorted(picks[:4])


def test_scope_hand_example():
    """Three tokens alike cover 3, one by itself covers 1: .3, .3, .3 against .5, then .3."""
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    attention = torch.tensor([0.1, 0.1, 0.1, 0.5])
    shown = VisualTokens(features, Grid(1, 2, 2), cls_attention=attention)
    assert Scope().pick(shown, 4).tolist() == [3, 0, 1, 2]
    assert Scope(alpha=0).pick(shown, 4).tolist() == [0, 3, 1, 2]
    # What CLS does not attend to at all is not kept for its coverage.
    silent = replace(shown, cls_attention=torch.tensor([0, 0.1, 0.2, 0]))
    assert Scope().pick(silent, 2).tolist() == [2, 0]


def test_scope_takes_attention_received_where_there_is_no_cls():
    shown = image(Grid(1, 4, 4), 2)
    received = {3: torch.ones(16), 7: shown.cls_attention}
    other = replace(shown, cls_attention=None, encoder_attention=received)
    assert torch.equal(Scope().select(other, 5), Scope().select(shown, 5))


@pytest.mark.parametrize("scale", [1e-20, 1e10])
def test_scope_looks_at_the_ratios_of_attention(scale):
    shown = image(Grid(1, 4, 4), 3)
    scaled = replace(shown, cls_attention=shown.cls_attention * scale)
    assert torch.equal(Scope(alpha=3.0).pick(scaled, 6), Scope(alpha=3.0).pick(shown, 6))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_mmtok_is_greedy_coverage_of_words_and_tokens(alpha, seed):
    shown = image(Grid(1, 2, 5), seed)
    picks = mmtok(shown, 6, alpha)
    # Without the coverage of tokens almost nothing is left to gain once each word has its token.
    sure = 2 if alpha == 0 else 6
    assert MMTok(alpha=alpha).pick(shown, 6).tolist()[:sure] == picks[:sure]
    assert MMTok(alpha=alpha).select(shown, sure).tolist() == sorted(picks[:sure])


def test_mmtok_hand_example():
    """Tokens alike and one by itself: the word decides which comes first, coverage adds the other.

    Token 0 covers about .126 of the image (weighted .5), token 3 about .123.
    """
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    shown = VisualTokens(features, Grid(1, 2, 2), text=torch.tensor([[0.0, 2]]))
    assert MMTok().pick(shown, 2).tolist() == [3, 0]
    assert MMTok().pick(replace(shown, text=torch.tensor([[2.0, 0]])), 2).tolist() == [0, 3]
    # A word that says nothing leaves it to the image.
    assert MMTok().pick(replace(shown, text=torch.tensor([[1.0, 1]])), 2).tolist() == [0, 3]


LARGE = pytest.mark.parametrize("size", [Grid(1, 6, 6), Grid(1, 40, 40)], ids=str)
"""Small enough that all gains are worked out for every pick, and not."""


@LARGE
def test_covering_beyond_the_memory_for_a_matrix_picks_the_same(size, monkeypatch):
    shown, methods = image(size, 8), (Scope(), MMTok())
    whole = [method.pick(shown, 30) for method in methods]
    for module in ("scope", "mmtok"):
        monkeypatch.setattr(f"vlmcompress.methods.{module}.MATRIX_BYTES", 1)
        monkeypatch.setattr(f"vlmcompress.methods.{module}.self_cosines", None, raising=False)
    monkeypatch.setattr("vlmcompress.methods.mmtok._ROWS", 100)
    for method, expected in zip(methods, whole, strict=True):
        assert torch.equal(method.pick(shown, 30), expected)
        assert not torch.equal(expected, expected.sort().values)


@LARGE
def test_one_matrix_picks_what_copies_of_it_picked(size):
    """As these methods did it before: whole cosines, a softmax, both parts put together."""
    shown = image(size, 9)
    whole = cosines(shown.features, shown.features)
    weights = shown.cls_attention / shown.cls_attention.max()
    expected = facility_location(whole, 30, weights, order="picked")
    assert torch.equal(Scope().pick(shown, 30), expected)
    words = cosines(shown.text, shown.features)
    both = [(words / 0.02).softmax(-1) / len(words), (whole / 0.2).softmax(-1) * (0.5 / len(whole))]
    expected = facility_location(torch.cat(both), 30, order="picked")
    assert torch.equal(MMTok().pick(shown, 30), expected)


def test_covering_makes_one_matrix(monkeypatch):
    shown, held = image(Grid(1, 40, 40), 8), []
    for name in ("scope", "mmtok"):
        module = f"vlmcompress.methods.{name}"
        monkeypatch.setattr(
            f"{module}.facility_location",
            lambda x, *a, **k: held.append((x, k)) or facility_location(x, *a, **k),
        )
    Scope().pick(shown, 3), MMTok().pick(shown, 3)
    (similar, options), (across, _) = held
    assert options["symmetric"]
    assert torch.equal(similar, similar.T)
    assert across.T.is_contiguous()
    assert across.T.contiguous().data_ptr() == across.data_ptr()


def test_mmtok_temperatures_are_those_of_words_and_of_tokens():
    shown = image(Grid(1, 4, 4), 4)
    usual = MMTok().pick(shown, 8)
    assert not torch.equal(MMTok(text_temperature=1.0).pick(shown, 8), usual)
    assert not torch.equal(MMTok(vision_temperature=0.02).pick(shown, 8), usual)


@BY_METHOD
def test_picks_depend_on_what_is_asked_for_or_attended_to(method):
    shown, other = image(Grid(1, 6, 6), 5), image(Grid(1, 6, 6), 6)
    guide = replace(
        shown, cls_attention=other.cls_attention, text=other.text, relevance=other.relevance
    )
    assert not torch.equal(method.select(guide, 9), method.select(shown, 9))
    assert not torch.equal(
        method.select(replace(shown, features=other.features), 9), method.select(shown, 9)
    )


@BY_METHOD
def test_counts(method):
    assert method.keep_count(Grid(1, 24, 24), None) == 64
    assert method.keep_count(Grid(1, 2, 2), None) == 1
    assert method.keep_count(Grid(1, 24, 24), 192) == 192
    assert method.keep_count(Grid(1, 2, 2), 99) == 4


@BY_METHOD
@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(1, 3, 5), Grid(3, 2, 2)], ids=str)
def test_every_count_is_met_in_either_order(method, grid):
    shown = image(grid)
    for count in range(len(grid) + 3):
        kept = method.select(shown, count)
        assert kept.dtype == torch.int64
        assert len(kept) == min(count, len(grid))
        assert kept.tolist() == sorted(method.pick(shown, count).tolist())
        assert len(set(kept.tolist())) == len(kept)


@BY_METHOD
def test_the_first_picks_do_not_depend_on_how_many_follow(method):
    shown = image(Grid(1, 5, 5), 7)
    assert torch.equal(method.pick(shown, 10)[:4], method.pick(shown, 4))


@pytest.mark.parametrize("method", [CDPruner(), MMTok()], ids=lambda m: m.name)
def test_the_instruction_must_be_there_and_fit(method):
    shown = image(Grid(1, 3, 3), relevance=None)
    for text, message in [
        (None, "needs text, these tokens have none"),
        (torch.zeros(0, 12), "an instruction of at least one word"),
        (torch.ones(2, 8), r"text of \[T, 12\] like the features, got \(2, 8\)"),
        (torch.full((2, 12), math.nan), "must be finite"),
    ]:
        with pytest.raises(VLMCompressError, match=message):
            method.select(replace(shown, text=text), 3)


def test_signals_that_cannot_be_are_refused():
    shown = image(Grid(1, 3, 3))
    with pytest.raises(VLMCompressError, match="attention must be 0 or more, got -1"):
        Scope().select(replace(shown, cls_attention=-torch.ones(9)), 2)
    with pytest.raises(VLMCompressError, match="these tokens have neither"):
        Scope().select(replace(shown, cls_attention=None), 2)
    with pytest.raises(VLMCompressError, match="relevance must be one number for each of 9"):
        CDPruner().select(replace(shown, relevance=torch.ones(8)), 2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (CDPruner, {"ratio": 0}, "cdpruner: ratio must be above 0 and at most 1, got 0"),
        (CDPruner, {"negate": 1}, "negate must be True or False, got 1"),
        (Scope, {"ratio": 1.5}, "scope: ratio must be above 0 and at most 1, got 1.5"),
        (Scope, {"alpha": -1}, "scope: alpha must be 0 or more, got -1"),
        (Scope, {"alpha": math.nan}, "scope: alpha must be 0 or more, got nan"),
        (MMTok, {"ratio": math.nan}, "mmtok: ratio must be above 0 and at most 1, got nan"),
        (MMTok, {"alpha": math.inf}, "mmtok: alpha must be 0 or more, got inf"),
        (MMTok, {"text_temperature": 0}, "text_temperature must be 1e-06 or more, got 0"),
        (MMTok, {"vision_temperature": "a"}, "vision_temperature must be a number, got 'a'"),
    ],
)
def test_options_are_checked(make, options, message):
    with pytest.raises(VLMCompressError, match=message):
        make(**options)
