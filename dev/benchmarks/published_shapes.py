"""What every method saves on shapes of published models, with random weights.

python -m dev.benchmarks.published_shapes --out FILE.json
python -m dev.benchmarks.published_shapes --out FILE_gpu.json --device cuda

Methods are those of the registry, and papers of several stages. Some of them at a time take turns
with the bare model and with the one without visual tokens (`vlmcompress.profiler`). What has been
measured is in the file, and another run goes on from there. On a CPU the decoder is that of
Qwen2-0.5B with all its layers, and the vision tower is cut; on CUDA the models are whole.

python -m dev.benchmarks.published_shapes --out FILE.json --methods aim-prune,zoo-prune --again

measures these once more at what `shape_cases` says, and leaves all other rows as they are.
"""

import argparse
import gc
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from dev.benchmarks.kept_rows import joined, place
from dev.benchmarks.shape_cases import ENDS, ShapeCase, cases, names, parts_of, settings
from vlmcompress.api import compress
from vlmcompress.budget.budget import Budget
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import check_output, write_json
from vlmcompress.profiler.measure import Profile, ProfileRow, Setting, Wrap, profile
from vlmcompress.profiler.random_prompts import prompt
from vlmcompress.profiler.random_weights import build

AT_ONCE = 6
"""Methods that take turns with one pair of ends."""


def measure(
    case: ShapeCase,
    todo: Sequence[tuple[str, str | None]],
    device: str,
    dtype: torch.dtype,
    rounds: int,
) -> Iterator[Profile]:
    """Profiles of some settings at a time."""
    model = build(
        case.shape,
        device=device,
        dtype=dtype,
        attention=case.attention,
        layers=case.layers,
        encoder_layers=case.encoder_layers,
    )
    inputs = prompt(model, case.shape)

    def wrap(method: str, budget: str | None) -> Wrap:
        return lambda given: compress(given, method, budget)

    names = list(dict.fromkeys(method for method, _ in todo))
    for start in range(0, len(names), AT_ONCE):
        some = [one for one in todo if one[0] in names[start : start + AT_ONCE]]
        yield profile(
            model,
            lambda stage: inputs,
            wrap("text-only", None),
            [Setting(method, wrap(method, budget), budget) for method, budget in some],
            output_tokens=4,
            rounds=rounds,
        )


def line(case: ShapeCase, row: ProfileRow, full: ProfileRow) -> dict[str, Any]:
    """One setting as JSON."""
    asked = {"case": case.name, "method": row.label, "budget": row.budget}
    if row.seen is None or row.times is None or row.saving is None:
        return {**asked, "skipped": row.error}
    assert full.times is not None
    stages = sorted(frozenset[str]().union(*(part.stages for part in parts_of(row.label))))
    return {
        **asked,
        "stages": stages,
        "tokens": [row.seen.tokens.before, round(row.seen.tokens.mean, 2)],
        **{name: _rounded(value) for name, value in asdict(row.saving).items()},
        # The share of the prefill of all layers that the model has.
        "overhead_of_whole": _rounded(row.saving.selector_overhead / case.depth),
        "ttft_ms": [round(t, 2) for t in asdict(row.times.ttft).values()],
        "ttft_cut": round(1 - row.times.ttft.median / full.times.ttft.median, 4),
        "stage_ms": {name: round(ms, 3) for name, ms in row.times.stages.items()},
        "per_token_ms": None if row.times.per_token is None else row.times.per_token.median,
        "kv_bytes": row.seen.kv_bytes,
        "peak_bytes": row.seen.peak_bytes,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def misses(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What falls short of the goals, one line each."""
    for row in rows:
        what = f"{row['case']}: {row['method']} @ {row['budget']}"
        if "skipped" in row:
            yield f"{what}: skipped: {row['skipped']}"
            continue
        goal = 0.9 if "decoder" in row["stages"] else 0.95
        if row["of_bound"] is not None and row["of_bound"] < goal:
            yield f"{what}: {row['of_bound']:.1%} of its bound; stages {row['stage_ms']}"
        if row["method"] not in ENDS and row["selector_overhead"] > 0.01:
            yield f"{what}: the selection takes {row['selector_overhead']:.1%} of the full prefill"


def key(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """What is measured once."""
    return row["case"], row["method"], row["budget"]


def order(row: Mapping[str, Any], known: Sequence[str]) -> tuple[Any, ...]:
    """Where a row stands in the file: by case, method and budget, that of the paper last."""
    budget = row["budget"] or ""
    number = re.match(r"[\d.]+", budget)
    return (
        known.index(row["case"]),
        place([*ENDS, *names()], row["method"]),
        *(not budget, not budget.isdecimal(), -float(number[0]) if number else 0.0),
    )


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line; without any, what is committed."""
    made = argparse.ArgumentParser(prog="python -m dev.benchmarks.published_shapes")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--budgets", default="", help="of all methods, between commas")
    made.add_argument("--methods", default="", help="only these, between commas")
    made.add_argument("--again", action="store_true", help="also what the file has")
    made.add_argument("--case", action="append", default=[], help="as llava-1.5-7b:8:3")
    return made


def run(asked: argparse.Namespace) -> None:
    """Measure what the file does not have yet, and write it some methods at a time."""
    check_output(asked.out, frozenset({".json"}))
    known = json.loads(asked.out.read_text()) if asked.out.exists() else {"cases": {}, "rows": []}
    only, budgets = (
        [text.strip() for text in given.split(",") if text.strip()]
        for given in (asked.methods, asked.budgets)
    )
    for text in budgets:
        Budget.parse(text)
    todo = {}
    for case in cases(asked.device, asked.case):
        done = set() if asked.again else {key(row) for row in known["rows"]}
        wanted = settings(case, asked.device, budgets, only)
        todo[case] = [one for one in wanted if (case.name, *one) not in done]
    for case, some in todo.items():
        dtype = getattr(torch, asked.dtype)
        # The two ends are kept once, from the first settings; shares come from their own.
        ends = case.name not in known["cases"] or (asked.again and not only)
        for found in measure(case, some, asked.device, dtype, asked.rounds) if some else ():
            rows = found.rows if ends else found.rows[len(ENDS) :]
            new, ends = [line(case, row, found.rows[0]) for row in rows], False
            _join(known, case, new, found.environment | asdict(case))
            write_json(asked.out, known)
            for row in new:
                print(json.dumps(row), flush=True)
        gc.collect()
    print("\n".join(misses(known["rows"])))


def _join(
    known: dict[str, Any], case: ShapeCase, new: list[dict[str, Any]], now: dict[str, Any]
) -> None:
    """Put new rows of a case into the file."""
    mine = [row for row in known["rows"] if row["case"] == case.name]
    others = [row for row in known["rows"] if row["case"] != case.name]
    own, rows = joined(known["cases"].get(case.name), mine, new, now, key)
    known["cases"][case.name] = own
    listed = list(known["cases"])
    known["rows"] = sorted([*others, *rows], key=lambda row: order(row, listed))


def main() -> None:
    """The command line."""
    asked = parser().parse_args()
    logging.set_verbosity_error()
    try:
        run(asked)
    except VLMCompressError as error:
        print(f"published_shapes: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
