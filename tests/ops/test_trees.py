"""Trees over time and weighted diversity, against plain Python and by hand."""

from itertools import product

import pytest
import torch
from plain import diverse, hangs, mean

from vlmcompress.ops.trees import Trees, attended_and_diverse, grow

SHAPES = [(1, 4), (2, 3), (3, 3), (5, 2), (4, 6)]


def frames_of(shape, seed, width=3):
    return torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed))


def top(token, hang):
    while token in hang:
        token = hang[token]
    return token


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.8])
def test_by_definition(shape, seed, threshold):
    frames, size = frames_of(shape, seed), shape[1]
    free = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 9)) > 0.2
    for least in {0, 1, size, shape[0] * size // 2, shape[0] * size - 1, shape[0] * size}:
        hang = hangs(frames.tolist(), free.tolist(), threshold, least)
        trees = grow(frames, free, threshold, least)
        tokens = list(product(range(shape[0]), range(size)))
        roots = [top(token, hang) for token in tokens]
        assert trees.root.tolist() == [f * size + j for f, j in roots]
        assert trees.children.tolist() == [
            sum(parent == token for parent in hang.values()) for token in tokens
        ]
        assert int(trees.tops.sum()) >= least
        sums, sizes = trees.sums(frames.flatten(0, 1))
        for place, token in enumerate(tokens):
            own = [
                frames[t].tolist() for t, root in zip(tokens, roots, strict=True) if root == token
            ]
            assert int(sizes[place]) == len(own)
            if own:
                expected = [len(own) * value for value in mean(own)]
                assert sums[place].tolist() == pytest.approx(expected, abs=1e-5)


CHAINS = torch.tensor(
    [
        [[1.0, 0], [0, 1], [-1, 0]],
        [[0.98, 0.2], [0, -1], [-1, 0.05]],
        [[1, 0.1], [0.3, -1], [0.6, 0.8]],
    ]
)


def test_hand_example_of_chains():
    """0 <- 3 <- 6, 2 <- 5 and 4 <- 7 hang on each other; token 8 is like none (.748)."""
    trees = grow(CHAINS, torch.ones(3, 3, dtype=torch.bool), 0.8, 1)
    assert trees.root.tolist() == [0, 1, 2, 0, 4, 2, 0, 4, 8]
    assert trees.children.tolist() == [1, 0, 1, 1, 1, 0, 0, 0, 0]
    sums, sizes = trees.sums(CHAINS.flatten(0, 1))
    found = (sums / sizes.clamp(min=1)[:, None])[trees.tops]
    expected = [[0.9933, 0.1], [0, 1], [-1, 0.025], [0.15, -1], [0.6, 0.8]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


def test_hand_example_where_too_few_would_be_left():
    """The pairs have .980, .000, .999, .995, .958, .748: of nine at least seven must stay."""
    free = torch.ones(3, 3, dtype=torch.bool)
    assert grow(CHAINS, free, 0.8, 7).root.tolist() == [0, 1, 2, 3, 4, 2, 6, 7, 8]
    assert grow(CHAINS, free, 0.8, 5).root.tolist() == grow(CHAINS, free, 0.8, 1).root.tolist()
    assert grow(CHAINS, free, 0.8, 9).root.tolist() == list(range(9))


def test_runs_are_joined():
    one = grow(CHAINS, torch.ones(3, 3, dtype=torch.bool), 0.8, 1)
    both = Trees.join([one, one])
    assert both.root.tolist() == [*one.root.tolist(), *(one.root + 9).tolist()]
    assert both.children.tolist() == one.children.tolist() * 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_picks_by_definition(shape, seed, signed):
    frames = frames_of(shape, seed)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weights = weights if signed else weights.abs()
    for count in {0, 1, 2, shape[1]} & {*range(shape[1] + 1)}:
        counts = [max(0, count - t % 2) for t in range(shape[0])]
        found = attended_and_diverse(frames, weights, counts)
        for t, number in enumerate(counts):
            expected = diverse(frames[t].tolist(), weights[t].tolist(), number)
            assert found[t].nonzero()[:, 0].tolist() == sorted(expected)


def test_hand_example_of_picks():
    """Second smallest of each column: .08, .06, .08, .10."""
    rows = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [-1, 0]])
    attention = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def picks(weights, count):
        return attended_and_diverse(rows[None], weights[None], [count])[0].nonzero()[:, 0].tolist()

    assert picks(attention, 2) == [0, 3]
    assert picks(attention, 3) == [0, 2, 3]
    assert picks(attention * (rows @ rows.mean(0)), 2) == [0, 2]
    assert picks(attention.flip(0), 3) == [1, 2, 3]


def test_no_token_is_picked_twice():
    same = torch.ones(2, 5, 3)
    found = attended_and_diverse(same, torch.ones(2, 5), [5, 3]).int().tolist()
    assert found == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
