"""Measured time per stage, memory, and the share of the possible saving that a method achieves.

Three kinds of runs take turns in one process: the bare model, the model with no visual token in its
decoder (`T_0`), and methods. What lies between the first two is all that a method behind the
encoder can save.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from vlmcompress.arguments import check_count
from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.proving.decision import no_proofs
from vlmcompress.profiler.machine import environment
from vlmcompress.profiler.run import Prepare, RunFacts, Runner, RunTimes, Setting, Wrap
from vlmcompress.profiler.saving import achieved, break_even
from vlmcompress.profiler.stopwatch import STAGES

WARM_UP = 2
"""Runs of each setting before it is timed."""
Progress = Callable[[int, str], None]
"""Called with runs that are done now, and what was run."""
_SHARES = ("%", "flops", "ms")
"""Units of budgets that keep more tokens of a longer prompt."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it; all the same where there was one run."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The median and quartiles of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """Times over all runs of a setting, in milliseconds."""

    stages: dict[str, float]
    """Each stage that occurs, in the order of `STAGES`: its mean over the half of the runs that is
    in the middle by total time. Unlike medians they add up to a whole."""
    total: float
    """What these add up to but for the measurement itself: media, preprocessing and `generate` by
    the clock on the wall, mean over the same runs."""
    spread: dict[str, Spread]
    """Median and quartiles of each stage and of `total`, over all runs."""
    ttft: Spread
    """Time to the first token, from the start of `generate`."""
    generate: Spread
    per_token: Spread | None
    """Time of one decoding step for all rows; None where one token was asked for."""
    tokens_per_second: float
    """Output tokens of all rows over the median time of `generate`."""


@dataclass(frozen=True)
class Saving:
    """A setting beside the full one and the one without visual tokens.

    None where there is no number: nothing can be saved, or the difference drowns in noise.
    """

    achieved: float | None
    """(T_full - T) / (T_full - T_0), of times to the first token."""
    achieved_generate: float | None
    """`achieved`, of the time of all of `generate`."""
    predicted: float | None
    """(F_full - F) / (F_full - F_0), of FLOPs up to the first token: the most that the tokens of
    its own plan, layer by layer, allow. Above 1 where a method saves more in the vision tower than
    it leaves to the decoder."""
    of_bound: float | None
    """achieved / predicted."""
    selector_overhead: float
    """Selection over the prefill of the full setting."""
    break_even: int | None
    """See `break_even`."""
    overlaps: bool = False
    """Whether the quartiles of the first token overlap those of the full setting, or those of the
    full setting and of no visual token each other: the shares are noise then."""


@dataclass(frozen=True)
class ProfileRow:
    """One setting in a table."""

    label: str
    budget: str | None
    error: str | None = None
    """Why the setting could not be run; then there is nothing else."""
    seen: RunFacts | None = None
    times: Times | None = None
    saving: Saving | None = None


@dataclass(frozen=True)
class Profile:
    """All settings: the full one first, the one without visual tokens second."""

    environment: dict[str, Any]
    rows: list[ProfileRow]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def profile(
    model: nn.Module,
    prepare: Prepare,
    nothing: Wrap,
    settings: Sequence[Setting],
    *,
    everything: Wrap | None = None,
    output_tokens: int = 8,
    rounds: int = 5,
    progress: Progress = lambda runs, what: None,
) -> Profile:
    """Run the bare model, the one without visual tokens and `settings` in turn, and compare.

    Each runs twice beforehand, to warm up and to measure memory. A setting that refuses then has a
    row that says why, and no more runs. The model is left as it was found.

    Args:
        model: of a supported family, not compressed.
        prepare: gives the inputs of `generate` on the model's device. It is called in every run,
            with a function to tell that "media" or "preprocess" begins.
        nothing: compresses the model to no visual token.
        settings: to be compared.
        everything: compresses the model to all its visual tokens, as where clips are encoded in
            pieces; by default it is the bare model that all are compared with.
        output_tokens: of each row. The end-of-text token is suppressed, so there are no fewer.
        rounds: timed runs of each setting.
        progress: hears of runs that are done, `WARM_UP` and `rounds` of each setting; of one that
            refuses all at once.

    Raises:
        VLMCompressError: the bare model or `nothing` fails, the prompt has no visual token, or a
            number is no count.
    """
    for name, number in (("output_tokens", output_tokens), ("rounds", rounds)):
        check_count(name, number)
    runner = Runner(model, prepare, output_tokens)
    blank, full = Setting("text-only", nothing), Setting("full", everything)
    looks: list[RunFacts | str] = [runner.look(blank)]
    looks.insert(0, runner.look(full))
    progress(2 * WARM_UP, "warm-up")
    for setting in settings:
        try:
            looks.append(runner.look(setting))
            progress(WARM_UP, "warm-up")
        except VLMCompressError as error:
            looks.append(str(error))
            progress(WARM_UP + rounds, setting.label)
    pairs = list(zip([full, blank, *settings], looks, strict=True))
    able = [(setting, seen) for setting, seen in pairs if isinstance(seen, RunFacts)]

    def run(setting: Setting) -> RunTimes:
        times, _ = runner.run(setting)
        progress(1, setting.label)
        return times

    with no_proofs():
        samples = interleaved(run, [setting for setting, _ in able], rounds)
    measured = iter(_rows(able, [_times(s, output_tokens, runner.batch) for s in samples]))
    rows = [
        ProfileRow(setting.label, setting.budget, seen) if isinstance(seen, str) else next(measured)
        for setting, seen in pairs
    ]
    prompt = {"rows": runner.batch, "text": runner.text, "output_tokens": output_tokens}
    return Profile({**environment(model), "prompt": prompt, "rounds": rounds}, rows)


