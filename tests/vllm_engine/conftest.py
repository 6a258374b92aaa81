"""Tests of the plug-in inside vLLM: `make test-vllm` runs them, in an environment of its own.

Engines run in this process, one at a time, so that tests of one engine stand side by side.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )


@pytest.fixture(scope="session")
def in_process():
    """Asks transformers with a prompt as it is written; the answer goes on to its full length."""
    from vllm_cases import TOKENS, loaded

    import vlmcompress

    def ask(name, text, images, method, budget):
        model, processor = loaded(name)
        inputs = processor(text=text, images=images, return_tensors="pt")
        pruned = (
            nullcontext()
            if method is None
            else vlmcompress.compress(model, method, budget, processor=processor)
        )
        with pruned:
            ids = model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    return ask
