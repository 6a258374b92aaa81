"""What the choice itself costs, method by method, beside the full prefill of a real decoder shape.

python -m dev.benchmarks.selection_cost --out dev/benchmarks/results/selection_cost.json

Every registered method works on random signals of real sizes (`random_signals`), without any model
around it: `keep_count` and `select` or `reduce`, all cuts of a `schedule`, all merges of a tower.
The prefill is one decoder layer of random weights on all tokens, times the layers of the decoder.
What the file has stays, and another run goes on from there; `--again` measures it once more:

python -m dev.benchmarks.selection_cost --out FILE.json --methods clse aim-prune --again
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dev.benchmarks.kept_rows import joined, place
from dev.benchmarks.random_signals import make
from dev.benchmarks.selection_inputs import (
    DTYPES,
    MODELS,
    PICTURES,
    TEXT,
    Model,
    plain_layer,
    shown_tokens,
    works,
)
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import check_output, write_json
from vlmcompress.methods.registry import COMPOSITIONS, METHODS


def milliseconds(work: Callable[[], object], seconds: float) -> float:
    """CPU time: median of the runs, at most 25, that so long allows after a warm-up, at least one.

    On one thread it is the time that an idle machine takes, also where others are at work.
    """
    spent: list[float] = []
    begin = time.process_time()
    while not spent or (len(spent) < 26 and (time.process_time() - begin) < seconds):
        start = time.process_time()
        work()
        spent.append((time.process_time() - start) * 1000)
    return statistics.median(spent[1:] or spent)


def prefill(model: Model, length: int, dtype: torch.dtype, seconds: float) -> float:
    """Milliseconds of all decoder layers on `length` tokens: that of one, times their number."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config = model.config
        config._attn_implementation = "sdpa"
        layer = model.layer(config, 0).eval()
        hidden = torch.randn(1, length, model.widths.hidden)
        embeddings = model.rotary(config)(hidden, torch.arange(length)[None])
    finally:
        torch.set_default_dtype(before)
    one = milliseconds(lambda: layer(hidden, position_embeddings=embeddings), seconds)
    return one * int(config.num_hidden_layers)


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is measured once."""
    return tuple(row[name] for name in ("model", "picture", "dtype", "method", "stage", "keep"))


def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the file."""
    first = [
        place(list(known), row[name])
        for name, known in (("model", MODELS), ("picture", PICTURES), ("dtype", DTYPES))
    ]
    none_last = row["keep"] is None
    return (
        *first,
        place(METHODS.names(), row["method"]),
        row["stage"],
        none_last,
        row["keep"] or 0,
    )


def missing(
    asked: argparse.Namespace, done: set[tuple[Any, ...]], folder: Path
) -> Iterator[tuple[dict[str, Any], Callable[[], object]]]:
    """What is to be measured and not `done`: a row without its figures, and the work."""
    for model_name, picture, dtype in product(asked.models, asked.pictures, asked.dtypes):
        model, grids = MODELS[model_name], PICTURES[picture]
        total = sum(map(len, grids))
        head = {"model": model_name, "picture": picture, "tokens": total, "dtype": dtype}
        for name, stage in cases(asked.methods):
            row = head | {"method": name, "stage": stage}
            counts = [count for count in asked.counts if count < total]
            if counts and all(key(row | {"keep": count}) in done for count in counts):
                continue  # else it would make its signals for nothing
            method = make(name, folder, stage)
            found = {count: works(method, model, grids, DTYPES[dtype], count) for count in counts}
            if not any(found.values()):
                found = {None: works(method, model, grids, DTYPES[dtype], None)}
            for count, work in found.items():
                if work is not None and key(row | {"keep": count}) not in done:
                    yield row | {"keep": count}, work
        shown_tokens.cache_clear()
        plain_layer.cache_clear()


def rows(
    asked: argparse.Namespace, done: set[tuple[Any, ...]], folder: Path
) -> Iterator[dict[str, Any]]:
    """Lines of the table, one after the other; the prefill only where there is one to measure."""
    before: tuple[Any, ...] = ()
    full = 0.0
    for row, work in missing(asked, done, folder):
        model, here = MODELS[row["model"]], key(row)[:3]
        if here != before:
            length = row["tokens"] + TEXT
            before, full = here, prefill(model, length, DTYPES[row["dtype"]], asked.seconds)
        spent = milliseconds(work, asked.seconds)
        yield row | {
            "ms": round(spent, 3),
            "prefill_ms": round(full, 1),
            "share": round(spent / full, 5),
            "limit": model.limit,
            "above": spent / full > model.limit,
        }


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    """The methods, each at all stages where it can act; all of the registry without names.

    The name of a paper of several stages stands for its methods.
    """
    chosen = [part for name in names for part in COMPOSITIONS.get(name, name).split("+")]
    return [
        (name, stage)
        for name in chosen or METHODS.names()
        for stage in sorted(METHODS.get(name).stages)
    ]


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line; without any, what is committed."""
    made = argparse.ArgumentParser(prog="python -m dev.benchmarks.selection_cost")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--methods", nargs="*", default=[], help="all if none is given")
    made.add_argument("--again", action="store_true", help="also what the file has")
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--pictures", nargs="+", choices=PICTURES, default=["tiles"])
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    made.add_argument("--counts", nargs="+", type=int, default=[64])
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seconds", type=float, default=0.05, help="for each median, at least a run")
    return made


def provenance() -> dict[str, Any]:
    """What the rows of this run are measured on."""
    return machine("python -m dev.benchmarks.selection_cost", torch.device("cpu")) | {
        "prefill": (
            f"one decoder layer, random weights, SDPA, on all visual tokens and {TEXT} words, "
            "times the layers of the decoder"
        ),
        "clock": "CPU time",
    }


@torch.inference_mode()
def main() -> None:
    """Measure, print and write row by row."""
    asked = parser().parse_args()
    torch.set_num_threads(asked.threads)
    try:
        check_output(asked.out, frozenset({".json"}))
        cases(asked.methods)  # a name that is not known, before anything is measured
        file: dict[str, Any] = (
            json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
        )
        own, known, now = file.get("provenance"), file["rows"], provenance()
        done = set() if asked.again else {key(row) for row in known}
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(asked, done, Path(folder)):
                own, known = joined(own, known, [row], now, key)
                ordered = sorted(known, key=order)
                write_json(asked.out, {"provenance": own, "rows": ordered})
                print("*" if row["above"] else " ", *row.values(), flush=True)
    except VLMCompressError as error:
        print(f"selection_cost: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
