"""The table of a retriever: planted vectors give known figures, the shipped model finds pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.retrieval import measure as module
from vlmcompress.eval.retrieval.settings import FULL, SETTINGS, Setting
from vlmcompress.eval.worlds.pages import Collection, collection
from vlmcompress.models.loading import load

PAGES = 40
ROWS = Setting("after it", pool="rows")
BOTH = Setting("two stages", coarse="rows")
HALF = Setting("before the decoder", "divprune", "50%")


@pytest.fixture
def found() -> Collection:
    return collection(PAGES, PAGES)


@pytest.fixture
def planted(monkeypatch, found):
    """A model whose page vectors are its number; rows know the first half of the pages only, and
    a method knows nothing."""
    eye = torch.eye(PAGES)
    calls = []

    def embed(model, processor, images=None, texts=None, method=None, budget=None, **options):
        calls.append((method, budget))
        if texts is not None:
            return [eye[number : number + 1] for number in range(PAGES)]
        count = len(images)
        whole = [eye[number].repeat(4, 1) for number in range(count)]
        if method is not None:
            whole = [torch.ones(2, PAGES) for _ in range(count)]
        rows = [page[:1] * (number < PAGES // 2) for number, page in enumerate(whole)]
        pools = options.get("pool")
        return whole if pools is None else tuple(rows if pool else whole for pool in pools)

    monkeypatch.setattr(module, "embed", embed)
    monkeypatch.setattr(module, "_TIMED_PAGES", 60)
    alone = np.eye(PAGES, dtype=bool)
    return Collection(found.pages, found.queries, alone), calls


def test_planted_vectors_give_known_figures(planted):
    alone, calls = planted
    table = module.measure(None, None, alone, [FULL, ROWS, BOTH, HALF])
    full, rows, both, half = table["rows"]
    assert (full["ndcg"], full["recall"], full["vectors"]) == (1, 1, 4)
    assert full["ndcg_difference"] == 0
    # Rows rank the second half of the pages in the order of their numbers, behind ten others.
    assert (rows["ndcg"], rows["recall"], rows["vectors"]) == (0.5, 0.5, 1)
    assert rows["ndcg_difference"] == -0.5
    assert both["ndcg"] == both["recall"] == pytest.approx(30 / PAGES)
    assert half["recall"] == 10 / PAGES
    assert rows["ndcg_interval"][0] < 0.5 < rows["ndcg_interval"][1]
    low, high = rows["ndcg_difference_interval"]
    assert low < -0.5 < high < 0
    assert all(row["queries_per_second"] > 0 for row in table["rows"])
    assert [call for call in calls if call[0]] == [("divprune", "50%")] * 3
    assert table["chance_ndcg"] == pytest.approx(2.9485 / PAGES, abs=1e-4)


def test_all_vectors_come_first(planted):
    with pytest.raises(VLMCompressError, match="FULL"):
        module.measure(None, None, planted[0], [ROWS, FULL])
    assert SETTINGS[0] == FULL
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.slow
def test_the_shipped_model_finds_pages(monkeypatch, found):
    monkeypatch.setattr(module, "_TIMED_PAGES", 60)
    table = module.measure(*load("tiny-colqwen", device="cpu"), found, [FULL, ROWS, BOTH, HALF])
    full, rows, both, half = table["rows"]
    assert full["ndcg"] > 0.75 > 0.5 > rows["ndcg"]
    assert both["ndcg"] > rows["ndcg"] + 0.2
    assert half["ndcg"] > 0.6
    assert (full["vectors"], half["vectors"], rows["vectors"]) == (80, 40, 10)
    assert table["chance_ndcg"] < 0.15
