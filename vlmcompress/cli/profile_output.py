"""What `profile` prints: the time of every stage, and what was saved."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from vlmcompress.profiler.measure import Profile, ProfileRow
from vlmcompress.profiler.stopwatch import STAGES

_WIDTH = 200
"""Where the output is no terminal."""


def show(found: Profile) -> None:
    """Print a profile as two tables and the conditions."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    done = [row for row in found.rows if row.times is not None]
    console.print(_stage_table(done))
    console.print(_saving_table(done))
    for row in found.rows:
        if row.error is not None:
            console.print(f"{_label(row)}: {row.error}", markup=False, soft_wrap=True)
    console.print(_conditions(found.environment), markup=False, soft_wrap=True)


def _stage_table(rows: list[ProfileRow]) -> Table:
    """Milliseconds of every stage that occurs, per call."""
    occurring = {stage for row in rows if row.times for stage in row.times.stages}
    stages = [stage for stage in STAGES if stage in occurring]
    table = _table("milliseconds", [*stages, "sum", "total", "per token", "tokens/s"])
    for row in rows:
        times = row.times
        assert times is not None
        cells = [f"{times.stages[s]:.1f}" if s in times.stages else "-" for s in stages]
        each = "-" if times.per_token is None else f"{times.per_token.median:.2f}"
        total = [f"{sum(times.stages.values()):.1f}", f"{times.total:.1f}"]
        table.add_row(_label(row), *cells, *total, each, f"{times.tokens_per_second:.1f}")
    return table


def _saving_table(rows: list[ProfileRow]) -> Table:
    columns = (
        "tokens",
        "first token",
        "quartiles",
        "achieved",
        "predicted",
        "of bound",
        "overhead",
    )
    table = _table("saving", [*columns, "break-even", "KV MB", "peak MB"])
    for row in rows:
        seen, times, saving = row.seen, row.times, row.saving
        assert seen is not None
        assert times is not None
        assert saving is not None
        shares = (saving.achieved, saving.predicted, saving.of_bound, saving.selector_overhead)
        # What the two ends save is 0 and 1 by definition.
        full = row.label == "full"
        table.add_row(
            _label(row),
            f"{seen.tokens.before} > {seen.tokens.mean:.4g}",
            f"{times.ttft.median:.1f} ms",
            f"{times.ttft.low:.1f}-{times.ttft.high:.1f}",
            *("-" if full else _percent(share) for share in shares),
            "-" if saving.break_even is None else str(saving.break_even),
            _mega(seen.kv_bytes),
            _mega(seen.peak_bytes),
        )
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title, box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _label(row: ProfileRow) -> str:
    return row.label if row.budget is None else f"{row.label} @ {row.budget}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _mega(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def _conditions(known: dict[str, Any]) -> str:
    prompt, attention = known["prompt"], known["attention"]
    device = known["device"] if known["device"] != "cpu" else f"{known['cpu']}, CPU"
    backends = " and ".join(sorted(set(attention.values())))
    return (
        f"{known['model']}, {known['decoder_layers']} decoder layers, {known['dtype']}, "
        f"{backends}; {device}, {known['threads']} threads\n"
        f"rows {prompt['rows']}, text tokens {prompt['text']}, output tokens "
        f"{prompt['output_tokens']}; rounds {known['rounds']}, settings in turn; first token: "
        f"medians and quartiles, stages: means over the half in the middle\n"
        f"torch {known['versions']['torch']}, transformers {known['versions']['transformers']}"
    )
