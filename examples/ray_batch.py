"""Ask one question about every picture of a folder with Ray Data: an engine in every worker.

    pip install 'vlmcompress[vllm]' 'ray[data]'
    python examples/ray_batch.py pictures/ "what is on the sign?" --out answers \
        --model Qwen/Qwen2.5-VL-3B-Instruct --workers 8

The plug-in is active in every worker where `vlmcompress` is installed: the settings are arguments
of the engine. For a parquet file read it with `ray.data.read_parquet`. The engines are actors of
`map_batches`; the vLLM processor of Ray 2.60 imports a module that vLLM 0.32 no longer has.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from vlmcompress.models.formats import read_config
from vlmcompress.models.names import resolve
from vlmcompress.serving import hf_overrides
from vlmcompress.serving.served_profile import served_method


class Engine:
    """One engine of vLLM, which prunes."""

    def __init__(self, model: str, overrides: dict[str, Any], question: str) -> None:
        from vllm import LLM, SamplingParams

        limits = {"image": 1}
        self._llm = LLM(
            model, hf_overrides=overrides, limit_mm_per_prompt=limits, max_model_len=1024
        )
        self._sampling, self._question = SamplingParams(temperature=0, max_tokens=64), question

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answers about the pictures of a batch."""
        chats = []
        for data in batch["bytes"]:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            content = [
                {"type": "image_pil", "image_pil": picture},
                {"type": "text", "text": self._question},
            ]
            chats.append([{"role": "user", "content": content}])
        found = self._llm.chat(
            chats, self._sampling, tokenization_kwargs={"add_special_tokens": True}
        )
        return {
            "file": [Path(path).name for path in batch["path"]],
            "answer": [one.outputs[0].text.strip() for one in found],
            "prompt_tokens": [len(one.prompt_token_ids) for one in found],
        }


def main() -> None:
    """Answers as JSON lines, one file a block."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("question")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--method", help="Default: divprune, or what the profile takes.")
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--profile", help="Of `vlmcompress tune`, in the place of a method.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="Of each worker; 0 for CPUs.")
    given = parser.parse_args()
    model = resolve(given.model)
    config = read_config(model, {})
    method = given.method or "divprune"
    if given.profile is not None:
        method, said = served_method(given.profile, given.budget, config, given.method)
        print(said)
    overrides = hf_overrides(config["architectures"], method, given.budget)
    pictures = ray.data.read_binary_files(
        given.folder, include_paths=True, file_extensions=["png", "jpg", "jpeg", "webp"]
    )
    pictures.map_batches(
        Engine,
        fn_constructor_args=(model, overrides, given.question),
        concurrency=given.workers,
        num_gpus=given.gpus,
        batch_size=64,
    ).write_json(given.out)


if __name__ == "__main__":
    main()
