"""Text that tells how much visual tokens matter: hand examples and plain loops."""

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.text_prior import text_importance, text_raters, weigh_by_text

P = torch.tensor([[[0.5, 0.0], [0.2, 0.3]]])
Q = torch.tensor([[[0.2, 0.1, 0.1, 0.1], [0.1, 0.2, 0.1, 0.1]]])


def attention(heads, text, visual, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(heads, text, visual + text, generator=draw)
    later = torch.ones(text, text).triu(1).bool()
    logits[..., visual:] = logits[..., visual:].masked_fill(later, float("-inf"))
    weights = logits.softmax(-1)
    return weights[..., visual:], weights[..., :visual]


def test_hand_example():
    torch.testing.assert_close(text_importance(P), torch.tensor([[0.7, 0.5]]))
    expected = torch.tensor([0.19, 0.17, 0.12, 0.12])
    torch.testing.assert_close(weigh_by_text(P, Q), expected)


def test_without_the_prior_all_text_weighs_alike():
    # mean(S) of [[.5, .2], [.2, .3]] is .3, twice in each column.
    torch.testing.assert_close(text_importance(P, 0.0), torch.tensor([[0.6, 0.6]]))
    torch.testing.assert_close(text_importance(P, 0.5), torch.tensor([[0.65, 0.55]]))
    flat = weigh_by_text(P, Q, 0.0)
    assert flat[0] == flat[1]


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_plain_loops_agree(seed, lam):
    heads, text, visual = 3, 1 + seed, 5
    to_text, to_visual = attention(heads, text, visual, seed)
    expected = [0.0] * visual
    for h in range(heads):
        p, q = to_text[h].tolist(), to_visual[h].tolist()
        s = [[p[i][j] + p[j][i] if i != j else p[i][i] for j in range(text)] for i in range(text)]
        mean = sum(map(sum, s)) / text**2
        for j in range(text):
            weight = sum((1 - lam) * mean + lam * s[i][j] for i in range(text))
            for v in range(visual):
                expected[v] += weight * q[j][v]
    found = weigh_by_text(to_text, to_visual, lam)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_its_float32_cast(dtype):
    to_text, to_visual = (x.to(dtype) for x in attention(2, 4, 6, 0))
    found = weigh_by_text(to_text, to_visual)
    assert found.dtype == torch.float32
    assert torch.equal(found, weigh_by_text(to_text.float(), to_visual.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found, weigh_by_text(to_text, to_visual))


def test_raters_by_hand():
    # Two visual tokens along the axes: softmax rows over the text (2, 0), (0, 2), (0, 0) are
    # (.787, .107, .107) and (.107, .787, .107), so the third text token is below the mean.
    visual, text = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert text_raters(visual, text).tolist() == [True, True, False]
    assert text_raters(visual[:1], text).tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(4))
def test_raters_of_plain_loops_agree(seed):
    draw = torch.Generator().manual_seed(seed)
    visual, text = torch.randn(7, 3, generator=draw), torch.randn(5, 3, generator=draw)
    shares = [0.0] * 5
    for v in visual.tolist():
        exps = [
            torch.tensor(sum(a * b for a, b in zip(v, t, strict=True))).exp().item()
            for t in text.tolist()
        ]
        shares = [old + e / sum(exps) / 7 for old, e in zip(shares, exps, strict=True)]
    expected = [share > 0.2 for share in shares]
    assert 0 < sum(expected) < 5
    assert text_raters(visual, text).tolist() == expected


def test_where_all_text_is_alike_all_of_it_rates():
    assert text_raters(torch.randn(4, 3), torch.ones(6, 3)).tolist() == [True] * 6
    assert text_raters(torch.randn(4, 3), torch.randn(1, 3)).tolist() == [True]


def test_no_text_is_one_clear_error():
    with pytest.raises(VLMCompressError, match="there are none"):
        weigh_by_text(torch.zeros(2, 0, 0), torch.zeros(2, 0, 4))
    with pytest.raises(VLMCompressError, match="there are none"):
        text_raters(torch.zeros(4, 3), torch.zeros(0, 3))
