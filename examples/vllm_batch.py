"""Ask one question about every picture of a folder, offline, with vLLM and fewer visual tokens.

pip install 'vlmcompress[vllm]'
python examples/vllm_batch.py pictures/ "what is on the sign?" --model Qwen/Qwen2.5-VL-3B-Instruct
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image
from vllm import LLM, SamplingParams

from vlmcompress.models.formats import read_config
from vlmcompress.models.names import resolve
from vlmcompress.serving import hf_overrides
from vlmcompress.serving.served_profile import served_method

KINDS = (".png", ".jpg", ".jpeg", ".webp")


def main() -> None:
    """One JSON line for each picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--method", help="default: divprune, or what the profile takes")
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--profile", help="of `vlmcompress tune`, in the place of a method")
    parser.add_argument("--max-model-len", type=int, help="fewer tokens need less KV cache")
    given = parser.parse_args()

    model = resolve(given.model)
    config = read_config(model, {})
    method = given.method or "divprune"
    if given.profile is not None:
        method, said = served_method(given.profile, given.budget, config, given.method)
        print(said, file=sys.stderr)
    llm = LLM(
        model,
        hf_overrides=hf_overrides(config["architectures"], method, given.budget),
        limit_mm_per_prompt={"image": 1},
        max_model_len=given.max_model_len,
    )
    files = sorted(f for f in given.folder.iterdir() if f.suffix.lower() in KINDS)
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_pil", "image_pil": Image.open(file).convert("RGB")},
                    {"type": "text", "text": given.question},
                ],
            }
        ]
        for file in files
    ]
    found = llm.chat(
        chats,
        SamplingParams(temperature=0, max_tokens=64),
        tokenization_kwargs={"add_special_tokens": True},
    )
    for file, one in zip(files, found, strict=True):
        answer = one.outputs[0].text.strip()
        tokens = len(one.prompt_token_ids)
        print(json.dumps({"file": file.name, "answer": answer, "prompt_tokens": tokens}))


if __name__ == "__main__":
    main()
