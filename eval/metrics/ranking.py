"""How good a ranking of pages is where each page is relevant or not."""

import numpy as np
from numpy.typing import NDArray

Ranked = NDArray[np.bool_]
"""[Q, n]: whether each of the first n pages found for a query is relevant, the best first."""
Totals = NDArray[np.int64]
"""[Q]: how many pages are relevant, found or not; at least one."""


def ndcg(ranked: Ranked, totals: Totals, k: int) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the first `k` pages, [Q] in [0, 1].

    A relevant page at place i (from 1) counts 1 / log2(i + 1); 1 is the best order that there is.

    Source: Järvelin and Kekäläinen, 2002; with k = 5 the measure of ViDoRe (arXiv 2407.01449).
    """
    gains = 1 / np.log2(np.arange(2, k + 2))
    found = ranked[:, :k] @ gains[: ranked.shape[1]]
    best = np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(totals, k)]
    return np.asarray(found / best, dtype=np.float64)


def recall(ranked: Ranked, totals: Totals, k: int) -> NDArray[np.float64]:
    """Share of the relevant pages that are among the first `k`, [Q] in [0, 1]."""
    return np.asarray(ranked[:, :k].sum(1) / totals, dtype=np.float64)


def chance_ndcg(totals: Totals, pages: int, k: int) -> float:
    """The mean of `ndcg` that a random order of so many pages is expected to have."""
    gains = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gains)[np.minimum(totals, k) - 1]
    return float((totals / pages * gains[:pages].sum() / best).mean())
