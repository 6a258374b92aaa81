"""PriorTR against its formula in Python floats, and by hand."""

import math

import pytest
import torch
from shown import Layer

from vlmcompress.errors import BudgetError, VLMCompressError
from vlmcompress.methods.contracts.decoder import mean_tokens
from vlmcompress.methods.fastv import FastV
from vlmcompress.methods.priortr import PriorTR
from vlmcompress.tokens import Grid


class Shown:
    """One head; an image of four tokens between one word and three of text."""

    layer, visual = 3, torch.tensor([1, 2, 3, 4])

    def __init__(self, prior, question):
        self.rows = {"after": prior, "text": question, "last": question[-1:]}
        self.asked = []

    def attention(self, rows="last", keys="all", *, rope=True, of="this"):
        self.asked.append((rows, keys, rope, of))
        line = torch.tensor(self.rows[rows])
        return torch.cat([torch.full((len(line), 1), 0.1), line], 1)[None]


P, Q = [0.30, 0.20, 0.06, 0.04], [0.40, 0.10, 0.02, 0.08]


def test_hand_example_of_the_last_row():
    view, method = Shown([Q], [Q, P]), PriorTR(rows="last")
    expected = [-0.1438, 0.2310, 0.1099, -0.0462]
    assert method.score(view).tolist() == pytest.approx(expected, abs=1e-4)
    assert method.keep(view, 2).tolist() == [1, 2]
    assert method.keep(view, 3).tolist() == [1, 2, 3], "among the negative ones, too, it ranks"
    assert FastV().keep(view, 2).tolist() == [0, 1]
    assert set(view.asked[:2]) == {(r, "all", True, "previous") for r in ("last", "after")}


def test_hand_example_of_all_rows_of_the_question():
    view = Shown([Q], [Q, P])
    expected = [-0.0779, 0.1014, 0.0462, -0.0288]
    assert PriorTR().score(view).tolist() == pytest.approx(expected, abs=1e-4)
    assert view.asked[0][0] == "text"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", ["question", "last"])
def test_by_definition(seed, rows):
    view = Layer(Grid(1, 3, 4), seed=seed)
    heads = view.attention(rows="text", of="previous").tolist()
    own = view.visual.tolist()

    def share(lines):
        summed = [sum(line[column] for line in lines) for column in own]
        return [value / sum(summed) for value in summed]

    prior = share([head[0] for head in heads])
    asked = share([row for head in heads for row in (head if rows == "question" else head[-1:])])
    expected = [p * math.log(p / q) for p, q in zip(asked, prior, strict=True)]
    found = PriorTR(rows=rows).score(view).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(found) > 0, "a divergence"


def test_counts():
    method = PriorTR()
    assert method.schedule(32, 576, None) == {3: 192}
    assert mean_tokens(32, 576, {3: 192}) == 228
    assert method.schedule(32, 576, 64) == {3: 11}
    with pytest.raises(BudgetError, match=r"priortr .* fewer than 3\*576/32 = 54"):
        method.schedule(32, 576, 50)


def test_options():
    with pytest.raises(VLMCompressError, match="priortr: k must be 1 or more, got 0"):
        PriorTR(k=0)
    with pytest.raises(VLMCompressError, match=r"priortr: ratio must be 0 or more and below 1"):
        PriorTR(ratio=1.0)
    with pytest.raises(VLMCompressError, match="rows must be one of 'question', 'last'"):
        PriorTR(rows="first")
