"""Whether a result is what it claims to be.

Published results have come from pruning that never took place, and from answers that belonged to
other samples. Both look like any other figure in a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmcompress.budget.budget import Budget
from vlmcompress.eval.extras import needs_eval
from vlmcompress.eval.results.statistics import Scores, paired_test
from vlmcompress.tokens import Grid

with needs_eval():
    from rapidfuzz import process, utils
    from scipy import stats

UNCHANGED = 100
"""From so many samples on, not one changed answer is worth a warning: of a method that changes 3 %
it happens in 5 of 100 runs."""
MOSTLY = 0.98
"""Share of the samples that passes for all of them."""
FAR_OFF, ONE_TOKEN = 0.05, 1.0
"""Share of its budget, and tokens of an image, by which a method may miss it."""
RELATED = 0.01
"""p below which answers follow the samples."""
FOLLOWED = 0.25
"""Share of what `full` sees in the samples that even a weak method is taken to see."""
AT_MOST = 2000
"""Samples whose answers are compared with each other."""
ROUNDING = 1e-6
"""Samples; answers that are all the same leave a surplus and a spread of rounding errors."""
OVERLAP, APART = 0.8, 0.3
"""Answers that are the same as those of `full` but for their order, and how many more they are than
those in their place."""


@dataclass(frozen=True)
class Observed:
    """What one case made of the samples of a task, and what `full` made of the same samples.

    Leave out `full`, "text-only" and "one frame", which are what is warned of here on purpose.

    Attributes:
        case: how it is called in a report.
        answers: [n] its answers.
        full: [n] answers of `full`.
        scores: [n] of its answers, 0 to 1.
        full_scores: [n] of the answers of `full`.
        kinds: [n] what the samples ask for.
        batches: [n] which batch each sample was in.
        before: [n] visual tokens of all images of the sample before any method.
        mean: [n] visual tokens that were kept, mean over decoder layers.
        budget: as `Budget.parse` takes it, or None for the method's own setting.
        images: [n] images or clips of each sample; None where each has one.
    """

    case: str
    answers: Sequence[str]
    full: Sequence[str]
    scores: Scores
    full_scores: Scores
    kinds: Sequence[str]
    batches: Sequence[int]
    before: Sequence[int]
    mean: Sequence[float]
    budget: str | None
    images: Sequence[int] | None = None


def warnings(observed: Observed) -> list[str]:
    """Sentences for the reader of a report, each about one reason to doubt the result; often none.

    Raises:
        BudgetError: the budget is malformed.
    """
    gone = _all_gone(observed)
    if gone:
        return [gone]  # every other warning would follow from this one
    idle = _never_removed(observed)
    if idle:
        found = [idle, _unrelated(observed)]
    else:
        of_answers = _unchanged(observed) or _unrelated(observed)
        found = [_some_gone(observed), _off_budget(observed), of_answers]
    return [sentence for sentence in found if sentence]


def _all_gone(seen: Observed) -> str | None:
    with_tokens, gone = _samples_without_tokens(seen)
    if not gone or gone < MOSTLY * with_tokens:
        return None
    return (
        f"{seen.case} dropped everything: {gone} of {with_tokens} samples kept no visual token, "
        "so it was answered as text-only is"
    )


def _some_gone(seen: Observed) -> str | None:
    with_tokens, gone = _samples_without_tokens(seen)
    if not gone:
        return None
    return f"{seen.case} kept no visual token of {gone} of {with_tokens} samples"


def _samples_without_tokens(seen: Observed) -> tuple[int, int]:
    """Samples that had visual tokens, and how many of these have none left."""
    before, mean = np.asarray(seen.before), np.asarray(seen.mean)
    return int((before > 0).sum()), int(((before > 0) & (mean <= 0)).sum())


def _never_removed(seen: Observed) -> str | None:
    before, mean = np.asarray(seen.before), np.asarray(seen.mean)
    to_shorten = _to_shorten(seen)
    if not to_shorten.any() or (mean < before)[to_shorten].any():
        return None
    n = len(seen.answers)
    changed = n - _same(seen.answers, seen.full)
    return (
        f"{seen.case} did not engage: it kept all {before[to_shorten].mean():g} visual tokens of "
        f"a sample, and {changed or 'not one'} of {n} answers {'differ' if changed else 'differs'} "
        "from full's"
    )


def _to_shorten(seen: Observed) -> NDArray[np.bool_]:
    """[n] which samples must lose visual tokens; none where the budget does not tell."""
    before, asked = np.asarray(seen.before), _asked(seen)
    if asked is not None:
        return before > asked
    budget = None if seen.budget is None else Budget.parse(seen.budget)
    whole = {"percent": 100, "flops": 1}
    return (before > 0) & (budget is None or budget.amount < whole.get(budget.unit, 0))


def _unchanged(seen: Observed) -> str | None:
    n, before, kept = len(seen.answers), sum(seen.before), sum(seen.mean)
    if n < UNCHANGED or _same(seen.answers, seen.full) < n or kept >= before:
        return None
    return (
        f"not one of {n} answers of {seen.case} differs from full's, though "
        f"{1 - kept / before:.0%} of the visual tokens are said to be gone: it may not have engaged"
    )


def _same(answers: Sequence[str], full: Sequence[str]) -> int:
    return sum(given == wanted for given, wanted in zip(answers, full, strict=True))


def _off_budget(seen: Observed) -> str | None:
    asked = _asked(seen)
    if asked is None:
        return None
    images = np.ones(len(seen.mean)) if seen.images is None else np.asarray(seen.images)
    wanted, kept = float(asked.mean()), float(np.mean(seen.mean))
    if abs(kept - wanted) <= max(FAR_OFF * wanted, ONE_TOKEN * float(images.mean())):
        return None
    return (
        f"{seen.case} is far off its budget: it kept {kept:.1f} visual tokens of a sample, where "
        f"{seen.budget} is {wanted:.1f}"
    )


def _asked(seen: Observed) -> NDArray[np.float64] | None:
    """[n] tokens of each sample that the budget allows; None where their number does not tell.

    The images of a sample are taken to be of one size.
    """
    budget = None if seen.budget is None else Budget.parse(seen.budget)
    if budget is None or budget.is_cost or budget.per_frame:
        return None
    images = [1] * len(seen.before) if seen.images is None else seen.images
    return np.array(
        [
            many * budget.tokens(Grid(1, 1, tokens // many)) if tokens and many else 0.0
            for tokens, many in zip(seen.before, images, strict=True)
        ]
    )


def _unrelated(seen: Observed) -> str | None:
    """Answers that tell nothing of their own samples, though those of `full` do.

    Compared within kinds, so that what the question alone tells is no merit; within the task, where
    fewer samples tell a shuffle across kinds; and within batches, where a shuffle leaves some
    answers in their place by chance.
    """
    answers, full = seen.answers[:AT_MOST], seen.full[:AT_MOST]
    own, best = _likeness(answers, full), _likeness(full, full)
    kinds, batches = seen.kinds[:AT_MOST], seen.batches[:AT_MOST]
    across = not (_follow(own, best, kinds) and _follow(own, best, ["task"] * len(full)))
    if not across and _follow(own, best, batches):
        return None
    if paired_test(seen.scores, seen.full_scores, alternative="greater") < RELATED:
        return None  # better than `full`, and so not made like its answers
    figures = f"mean score {np.mean(seen.scores):.2f}, full {np.mean(seen.full_scores):.2f}"
    place = _shuffled(seen) if across else " within their batches"
    if place is None:
        return (
            f"answers of {seen.case} are unrelated to their samples: they are no more like full's "
            f"on the same sample than on others ({figures})"
        )
    return (
        f"answers of {seen.case} look shuffled between samples{place}: they are no more like "
        f"full's on the same sample than on others ({figures})"
    )


def _shuffled(seen: Observed) -> str | None:
    """Where the answers are those of `full` in another order; None if nowhere."""
    own = _same(seen.answers, seen.full) / len(seen.full)
    for groups, place in ((seen.batches, " within their batches"), (["task"] * len(seen.full), "")):
        given = Counter(zip(groups, seen.answers, strict=True))
        wanted = Counter(zip(groups, seen.full, strict=True))
        overlap = (given & wanted).total() / len(seen.full)
        if overlap >= OVERLAP and own <= overlap - APART:
            return place
    return None


def _follow(own: Scores, best: Scores, groups: Sequence[Hashable]) -> bool:
    """Whether answers are more like full's in their place than in other places of their group.

    Also where too few samples, or too similar answers of `full`, would hide a method that sees
    `FOLLOWED` of what `full` sees.

    Args:
        own: [n, n] likeness of answers and those of `full`.
        best: [n, n] likeness of the answers of `full` among themselves.
        groups: [n] of the samples.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    blocks = [np.ix_(several, several) for several in members.values() if len(several) > 1]
    surplus, spread = np.sum([_order(own[block]) for block in blocks] or [(0, 0)], axis=0)
    most, spread_of_full = np.sum([_order(best[block]) for block in blocks] or [(0, 0)], axis=0)
    threshold = float(stats.norm.isf(RELATED))
    # Twice: a method that sees just so much misses the threshold as seldom as a blind one meets it.
    if FOLLOWED * most <= 2 * threshold * spread_of_full**0.5 + ROUNDING:
        return True
    return bool(surplus > threshold * spread**0.5 + ROUNDING)


def _order(likeness: Scores) -> tuple[float, float]:
    """How much likeness on the diagonal is due to the order, and its variance at random order.

    Moments of the sum of a matrix along a random permutation (Hoeffding, 1951).
    """
    rows, columns = likeness.mean(1, keepdims=True), likeness.mean(0, keepdims=True)
    centered = likeness - rows - columns + likeness.mean()
    return float(np.trace(centered)), float((centered**2).sum()) / (len(likeness) - 1)


def _likeness(answers: Sequence[str], others: Sequence[str]) -> Scores:
    """[n, n] of 0 to 1; graded, for boxes and longer answers are seldom the same."""
    given, of_given = np.unique(np.array(answers), return_inverse=True)
    other, of_other = np.unique(np.array(others), return_inverse=True)
    percent = process.cdist(
        given.tolist(), other.tolist(), processor=utils.default_process, dtype=np.float64
    )
    return np.asarray(percent[np.ix_(of_given, of_other)] / 100)
