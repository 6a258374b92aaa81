"""Layers that attend to some of the tokens, which an indexer picks, do so when they are watched.

Only while the prompt is read: in a step, keys of the same score are picked by how they are stored.
"""

from __future__ import annotations

import pytest
from model_case import case_of
from references import staged
from shortening import TOLERANCE, reduced

FEW, ALL = 8, 96


@pytest.mark.parametrize("name", ["dots3_note", "hy_v4_vl", "mistral_large4"])
def test_a_cut_leaves_the_layers_before_it_as_sparse_as_they_are(name, monkeypatch):
    case = case_of(name)
    indexers = [module for module in case.model.modules() if hasattr(module, "index_topk")]
    assert indexers

    def short(attended):
        for module in indexers:
            monkeypatch.setattr(module, "index_topk", attended)
        with reduced(case, "cut") as c:
            return case.logits(case.pair)[:, -1], c.report()

    logits, report = short(FEW)
    assert report.engaged
    assert (logits - staged(case, report, case.pair)).abs().max() < TOLERANCE
    assert (logits - short(ALL)[0]).abs().max() > 10 * TOLERANCE
