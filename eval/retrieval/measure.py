"""Embeds drawn pages in every setting and ranks them for every query."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.metrics.ranking import chance_ndcg, ndcg, recall
from vlmcompress.eval.retrieval.settings import CANDIDATES, FULL, Setting
from vlmcompress.eval.worlds.pages import Collection, draw_page
from vlmcompress.retrieval.embed import embed
from vlmcompress.retrieval.search import Index

NDCG_AT, RECALL_AT = 5, 10
_TIMED_PAGES = 10_000
_TIMED_QUERIES = 6
_ROUNDS = 3

Vectors = Sequence[Tensor]


def measure(
    model: Any,
    processor: Any,
    collection: Collection,
    settings: Iterable[Setting],
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The table: a row for each setting, `FULL` first, as plain values.

    Quality is of `collection`. Queries per second are those of one query at a time over 10,000
    pages (those of the collection again and again), in CPU time of this process.

    Args:
        model: a retriever.
        processor: its own.
        collection: pages and queries.
        settings: `FULL` and others.
        told: is given a line for each run of the model.

    Raises:
        VLMCompressError: the first setting is not `FULL`, or the extra `eval` is missing.
    """
    settings = list(settings)
    if settings[:1] != [FULL]:
        raise VLMCompressError("the first setting is what the others are compared with: FULL")
    queries = embed(model, processor, texts=[query.text for query in collection.queries])
    whole: Vectors = []
    rows: dict[Setting, dict[str, Any]] = {}
    scores: dict[Setting, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for run in dict.fromkeys(setting.run for setting in settings):
        same = [setting for setting in settings if setting.run == run]
        vectors, seconds = _embedded(model, processor, collection, same)
        whole = whole or vectors[FULL]
        told(f"{same[0].name}: {1000 * seconds:.0f} ms a page")
        for setting in same:
            index = Index(whole, vectors[setting]) if setting.coarse else Index(vectors[setting])
            scores[setting] = _scores(index, setting, queries, collection)
            rows[setting] = {
                "where": setting.where,
                "name": setting.name,
                "vectors": statistics.fmean(map(len, vectors[setting])),
                "milliseconds_per_page": 1000 * seconds,
                "queries_per_second": _speed(whole, vectors[setting], setting, queries),
            }
    for setting in settings:
        rows[setting] |= _quality(*scores[setting], *scores[FULL])
    totals = collection.relevant.sum(1)
    return {
        "pages": len(collection.pages),
        "queries": len(collection.queries),
        "candidates": CANDIDATES,
        "chance_ndcg": chance_ndcg(totals, len(collection.pages), NDCG_AT),
        "rows": [rows[setting] for setting in settings],
    }


def _embedded(
    model: Any, processor: Any, collection: Collection, settings: Sequence[Setting]
) -> tuple[dict[Setting, Vectors], float]:
    """Vectors of all pages in settings of one run, and the CPU seconds of a page without pools."""
    pictures = [draw_page(page) for page in collection.pages]
    method, budget, tokens = settings[0].run
    given: dict[str, Any] = {"method": method, "budget": budget, "tokens": tokens}
    embed(model, processor, pictures[:2], **given)  # loads what is needed
    some = pictures[:16]
    started = time.process_time()
    embed(model, processor, some, **given)
    seconds = (time.process_time() - started) / len(some)
    pools = [setting.coarse or setting.pool for setting in settings]
    found = embed(model, processor, pictures, pool=pools, **given)
    return dict(zip(settings, found, strict=True)), seconds


def _scores(
    index: Index, setting: Setting, queries: Vectors, collection: Collection
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """NDCG and recall of each query, [Q] each."""
    candidates = CANDIDATES if setting.coarse else None
    hits = index.search(queries, RECALL_AT, candidates).pages.cpu().numpy()
    ranked = np.take_along_axis(collection.relevant, hits, axis=1)
    totals = collection.relevant.sum(1)
    return ndcg(ranked, totals, NDCG_AT), recall(ranked, totals, RECALL_AT)


def _quality(
    gains: NDArray[np.float64],
    recalls: NDArray[np.float64],
    full_gains: NDArray[np.float64],
    full_recalls: NDArray[np.float64],
) -> dict[str, Any]:
    """Means with intervals, and the paired difference from all vectors."""
    with needs_eval():
        from vlmcompress.eval.results.statistics import mean_difference, proportion

    apart = mean_difference(gains, full_gains)
    return {
        "ndcg": float(gains.mean()),
        "ndcg_interval": _pair(proportion(gains)),
        "recall": float(recalls.mean()),
        "recall_interval": _pair(proportion(recalls)),
        "ndcg_difference": float((gains - full_gains).mean()),
        "ndcg_difference_interval": _pair(apart),
    }


def _pair(interval: Any) -> list[float]:
    return [interval.low, interval.high]


def _speed(whole: Vectors, vectors: Vectors, setting: Setting, queries: Vectors) -> float:
    """Queries per second of CPU time, the median of a few rounds."""

    def repeated(pages: Vectors) -> list[Tensor]:
        return [pages[place % len(pages)] for place in range(_TIMED_PAGES)]

    coarse = repeated(vectors) if setting.coarse else None
    index = Index(repeated(whole if setting.coarse else vectors), coarse)
    candidates = CANDIDATES if setting.coarse else None
    some, seconds = queries[:_TIMED_QUERIES], []
    for _ in range(_ROUNDS):
        started = time.process_time()
        for query in some:
            index.search([query], RECALL_AT, candidates)
        seconds.append((time.process_time() - started) / len(some))
    return 1 / statistics.median(seconds)
