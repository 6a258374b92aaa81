"""Tensor functions against definitions in plain Python, on small cases with many ties."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from vlmcompress.ops.apportion import apportion, even
from vlmcompress.ops.gather import take, take_all, take_pairs
from vlmcompress.ops.groups import Groups, reduce
from vlmcompress.ops.merge import bipartite
from vlmcompress.ops.select import farthest_point, top_k

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("inf"), float("-inf")]), min_size=1)


@st.composite
def rows(draw: Any, most: int = 8, width: int = 3) -> torch.Tensor:
    """Rows of small integers, of which some are equal, opposite or zero."""
    count = draw(st.integers(1, most))
    numbers = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    return torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count))).float()


def cosine(a: list[float], b: list[float]) -> float:
    x, y = torch.tensor(a, dtype=torch.double), torch.tensor(b, dtype=torch.double)
    return float(x @ y / (x.norm() * y.norm()))


@given(SCORES, st.integers(-1, 12))
def test_top_k(scores, count):
    ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    wanted = sorted(ranked[: min(max(count, 1), len(scores))])
    assert top_k(torch.tensor(scores), count).tolist() == wanted


@given(rows(), st.integers(1, 8))
def test_farthest_point_is_greedy(features, count):
    """Every pick is as far from those before as any row that is left (ties may go either way)."""
    picks = farthest_point(features, count, order="picked").tolist()
    assert len(picks) == len(set(picks)) == min(count, len(features))
    lines = features.tolist()
    alive = [n for n, line in enumerate(lines) if any(line)]
    zeros = [n for n in range(len(lines)) if n not in alive]
    assert picks[len(alive) :] == zeros[: max(0, len(picks) - len(alive))]
    distance = {(a, b): 1 - cosine(lines[a], lines[b]) for a, b in product(alive, alive) if a != b}
    done: list[int] = []
    for pick in picks[: len(alive)]:
        rest = [n for n in alive if n not in done]
        against = {n: [m for m in (done or alive) if m != n] for n in rest}
        far = {n: min((distance[n, m] for m in against[n]), default=9.0) for n in rest}
        assert far[pick] >= max(far.values()) - 1e-5
        done.append(pick)


@given(st.data(), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_gather(data, batch, length, shared):
    line = st.lists(st.integers(0, length - 1), min_size=2, max_size=2)
    index = torch.tensor(data.draw(st.lists(line, min_size=batch, max_size=batch)))
    for trailing in ((), (2,), (2, 3)):
        x = torch.randn(1 if shared else batch, length, *trailing)
        found = take(x, index)
        for row, places in enumerate(index.tolist()):
            for slot, place in enumerate(places):
                assert torch.equal(found[row, slot], x[0 if shared else row, place])
        assert torch.equal(take_all([x, x], index)[1], found)
    mask = torch.randn(batch, length, length)
    some = take_pairs(mask, index, index.flip(1))
    for row, (a, b) in enumerate(index.tolist()):
        wanted = [[mask[row, q, k] for k in (b, a)] for q in (a, b)]
        assert torch.equal(some[row], torch.tensor(wanted))


@given(rows(most=9), st.integers(0, 4), st.integers(0, 1))
def test_bipartite_merges_the_most_similar_sources(metric, remove, protected):
    assume(metric.any(1).all())  # zeros have no direction
    lines, total = metric.tolist(), len(metric)
    remove = min(remove, (total - protected) // 2)
    (leader,) = bipartite(metric[None], remove, protected).tolist()
    even, odd = protected + protected % 2, protected + 1 - protected % 2
    sources, targets = range(even, total, 2), range(odd, total, 2)
    merged = [n for n in range(total) if leader[n] != n]
    assert len(merged) == remove
    assert all(n in sources and leader[n] in targets for n in merged)
    best = {n: max((cosine(lines[n], lines[m]) for m in targets), default=-2.0) for n in sources}
    for n in merged:
        assert cosine(lines[n], lines[leader[n]]) >= best[n] - 1e-5
    stay = [best[n] for n in sources if n not in merged]
    assert min((best[n] for n in merged), default=2.0) >= max(stay, default=-2.0) - 1e-5


@given(rows(), st.data())
def test_merging_is_the_weighted_mean_of_each_group(features, data):
    total = len(features)
    label = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=total, max_size=total)))
    weights = torch.tensor(
        data.draw(st.lists(st.integers(1, 5), min_size=total, max_size=total))
    ).float()
    members = {int(n): [i for i in range(total) if label[i] == n] for n in label.unique()}
    leader = torch.tensor([data.draw(st.sampled_from(members[int(n)])) for n in label])
    # A leader is its own: one for all members of a group.
    chosen = {int(n): int(leader[members[int(n)][0]]) for n in label.unique()}
    leader = torch.tensor([chosen[int(n)] for n in label])
    made, groups = reduce(features[None], leader[None], weights[None])
    assert isinstance(groups, Groups)
    wanted = sorted(members.values())
    for out, own in zip(made[0], wanted, strict=True):
        mean = (features[own] * weights[own, None]).sum(0) / weights[own].sum()
        assert torch.allclose(out, mean, atol=1e-5)
    assert groups.reduction(made[0]).groups() == wanted


@given(
    st.lists(st.tuples(st.floats(0, 6), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(0, 1),
    st.data(),
)
def test_apportion_is_nearest_to_the_quotas(parts, least, data):
    quotas = torch.tensor([quota for quota, _ in parts], dtype=torch.double)
    most = [bound for _, bound in parts]
    total = data.draw(st.integers(least * len(parts), sum(most)))
    found = apportion(quotas, total, torch.tensor(most), least=least).tolist()

    def error(counts: Any) -> float:
        return sum((c - q) ** 2 for c, q in zip(counts, quotas.tolist(), strict=True))

    every = product(*(range(least, bound + 1) for bound in most))
    nearest = min(error(counts) for counts in every if sum(counts) == total)
    assert sum(found) == total
    assert all(least <= c <= bound for c, bound in zip(found, most, strict=True))
    assert error(found) <= nearest + 1e-3


@given(st.integers(0, 50), st.integers(1, 9))
def test_even_parts_differ_by_one(total, parts):
    counts = even(total, parts).tolist()
    assert sum(counts) == total
    assert max(counts) - min(counts) <= 1
