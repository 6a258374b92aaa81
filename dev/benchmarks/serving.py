"""What a server gains from fewer visual tokens, at several numbers of requests at once.

python -m dev.benchmarks.serving --out dev/benchmarks/results/serving.json

In the environment of `make test-vllm`. One server of a LLaVA with random weights and 576 tokens an
image is asked by vLLM's own `vllm bench serve`, in turn for all tokens and for fewer.
"""

import argparse
import asyncio
import contextlib
import io
import json
import math
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from vllm.benchmarks.serve import add_cli_args, main_async

from vlmcompress.files import write_json
from vlmcompress.models.names import resolve
from vlmcompress.profiler.machine import cpu, versions
from vlmcompress.serving.vllm.compat import release

SETTINGS: dict[str, dict[str, Any]] = {
    "all": {"method": "full"},
    "fewer": {"method": "divprune", "budget": 64},
}
CONCURRENCY = (1, 4, 8, 16)
PIXELS, PATCH, BLOCK, WORDS, ANSWER = 336, 14, 32, 32, 32
"""Of a picture and of a patch; tokens of a KV block, of a question and of an answer."""
MEASURED = ("median_ttft_ms", "request_throughput", "output_throughput")


def write_model(folder: Path, layers: int) -> None:
    """LLaVA's shape in small: a decoder 896 wide, a tower 256 wide, the tokenizer of tiny-llava."""
    own = Path(resolve("tiny-llava"))
    shutil.copytree(own, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model*"))
    config: Any = transformers.AutoConfig.from_pretrained(own)
    tower, text = config.vision_config, config.text_config
    tower.image_size, tower.patch_size = PIXELS, PATCH
    tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers = 256, 1024, 5
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 896, 2432, layers
    text.num_attention_heads = text.num_key_value_heads = 14
    text.head_dim, text.max_position_embeddings = 64, 4096
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    file = folder / "processor_config.json"
    processor = json.loads(file.read_text())
    processor["patch_size"] = PATCH
    size = processor["image_processor"]
    size["crop_size"], size["size"] = {"height": PIXELS, "width": PIXELS}, {"shortest_edge": PIXELS}
    file.write_text(json.dumps(processor))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server that prunes where a request asks for it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    given = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    given += ["--max-model-len", "1024", "--block-size", str(BLOCK), "--trust-request-mm-kwargs"]
    given += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
    command = [sys.executable, "-m", "vlmcompress", "serve", str(folder), "--method", "full"]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--", *given],
            stdout=log,
            stderr=subprocess.STDOUT,
            # by default vLLM takes its share of all memory, which other processes may hold
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text()[-2000:])
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def bench(url: str, folder: Path, settings: dict[str, Any], at_once: int, number: int) -> Any:
    """What `vllm bench serve` reports of some requests."""
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    body = {"mm_processor_kwargs": {"vlmcompress": settings}}
    given = ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"]
    given += ["--model", str(folder), "--dataset-name", "random-mm", "--seed", str(at_once)]
    given += ["--random-input-len", str(WORDS), "--random-output-len", str(ANSWER), "--ignore-eos"]
    given += ["--random-mm-base-items-per-request", "1", "--num-prompts", str(number)]
    given += ["--random-mm-limit-mm-per-prompt", json.dumps({"image": 1, "video": 0})]
    given += ["--random-mm-bucket-config", str({(PIXELS, PIXELS, 1): 1.0})]
    given += ["--max-concurrency", str(at_once), "--extra-body", json.dumps(body)]
    given += ["--disable-tqdm"]
    with contextlib.redirect_stdout(io.StringIO()):
        found = asyncio.run(main_async(parser.parse_args(given)))
    assert found["completed"] == number, found
    return found


def main() -> None:
    """Measure in turn, and write the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_model(folder, given.layers)
        with served(folder) as url:
            sizes = {name: size(bench(url, folder, one, 1, 1)) for name, one in SETTINGS.items()}
            for at_once in CONCURRENCY:
                rows.append(row(url, folder, at_once, given.rounds))
                print(json.dumps(rows[-1]), flush=True)
    shape = {
        "image_tokens": (PIXELS // PATCH) ** 2,
        "decoder": [896, given.layers],
        "dtype": "float32",
    }
    write_json(
        given.out,
        {
            "command": "python -m dev.benchmarks.serving",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": {
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[2], 1),
            },
            "versions": versions(vllm=release()),
            "system": platform.system(),
            "shape": shape,
            "settings": SETTINGS,
            "request": sizes,
            "rows": rows,
        },
    )


def size(found: Any) -> dict[str, int]:
    """Tokens of the only request of a run, and the KV blocks that they fill."""
    tokens = found["total_input_tokens"]
    return {"prompt_tokens": tokens, "kv_blocks": math.ceil((tokens + ANSWER) / BLOCK)}


def row(url: str, folder: Path, at_once: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds at one number of requests at once, and how they compare."""
    number = max(2 * at_once, 4) if at_once < 8 else at_once
    found: dict[str, list[Any]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for name, settings in SETTINGS.items():
            found[name].append(bench(url, folder, settings, at_once, number))
    medians = {
        name: {key: round(statistics.median(one[key] for one in each), 3) for key in MEASURED}
        for name, each in found.items()
    }
    ratios = [
        one["request_throughput"] / other["request_throughput"]
        for one, other in zip(found["fewer"], found["all"], strict=True)
    ]
    return {
        "concurrency": at_once,
        "requests": number * rounds,
        **medians,
        "ttft_ratio": round(
            medians["all"]["median_ttft_ms"] / medians["fewer"]["median_ttft_ms"], 2
        ),
        "throughput_ratio": round(statistics.median(ratios), 2),
        "throughput_ratios": [round(one, 2) for one in ratios],
    }


if __name__ == "__main__":
    main()
