"""What a decode step of a compressed model costs beside one of the bare model.

python -m dev.benchmarks.decode_step --out dev/benchmarks/results/decode_step.json

Both continue a cache of the same length in every layer, a few steps each in turn, as `generate`
does; what a compressed model costs besides is then all that differs.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import logging

import vlmcompress
from vlmcompress import defaults
from vlmcompress.budget.clock import elapsed
from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import write_json
from vlmcompress.patches.hooks.arguments import cache_name, caches_in
from vlmcompress.profiler.random_prompts import prompt
from vlmcompress.profiler.random_weights import build

METHODS = {
    "divprune": defaults.BUDGET,
    "fastv": None,
    "pyramiddrop": None,
    "divprune+fastv": defaults.BUDGET,
}
STEPS = 8
"""In a row, of one model."""


def tiny_prompt(model: Any) -> dict[str, Tensor]:
    """A random image for a built-in LLaVA with random words around it."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 60, (40,), generator=generator)
    image = torch.full((tokens,), model.config.image_token_id)
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.cat([words[:5], image, words[5:]])[None]
    return {"input_ids": ids.to(model.device), "pixel_values": pixels.to(model.device)}


def steps(model: Any, cache: Cache) -> list[float]:
    """Milliseconds of each of some decode steps."""
    given = {str(cache_name(model.forward)): cache}
    token = torch.full((1, 1), 7, device=model.device)

    def step() -> None:
        model(input_ids=token, use_cache=True, **given)

    return [elapsed(step, model.device) for _ in range(STEPS)]


def as_long_as(cache: Cache, other: Cache) -> Cache:
    """`cache`, cut layer by layer to the lengths of `other`."""
    layers: list[Any] = cache.layers
    for mine, its in zip(layers, other.layers, strict=True):
        length = its.keys.shape[-2]  # type: ignore[union-attr]
        mine.keys, mine.values = (x[..., :length, :].contiguous() for x in (mine.keys, mine.values))
    return cache


@torch.inference_mode()
def measure(
    model: Any, inputs: Mapping[str, Tensor], method: str, budget: str | None, rounds: int
) -> dict[str, Any]:
    """Median step of both, and the ratio of medians round by round."""
    (bare,) = caches_in(model(**inputs, use_cache=True))
    with vlmcompress.compress(model, method, budget):
        (shortened,) = caches_in(model(**inputs, use_cache=True))
    bare = as_long_as(bare, shortened)
    found: dict[str, list[float]] = {"bare": [], "wrapped": []}
    for number in range(rounds + 1):
        for name in ("bare", "wrapped") if number % 2 else ("wrapped", "bare"):
            if name == "bare":
                times = steps(model, bare)
            else:
                with vlmcompress.compress(model, method, budget):
                    times = steps(model, shortened)
            if number:
                found[name].append(statistics.median(times))
    ratios = [w / b for w, b in zip(found["wrapped"], found["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = {f"{name}_ms": round(statistics.median(of), 3) for name, of in found.items()}
    ratio = {"ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}
    return {"method": method, "budget": budget, "rounds": rounds, **medians, **ratio}


def main() -> None:
    """Measure the built-in model and a real shape."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.decode_step")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="qwen2-0.5b-llava", help="of random weights")
    parser.add_argument("--layers", type=int, help="of its decoder; all by default")
    parser.add_argument("--rounds", type=int, default=41)
    given = parser.parse_args()
    logging.set_verbosity_error()
    tiny, _ = vlmcompress.load(defaults.MODEL, device=given.device, dtype="float32")
    dtype = torch.bfloat16
    real = build(
        given.shape, device=given.device, dtype=dtype, layers=given.layers, encoder_layers=1
    )
    rows = []
    for name, model, inputs in (
        (f"{defaults.MODEL}, float32", tiny, tiny_prompt(tiny)),
        (f"{given.shape}, bfloat16", real, prompt(real, given.shape)),
    ):
        for method, budget in METHODS.items():
            row = measure(model, inputs, method, budget, given.rounds)
            rows.append({"model": name, **row})
            print(rows[-1], flush=True)
    command = "python -m dev.benchmarks.decode_step"
    made_on = machine(command, torch.device(given.device))
    write_json(given.out, {"provenance": made_on, "rows": rows})


if __name__ == "__main__":
    main()
