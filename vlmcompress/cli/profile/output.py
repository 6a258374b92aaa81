"""What `profile` prints: the time of every stage, and what was saved."""

from __future__ import annotations

from typing import Any

from vlmcompress.cli.tables import console, numbers
from vlmcompress.profiler.measure import Profile, ProfileRow
from vlmcompress.profiler.stopwatch import STAGES

_NOISE = "noise"
_ABOUT_NOISE = (
    f"{_NOISE}: the quartiles of the first token overlap those of the full model, or no visual "
    "token was as slow as all of them, so the runs do not tell what is saved; more --rounds may."
)


def show(found: Profile) -> None:
    """Print a profile as two tables and the conditions."""
    done = [row for row in found.rows if row.times is not None]
    _stages(done)
    _savings(done)
    out = console()
    if any(row.saving and row.saving.overlaps for row in done):
        out.print(_ABOUT_NOISE, markup=False)
    for row in found.rows:
        if row.error is not None:
            out.print(f"{_label(row)}: {row.error}", markup=False)
    out.print(_conditions(found.environment), markup=False)


def _stages(rows: list[ProfileRow]) -> None:
    """Milliseconds of every stage that occurs, per call."""
    occurring = {stage for row in rows if row.times for stage in row.times.stages}
    stages = [stage for stage in STAGES if stage in occurring]
    lines = []
    for row in rows:
        times = row.times
        assert times is not None
        cells = [f"{times.stages[s]:.1f}" if s in times.stages else "-" for s in stages]
        each = "-" if times.per_token is None else f"{times.per_token.median:.2f}"
        total = [f"{sum(times.stages.values()):.1f}", f"{times.total:.1f}"]
        lines.append((_label(row), [*cells, *total, each, f"{times.tokens_per_second:.1f}"]))
    numbers("milliseconds", [*stages, "sum", "total", "per token", "tokens/s"], lines)


def _savings(rows: list[ProfileRow]) -> None:
    heads = ["tokens", "first token", "quartiles", "achieved", "predicted", "of bound"]
    lines = []
    for row in rows:
        seen, times, saving = row.seen, row.times, row.saving
        assert seen is not None
        assert times is not None
        assert saving is not None
        # What the two ends save is 0 and 1 by definition.
        full = row.label == "full"

        def share(value: float | None, full: bool = full) -> str:
            return "-" if full or value is None else f"{value:.1%}"

        def measured(text: str, noise: bool = saving.overlaps and not full) -> str:
            return _NOISE if noise else text

        cells = [
            f"{seen.tokens.before} > {seen.tokens.mean:.4g}",
            f"{times.ttft.median:.1f} ms",
            f"{times.ttft.low:.1f}-{times.ttft.high:.1f}",
            measured(share(saving.achieved)),
            share(saving.predicted),
            measured(share(saving.of_bound)),
            share(saving.selector_overhead),
            measured("-" if saving.break_even is None else str(saving.break_even)),
            _mega(seen.kv_bytes),
            _mega(seen.peak_bytes),
        ]
        lines.append((_label(row), cells))
    numbers("saving", [*heads, "overhead", "break-even", "KV MB", "peak MB"], lines)


def _label(row: ProfileRow) -> str:
    return row.label if row.budget is None else f"{row.label} @ {row.budget}"


def _mega(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def _conditions(known: dict[str, Any]) -> str:
    prompt, attention = known["prompt"], known["attention"]
    device = known["device"] if known["device"] != "cpu" else f"{known['cpu']}, CPU"
    memory = known.get("max_memory")
    pieces = "" if memory is None else f", clips encoded in pieces of {memory} at most"
    backends = " and ".join(sorted(set(attention.values())))
    return (
        f"{known['model']}, {known['decoder_layers']} decoder layers, {known['dtype']}, "
        f"{backends}{pieces}; {device}, {known['threads']} threads\n"
        f"rows {prompt['rows']}, text tokens {prompt['text']}, output tokens "
        f"{prompt['output_tokens']}; rounds {known['rounds']}, settings in turn; first token: "
        f"medians and quartiles, stages: means over the half in the middle\n"
        f"torch {known['versions']['torch']}, transformers {known['versions']['transformers']}"
    )
