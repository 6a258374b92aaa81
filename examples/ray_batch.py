"""Ask one question about every picture of a folder with Ray Data: vLLM in every worker, pruning.

    pip install 'vlmcompress[vllm]' 'ray[data]'
    python examples/ray_batch.py pictures/ "what is on the sign?" --out answers \
        --model Qwen/Qwen2.5-VL-3B-Instruct --workers 8

The plug-in is active in every worker where `vlmcompress` is installed: the settings are arguments
of the engine, which Ray sends there. For a parquet file read it with `ray.data.read_parquet`.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from vlmcompress.models.formats import read_config
from vlmcompress.models.names import resolve
from vlmcompress.serving import hf_overrides


def main() -> None:
    """Answers as JSON lines, one file a block."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("question")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    given = parser.parse_args()
    if given.device == "cpu":
        ray.init(num_cpus=8)  # each stage of the pipeline holds one, however few there are
    model = resolve(given.model)
    overrides = hf_overrides(read_config(model, {})["architectures"], given.method, given.budget)
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "hf_overrides": overrides,
            "max_model_len": 1024,
            "limit_mm_per_prompt": {"image": 1},
        },
        prepare_multimodal_stage=True,
        concurrency=given.workers,
        batch_size=16,
        **({"placement_group_config": {"bundles": [{"CPU": 1}]}} if given.device == "cpu" else {}),
    )

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        data = base64.b64encode(row["bytes"]).decode()
        kind = "jpeg" if row["path"].lower().endswith((".jpg", ".jpeg")) else "png"
        picture = {"url": f"data:image/{kind};base64,{data}"}
        content = [
            {"type": "image_url", "image_url": picture},
            {"type": "text", "text": given.question},
        ]
        return {
            "messages": [{"role": "user", "content": content}],
            "sampling_params": {"temperature": 0, "max_tokens": 64},
            "path": row["path"],
        }

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "file": Path(row["path"]).name,
            "answer": row["generated_text"].strip(),
            "prompt_tokens": row["num_input_tokens"],
        }

    pictures = ray.data.read_binary_files(
        given.folder, include_paths=True, file_extensions=["png", "jpg", "jpeg"]
    )
    build_processor(config, preprocess=ask, postprocess=keep)(pictures).write_json(given.out)


if __name__ == "__main__":
    main()
