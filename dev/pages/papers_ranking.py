"""Whether our ranking of methods goes with a published one: Kendall's tau-b, inside blocks only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dev.pages.papers_published import Block, measured_as
from vlmcompress.eval.results.statistics import CONFIDENCE, Interval

Array = npt.NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Array]]
"""Budget -> spec -> [n] scores of the same questions."""

RESAMPLES = 2000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Cell:
    """The methods of one block that we have measured at one budget.

    Attributes:
        block: whose figures they are.
        budget: of all of them.
        specs: [m] as we measured them.
        published: [m] relative accuracies.
    """

    block: Block
    budget: str
    specs: Sequence[str]
    published: Array


@dataclass(frozen=True)
class Agreement:
    """How far two rankings go together.

    Attributes:
        tau: Kendall's tau-b over all pairs of methods that stand in one cell: 1 is the same order,
            -1 the reverse; None where either ranking has ties only.
        interval: of `tau` on other questions, as many: the paired bootstrap over ours.
        same: pairs in the same order.
        pairs: all of them, ties included.
        p: how often `tau` is at least as high where our methods have each other's results; None
            with `tau`.
    """

    tau: float | None
    interval: Interval | None
    same: int
    pairs: int
    p: float | None


def cells(blocks: Iterable[Block], scores: Scores, without: Iterable[str] = ()) -> list[Cell]:
    """What there is to compare, where a block has two methods or more that we have measured.

    Args:
        blocks: published.
        scores: ours.
        without: methods that are left out, by the papers' names.
    """
    left_out, found = set(without), []
    for block in blocks:
        for budget, measured in scores.items():
            rows = [
                (measured_as(method), figures[budget])
                for method, figures in block.rows.items()
                if method not in left_out and budget in figures and measured_as(method) in measured
            ]
            if len(rows) > 1:
                specs, published = zip(*rows, strict=True)
                found.append(Cell(block, budget, specs, np.array(published)))
    return found


def agreement(of: Sequence[Cell], scores: Scores, apart: float = 0.0) -> Agreement:
    """Compare the rankings of some cells, all their pairs together.

    A resample draws questions, the same for all methods, and is noisier than all questions are, so
    that the interval need not lie around `tau`. For `p` each of our methods is given another's
    results, at all budgets; pairs that this leaves without a result are passed over.

    Args:
        of: one or more.
        scores: ours, of which all cells are.
        apart: pairs that are published closer than this many points are passed over.
    """
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(spec for cell in of for spec in cell.specs))
    size = len(next(iter(scores[of[0].budget].values())))
    chances = np.full(size, 1 / size)
    drawn = rng.multinomial(size, chances, RESAMPLES).astype(np.float64)
    table = {
        cell.budget: np.stack(
            [scores[cell.budget].get(name, np.full(size, np.nan)) for name in names]
        )
        for cell in of
    }
    places = [np.array([names.index(spec) for spec in cell.specs]) for cell in of]
    theirs = np.concatenate([_signs(cell.published, apart) for cell in of])
    ours = _gathered({b: rows.mean(1) for b, rows in table.items()}, of, places)
    again = {b: drawn @ rows.T / size for b, rows in table.items()}
    value = float(tau_b(ours, theirs))
    found = tau_b(_gathered(again, of, places), theirs)
    found = found[np.isfinite(found)]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    known = np.isfinite(value) and len(found) > 0
    return Agreement(
        value if known else None,
        Interval(*np.quantile(found, tails).tolist()) if known else None,
        int((ours * theirs > 0).sum()),
        int(np.isfinite(theirs).sum()),
        _by_chance(value, table, of, names, theirs, rng) if known else None,
    )


def tau_b(ours: Array, theirs: Array) -> Array:
    """Kendall's tau-b from the signs of all pairs; NaN where one side has ties only.

    Args:
        ours: [..., pairs] of -1, 0 or 1; NaN where there is no pair.
        theirs: [pairs] of the same.
    """
    there = np.isfinite(ours) & np.isfinite(theirs)
    mine, other = np.where(there, ours, 0.0), np.where(there, theirs, 0.0)
    together = (mine * other).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(together / np.sqrt((mine**2).sum(-1) * (other**2).sum(-1)))


def _signs(values: Array, apart: float = 0.0) -> Array:
    """[..., m] -> [..., m (m - 1) / 2]: which of each pair is higher.

    NaN where one is missing, or where they are closer than `apart`.
    """
    first, second = np.triu_indices(values.shape[-1], 1)
    differences = values[..., first] - values[..., second]
    differences = np.where(np.abs(differences) < apart - _ROUNDING, np.nan, differences)
    return np.sign(np.where(np.abs(differences) < _ROUNDING, 0.0, differences))


def _gathered(
    means: Mapping[str, Array], of: Sequence[Cell], places: Sequence[npt.NDArray[np.intp]]
) -> Array:
    """[..., pairs] signs of all cells, from [..., methods] means at each budget.

    Args:
        means: budget -> of all methods.
        of: the cells.
        places: of each cell, [..., m] which methods are in it.
    """
    return np.concatenate(
        [_signs(means[cell.budget][..., own]) for cell, own in zip(of, places, strict=True)],
        axis=-1,
    )


def _by_chance(
    value: float,
    table: Mapping[str, Array],
    of: Sequence[Cell],
    names: Sequence[str],
    theirs: Array,
    rng: np.random.Generator,
) -> float:
    shuffled = rng.permuted(np.tile(np.arange(len(names)), (RESAMPLES, 1)), axis=1)
    places = [shuffled[:, [names.index(spec) for spec in cell.specs]] for cell in of]
    found = tau_b(_gathered({b: rows.mean(1) for b, rows in table.items()}, of, places), theirs)
    return float((1 + (found >= value - _ROUNDING).sum()) / (1 + RESAMPLES))
