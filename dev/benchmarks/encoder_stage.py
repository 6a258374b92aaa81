"""What dropping tokens inside the vision tower saves: FLOPs of whole models, times of cut towers.

python -m dev.benchmarks.encoder_stage --out dev/benchmarks/results/encoder_stage.json

FLOPs are those up to the first token, of published shapes on the meta device. Times are those of a
feature call, with the first layers of the tower alone so that a CPU can run it; the bare model and
the methods take turns. Times that are in the file and are not measured again stay there:

python -m dev.benchmarks.encoder_stage --out FILE.json --timed gemma3-4b --methods "unit-drop"
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import logging

from dev.benchmarks.kept_rows import joined, place
from vlmcompress.api import compress
from vlmcompress.budget.budget import Budget
from vlmcompress.budget.clock import elapsed
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import check_output, write_json
from vlmcompress.flops.exact import Costs, first_token
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.composition.spec import parse
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.profiler.published_shapes import SHAPES
from vlmcompress.registry import unknown
from vlmcompress.tokens import Grid

WORDS = 40
LAYERS = 4
"""Of the tower, where it is timed."""
SHARE = "25%"
PREDICTED = (
    "divprune",
    "unit-drop",
    "unit-drop(layer=0.5)+divprune",
    "unit-drop+divprune",
    "unit-drop(layer=0)+divprune",
)
TIMED = (
    "unit-drop(layer=2)",
    "unit-drop(layer=1)",
    "unit-drop(layer=0)",
    "tome(stage='encoder')",
    "pitome(stage='encoder')",
    "mctf(stage='encoder')",
)

_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
"""google/siglip-so400m-patch14-384."""


@dataclass(frozen=True)
class Case:
    """A published model and a picture for it."""

    family: str
    """Prefix of the transformers classes."""
    config: Mapping[str, Any]
    pieces: tuple[Grid, ...]
    """Tokens of each picture or tile that the FLOPs are about."""
    timed: Grid
    """Tokens of what is timed: one tile, or a picture."""


def _published(name: str, pieces: tuple[Grid, ...], timed: Grid) -> Case:
    return Case(SHAPES[name].family, SHAPES[name].config, pieces, timed)


_SQUARE = (Grid(1, 32, 32),)
CASES: dict[str, Case] = {
    "qwen2.5-vl-7b": _published("qwen2.5-vl-7b", _SQUARE, Grid(1, 16, 16)),
    "qwen3-vl-4b": _published("qwen3-vl-4b", _SQUARE, Grid(1, 16, 16)),
    "internvl3-2b": _published("internvl3-2b", (Grid(1, 16, 16),) * 4, Grid(1, 16, 16)),
    # HuggingFaceTB/SmolVLM2-2.2B-Instruct
    "smolvlm2-2.2b": Case(
        "SmolVLM",
        {
            "vision_config": _SO400M | {"model_type": "smolvlm_vision", "image_size": 378},
            "text_config": {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 49280,
            },
            "scale_factor": 3,
            "image_token_id": 49190,
        },
        (Grid(1, 9, 9),) * 13,
        Grid(1, 9, 9),
    ),
    # google/gemma-3-4b-it
    "gemma3-4b": Case(
        "Gemma3",
        {
            "vision_config": _SO400M
            | {"model_type": "siglip_vision_model", "image_size": 896, "vision_use_head": False},
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 262208,
                "sliding_window": 1024,
            },
            "mm_tokens_per_image": 256,
        },
        (Grid(1, 16, 16),) * 4,
        Grid(1, 16, 16),
    ),
}


def configuration(case: Case, layers: int | None) -> Any:
    """Of a case; with `layers` of the tower and next to no decoder, for a CPU."""
    values = {k: dict(v) if isinstance(v, Mapping) else v for k, v in case.config.items()}
    if layers is not None:
        vision = values["vision_config"]
        vision["depth" if "depth" in vision else "num_hidden_layers"] = layers
        for special in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if special in vision:
                vision[special] = [layers - 1]
        values["text_config"] |= {"num_hidden_layers": 1, "intermediate_size": 64}
        values["text_config"] |= {"vocab_size": 64, "layer_types": ["full_attention"]}
    return getattr(transformers, f"{case.family}Config")(**values)


def built(case: Case, layers: int | None = None) -> Any:
    """The whole model on the meta device, or a cut one with random weights."""
    kind: Any = getattr(transformers, f"{case.family}ForConditionalGeneration")
    config = configuration(case, layers)
    if layers is None:
        with torch.device("meta"):
            return kind._from_config(config, attn_implementation="sdpa").eval()
    model = kind._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return model.eval()


def costs_of(model: Any, pieces: Sequence[Grid], spec: str | None, share: str) -> Costs:
    """FLOPs up to the first token; None for the bare model."""
    if spec is None:
        return first_token(shape_of(model), load_of(model, [(0, g, None) for g in pieces], [WORDS]))
    parts = ModelParts.of(model)
    family = parts.family
    pipeline = parse(spec).for_stages(family.name, family.stages)
    plans = Planner(pipeline, Budget.parse(share), len(parts.layers)).plan(pieces)
    images = [(0, grid, plan) for grid, plan in zip(pieces, plans, strict=True)]
    return first_token(shape_of(model), load_of(model, images, [WORDS], pipeline.upstream))


def predicted(name: str, case: Case) -> dict[str, Any]:
    """How many times fewer FLOPs the whole model computes."""
    model = built(case)
    layers = len(ModelParts.of(model).layers)
    full = costs_of(model, case.pieces, None, SHARE)
    nothing = [(0, grid, ImagePlan(((grid, 0),), {}, layers)) for grid in case.pieces]
    without = first_token(shape_of(model), load_of(model, nothing, [WORDS]))
    times = {
        spec: full.total / costs_of(model, case.pieces, spec, SHARE).total for spec in PREDICTED
    }
    return {
        "model": name,
        "tokens": sum(map(len, case.pieces)),
        "encoder": (full.encoder + full.projector) / full.total,
        "no_tokens": full.total / without.total,
        "times_fewer": times,
    }


def pixels(model: Any, case: Case) -> dict[str, Tensor]:
    """Arguments of a feature call with one random picture or tile."""
    vision, grid = model.config.vision_config, case.timed
    generator = torch.Generator().manual_seed(0)
    if case.family.startswith("Qwen"):
        m, p = vision.spatial_merge_size, vision.patch_size
        rows = torch.randn(len(grid) * m * m, 3 * 2 * p * p, generator=generator)
        return {"pixel_values": rows, "image_grid_thw": torch.tensor([[1, grid.h * m, grid.w * m]])}
    size = vision.image_size
    side = size if isinstance(size, int) else size[0]
    picture = torch.randn(1, 3, side, side, generator=generator)
    return {"pixel_values": picture[None] if case.family == "SmolVLM" else picture}


@torch.inference_mode()
def timed(name: str, case: Case, specs: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a feature call of a cut tower, bare and with each of the specs."""
    model = built(case, LAYERS)
    given, full = pixels(model, case), costs_of(model, [case.timed], None, SHARE)
    found: dict[str | None, list[float]] = {spec: [] for spec in (None, *specs)}

    def call() -> None:
        model.model.get_image_features(**given)

    for number in range(rounds + 1):
        order = list(found) if number % 2 else list(found)[::-1]
        for spec in order:
            took = _one(model, spec, call)
            if number:  # the first round warms up
                found[spec].append(took)
    rows = []
    for spec in specs:
        ratios = sorted(a / b for a, b in zip(found[spec], found[None], strict=True))
        part = costs_of(model, [case.timed], spec, SHARE)
        rows.append(
            {
                "model": name,
                "tokens": len(case.timed),
                "method": spec,
                "bare_ms": statistics.median(found[None]),
                "ms": statistics.median(found[spec]),
                "share": [statistics.median(ratios), ratios[0], ratios[-1]],
                "predicted": (part.encoder + part.projector) / (full.encoder + full.projector),
            }
        )
    return rows


