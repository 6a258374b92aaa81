"""Time to the first token: full, reduced, and with no visual token at all, interleaved.

python -m vlmcompress.eval.speed_table --out eval/speed.json

Two models: the built-in one, and LLaVA-1.5-7B's shape with random weights and fewer decoder layers,
so that it fits a CPU. Random weights say nothing about answers, but time does not depend on them.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlmcompress

SETTINGS: dict[str, list[tuple[str, int | None]]] = {
    "tiny-llava": [("divprune", 36), ("pool", 36), ("fastv", 72)],
    "llava-1.5-7b": [("divprune", 128), ("divprune", 64), ("fastv", 324), ("divprune+fastv", 64)],
}


def shape_of_llava_7b(layers: int) -> LlavaForConditionalGeneration:
    """LLaVA-1.5-7B with `layers` of its 32 decoder layers, random weights, bfloat16."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlavaForConditionalGeneration(config)
        model.eval()
        return model
    finally:
        torch.set_default_dtype(before)


def one_prompt(model: Any, text: int = 40) -> dict[str, torch.Tensor]:
    """One random image and `text` random words around it."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 60, (text,), generator=generator)
    image = torch.full((tokens,), model.config.image_token_id)
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
    return {
        "input_ids": torch.cat([words[:5], image, words[5:]])[None],
        "pixel_values": pixels.to(model.dtype),
    }


def seconds(
    model: Any, inputs: dict[str, torch.Tensor], method: str, budget: int | None
) -> tuple[float, float]:
    """Time to the first token, and the mean number of visual tokens that was really kept."""
    with vlmcompress.compress(model, method, budget=budget) as c:
        start = time.perf_counter()
        model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
        spent = time.perf_counter() - start
    return spent, c.report().images[0].mean


def measure(name: str, model: Any, rounds: int) -> list[dict[str, Any]]:
    """Rows with medians and quartiles; every round runs all settings once, after a warm-up."""
    inputs = one_prompt(model)
    settings = [("full", None), ("text-only", None), *SETTINGS[name]]
    times: list[list[float]] = [[] for _ in settings]
    kept = [0.0] * len(settings)
    for number in range(rounds + 1):
        for place, (method, budget) in enumerate(settings):
            spent, kept[place] = seconds(model, inputs, method, budget)
            if number:
                times[place].append(spent * 1000)
    full, nothing = (statistics.median(times[place]) for place in (0, 1))
    return [
        {"model": name, "method": method, "budget": budget, "kept_mean": kept[place]}
        | _summary(times[place], full, nothing)
        for place, (method, budget) in enumerate(settings)
    ]


def _summary(times: Sequence[float], full: float, nothing: float) -> dict[str, Any]:
    """Median and quartiles in ms, and the share of the possible saving that was achieved."""
    low, median, high = statistics.quantiles(times, n=4)
    return {
        "ms": round(median, 2),
        "ms_quartiles": [round(low, 2), round(high, 2)],
        "speedup": round(full / median, 3),
        "achieved": round((full - median) / (full - nothing), 3),
    }


def main() -> None:
    """Measure both models and write the table."""
    parser = argparse.ArgumentParser(prog="python -m vlmcompress.eval.speed_table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers of the 7B shape")
    given = parser.parse_args()
    tiny, _ = vlmcompress.load("tiny-llava", device="cpu", dtype="float32")
    rows = measure("tiny-llava", tiny, 4 * given.rounds)
    rows += measure("llava-1.5-7b", shape_of_llava_7b(given.layers), given.rounds)
    provenance = {
        "command": f"python -m vlmcompress.eval.speed_table --out {given.out}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "what": "generate() of one new token, encoder and selection included; batch 1; 40 words",
        "shapes": {
            "llava-1.5-7b": f"with {given.layers} of its 32 decoder layers, random weights, "
            "bfloat16"
        },
        "rounds": given.rounds,
        "device": f"CPU, {torch.get_num_threads()} threads, {platform.machine()}",
        "attention": "sdpa",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    given.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
