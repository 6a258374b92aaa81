"""Engines of vLLM in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm_cases import TOKENS, Case, request

from vlmcompress.models.names import resolve
from vlmcompress.serving import hf_overrides

ARCHITECTURES = {
    "tiny-llava": "LlavaForConditionalGeneration",
    "tiny-qwen": "Qwen2_5_VLForConditionalGeneration",
}


@dataclass
class Engine:
    """One engine and the name of its model."""

    llm: Any
    name: str

    def ask(
        self, cases: Sequence[Case], settings: Any = None, tokens: int = TOKENS, **sampling: Any
    ) -> list[Any]:
        """Ask all cases at once. `settings`: of the requests, one for all or one for each."""
        each = settings if isinstance(settings, list) else [settings] * len(cases)
        asked = [request(self.name, case, one) for case, one in zip(cases, each, strict=True)]
        return self.generate(asked, tokens, **sampling)

    def generate(self, asked: Any, tokens: int = TOKENS, **sampling: Any) -> list[Any]:
        params = SamplingParams(temperature=0, max_tokens=tokens, **sampling)
        return self.llm.generate(asked, params, use_tqdm=False)


@contextmanager
def engine(
    name: str, method: str, budget: Any, positions: str = "keep", **extra: Any
) -> Iterator[Engine]:
    """A pruning engine of a built-in model."""
    overrides = hf_overrides([ARCHITECTURES[name]], method, budget, positions)
    with engine_of(resolve(name), name, hf_overrides=overrides, **extra) as made:
        yield made


@contextmanager
def engine_of(folder: str, name: str, **extra: Any) -> Iterator[Engine]:
    """An engine of the model in a folder."""
    options: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "block_size": 32,
        "limit_mm_per_prompt": {"image": 3, "video": 1} if name == "tiny-qwen" else {"image": 3},
        "disable_log_stats": False,
    }
    made = Engine(LLM(folder, **(options | extra)), name)
    try:
        yield made
    finally:
        made.llm = None
        clean_up()


def clean_up() -> None:
    """After an engine: one that is collected later takes down what the next one has set up."""
    gc.collect()
    cleanup_dist_env_and_memory()