def interleaved(
    run: Callable[[Setting], RunTimes], settings: Sequence[Setting], rounds: int
) -> list[list[RunTimes]]:
    """Per setting its samples.

    Every round runs all settings once and begins one further on, so that a drift of the machine
    hits all alike.
    """
    samples: list[list[RunTimes]] = [[] for _ in settings]
    for number in range(rounds):
        for place in range(len(settings)):
            index = (place + number) % len(settings)
            samples[index].append(run(settings[index]))
    return samples


def _rows(able: Sequence[tuple[Setting, RunFacts]], times: Sequence[Times]) -> list[ProfileRow]:
    (_, all_tokens), (_, no_tokens) = able[:2]
    full, nothing = times[:2]
    slope = (full.ttft.median - nothing.ttft.median) / all_tokens.tokens.before

    def saving(setting: Setting, seen: RunFacts, mine: Times) -> Saving:
        done = achieved(full.ttft.median, mine.ttft.median, nothing.ttft.median)
        predicted = achieved(all_tokens.flops, seen.flops, no_tokens.flops)
        selection = mine.spread["selection"].median if setting.wrap else 0.0
        share = setting.budget is None or any(unit in setting.budget for unit in _SHARES)
        return Saving(
            achieved=done,
            achieved_generate=achieved(
                full.generate.median, mine.generate.median, nothing.generate.median
            ),
            predicted=predicted,
            of_bound=done / predicted if done is not None and predicted else None,
            selector_overhead=selection / full.spread["prefill"].median,
            break_even=break_even(seen.tokens, selection, slope, share),
            overlaps=_overlap(full.ttft, nothing.ttft)
            or (mine is not full and _overlap(full.ttft, mine.ttft)),
        )

    return [
        ProfileRow(setting.label, setting.budget, None, seen, mine, saving(setting, seen, mine))
        for (setting, seen), mine in zip(able, times, strict=True)
    ]


def _overlap(one: Spread, other: Spread) -> bool:
    return one.low <= other.high and other.low <= one.high


def _times(samples: Sequence[RunTimes], output_tokens: int, batch: int) -> Times:
    generate = Spread.of([one.generate for one in samples])
    steps = output_tokens - 1
    each = [(one.generate - one.ttft) / steps for one in samples] if steps else []
    stages = [stage for stage in STAGES if stage in samples[0].stages]
    middle = _middle_half(samples)
    return Times(
        stages={name: statistics.fmean(one.stages[name] for one in middle) for name in stages},
        total=statistics.fmean(one.total for one in middle),
        spread={
            **{name: Spread.of([one.stages[name] for one in samples]) for name in stages},
            "total": Spread.of([one.total for one in samples]),
        },
        ttft=Spread.of([one.ttft for one in samples]),
        generate=generate,
        per_token=Spread.of(each) if each else None,
        tokens_per_second=1000 * batch * output_tokens / generate.median,
    )


def _middle_half(samples: Sequence[RunTimes]) -> list[RunTimes]:
    """Without the quarter that took least and the quarter that took most."""
    out = len(samples) // 4
    return sorted(samples, key=lambda one: one.total)[out : len(samples) - out]


__all__ = [
    "Prepare",
    "Profile",
    "ProfileRow",
    "Saving",
    "Setting",
    "Spread",
    "Times",
    "Wrap",
    "achieved",
    "break_even",
    "interleaved",
    "profile",
]