def _one(model: Any, spec: str | None, call: Callable[[], None]) -> float:
    if spec is None:
        return elapsed(call, model.device)
    with compress(model, spec, SHARE):
        return elapsed(call, model.device)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line."""
    made = argparse.ArgumentParser(prog="python -m dev.benchmarks.encoder_stage")
    made.add_argument("--out", type=Path, required=True, help="JSON file to write")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--timed", default="", help="models, between commas; all by default")
    made.add_argument("--methods", nargs="+", default=list(TIMED), help="what is timed")
    return made


def run(asked: argparse.Namespace) -> None:
    """Predict anew, measure what is asked for, and write the file model by model."""
    check_output(asked.out, frozenset({".json"}))
    names = asked.timed.split(",") if asked.timed else list(CASES)
    for name in names:
        if name not in CASES:
            raise unknown("model", name, list(CASES))
    for spec in asked.methods:
        parse(spec)
    file: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    own, known = file.get("provenance"), file.get("timed", [])
    ahead = [predicted(*case) for case in CASES.items()]
    now = machine("python -m dev.benchmarks.encoder_stage", torch.device("cpu"))
    now |= {"rounds": asked.rounds, "share": SHARE, "layers": LAYERS, "words": WORDS}
    for name in names:
        new = timed(name, CASES[name], asked.methods, asked.rounds)
        now |= {"load": os.getloadavg()[1]}
        own, known = joined(own, known, new, now, lambda row: (row["model"], row["method"]))
        content = {"provenance": own, "predicted": ahead, "timed": sorted(known, key=_order)}
        write_json(asked.out, content)
        print(*new, sep="\n", flush=True)


def _order(row: Mapping[str, Any]) -> tuple[int, int]:
    return place(list(CASES), row["model"]), place(TIMED, row["method"])


def main() -> None:
    """The command line."""
    asked = parser().parse_args()
    logging.set_verbosity_error()
    try:
        run(asked)
    except VLMCompressError as error:
        print(f"encoder_stage: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
