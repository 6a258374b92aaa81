"""What the choice itself costs, method by method, beside the full prefill of a real decoder shape.

python -m dev.benchmarks.selection_cost --out dev/benchmarks/results/selection_cost.json

Every registered method works on random signals of real sizes (`random_signals`), without any model
around it: `keep_count` and `select` or `reduce`, all cuts of a `schedule`, all merges of a tower.
The prefill is one decoder layer of random weights on all tokens, times the layers of the decoder.
Models that are not measured stay in the file.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

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
from vlmcompress.methods.registry import METHODS


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


def rows(asked: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of the table, one after the other."""
    for model_name, picture, dtype in product(asked.models, asked.pictures, asked.dtypes):
        model, grids = MODELS[model_name], PICTURES[picture]
        total = sum(map(len, grids))
        full = prefill(model, total + TEXT, DTYPES[dtype], asked.seconds)
        head = {"model": model_name, "picture": picture, "tokens": total, "dtype": dtype}
        for name, stage in cases(asked.methods):
            method = make(name, folder, stage)
            counts = [count for count in asked.counts if count < total]
            found = {count: works(method, model, grids, DTYPES[dtype], count) for count in counts}
            if not any(found.values()):
                found = {None: works(method, model, grids, DTYPES[dtype], None)}
            for count, work in found.items():
                if work is not None:
                    spent = milliseconds(work, asked.seconds)
                    yield head | {
                        "method": name,
                        "stage": stage,
                        "keep": count,
                        "ms": round(spent, 3),
                        "prefill_ms": round(full, 1),
                        "share": round(spent / full, 5),
                        "limit": model.limit,
                        "above": spent / full > model.limit,
                    }
        shown_tokens.cache_clear()
        plain_layer.cache_clear()


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    """The methods, each at all stages where it can act; all of the registry without names."""
    chosen = names or METHODS.names()
    return [(name, stage) for name in chosen for stage in sorted(METHODS.get(name).stages)]


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line."""
    made = argparse.ArgumentParser(prog="python -m dev.benchmarks.selection_cost")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--methods", nargs="*", default=[], help="all if none is given")
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES))
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    made.add_argument("--counts", nargs="+", type=int, default=[64, 128, 192, 320])
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seconds", type=float, default=0.5, help="for each median, at least a run")
    return made


@torch.inference_mode()
def main() -> None:
    """Measure, print as it goes, and write the table."""
    asked = parser().parse_args()
    torch.set_num_threads(asked.threads)
    found = []
    try:
        check_output(asked.out, frozenset({".json"}))
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(asked, Path(folder)):
                found.append(row)
                print("*" if row["above"] else " ", *row.values(), flush=True)
        made_on = machine("python -m dev.benchmarks.selection_cost", torch.device("cpu"))
        made_on["prefill"] = (
            f"one decoder layer, random weights, SDPA, on all visual tokens and {TEXT} words, "
            "times the layers of the decoder"
        )
        made_on["clock"] = "CPU time"
        known = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
        found += [row for row in known if row["model"] not in asked.models]
        write_json(asked.out, {"provenance": made_on, "rows": found})
    except VLMCompressError as error:
        print(f"selector_speed: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
