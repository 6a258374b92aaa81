"""What every method saves on shapes of published models, with random weights.

python -m dev.benchmarks.published_shapes --out FILE.json
python -m dev.benchmarks.published_shapes --out FILE_gpu.json --device cuda

Methods are those of the registry. Some of them at a time take turns with the bare model and with
the one without visual tokens (`vlmcompress.profiler`). What has been measured is in the file, and
another run goes on from there. On a CPU the decoder is that of Qwen2-0.5B with all its layers, and
the vision tower is cut; on CUDA the models are whole.
"""

import argparse
import gc
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from vlmcompress.api import compress
from vlmcompress.files import write_json
from vlmcompress.methods.registry import METHODS
from vlmcompress.profiler.measure import Profile, ProfileRow, Setting, Wrap, profile
from vlmcompress.profiler.published_shapes import configuration
from vlmcompress.profiler.random_prompts import prompt
from vlmcompress.profiler.random_weights import build

AT_ONCE = 6
"""Methods that take turns with one pair of ends."""


@dataclass(frozen=True)
class ShapeCase:
    """A model to measure on."""

    shape: str
    """Name in `profiler.published_shapes.SHAPES`."""
    layers: int | None = None
    """Decoder layers; None for all."""
    encoder_layers: int | None = None
    attention: str = "sdpa"

    @classmethod
    def read(cls, text: str) -> "ShapeCase":
        """`llava-1.5-7b:8:3` is 8 decoder layers and 3 of the vision tower; none for all."""
        name, *counts = text.split(":")
        layers, encoder_layers = (*(int(n) if n else None for n in counts), None, None)[:2]
        return cls(name, layers, encoder_layers)

    @property
    def name(self) -> str:
        """For people, and to tell cases apart."""
        cuts = [f"{n} {of}" for n, of in self._counts() if n is not None]
        return ", ".join([self.shape, *cuts, self.attention])

    def _counts(self) -> list[tuple[int | None, str]]:
        return [(self.layers, "decoder layers"), (self.encoder_layers, "ViT layers")]

    @property
    def depth(self) -> float:
        """How many times deeper the whole decoder is."""
        whole = configuration(self.shape).text_config.num_hidden_layers
        return float(whole / (self.layers or whole))


CPU = [ShapeCase("qwen2-0.5b-llava", None, 3), ShapeCase("qwen2-0.5b-llava-next", None, 3)]
CUDA = [ShapeCase("llava-1.5-7b"), ShapeCase("llava-next-7b"), ShapeCase("qwen2.5-vl-7b")]


def cases(device: str, texts: Sequence[str]) -> list[ShapeCase]:
    """The cases asked for, else those for the device; on CUDA with FlashAttention 2 where it is."""
    chosen = [ShapeCase.read(text) for text in texts] or (CUDA if device == "cuda" else CPU)
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    more = [
        ShapeCase(one.shape, one.layers, one.encoder_layers, "flash_attention_2")
        for one in (chosen if flash else ())
    ]
    return [*chosen, *more]


def settings(budgets: Sequence[str], only: Sequence[str]) -> list[tuple[str, str | None]]:
    """Every registered method with every budget; methods in the decoder also as in their paper."""
    found: list[tuple[str, str | None]] = []
    for name, method in METHODS.items():
        if name in ("full", "text-only") or (only and name not in only):
            continue
        asked: list[str | None] = [*budgets] if method.takes_budget else [None]
        own: list[str | None] = [None] if method.stages == {"decoder"} else []
        found += [(name, budget) for budget in dict.fromkeys([*asked, *own])]
    return found


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
    stages = [] if row.label not in METHODS.names() else sorted(METHODS.get(row.label).stages)
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
        if row["method"] not in ("full", "text-only") and row["selector_overhead"] > 0.01:
            yield f"{what}: the selection takes {row['selector_overhead']:.1%} of the full prefill"


def main() -> None:
    """Measure what the file does not have yet."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.published_shapes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", default="192,128,64")
    parser.add_argument("--methods", default="", help="some of the registry, between commas")
    parser.add_argument("--case", action="append", default=[], help="as llava-1.5-7b:8:3")
    given = parser.parse_args()
    logging.set_verbosity_error()
    known = json.loads(given.out.read_text()) if given.out.exists() else {"cases": {}, "rows": []}
    asked = settings(given.budgets.split(","), [name for name in given.methods.split(",") if name])
    for case in cases(given.device, given.case):
        done = {(row["method"], row["budget"]) for row in known["rows"] if row["case"] == case.name}
        todo = [one for one in asked if one not in done]
        dtype = getattr(torch, given.dtype)
        for found in measure(case, todo, given.device, dtype, given.rounds) if todo else ():
            # The two ends are kept once, from the first settings; shares come from their own.
            ends = slice(2 if case.name in known["cases"] else 0, None)
            new = [line(case, row, found.rows[0]) for row in found.rows[ends]]
            known["cases"][case.name] = found.environment | asdict(case)
            known["rows"] += new
            write_json(given.out, known)
            for row in new:
                print(json.dumps(row), flush=True)
        gc.collect()
    print("\n".join(misses(known["rows"])))


if __name__ == "__main__":
    main()
