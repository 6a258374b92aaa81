"""FlashAttention-2: transformers' own glue around kernels emulated in torch, real ones on a GPU."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from kv_cache import cache_in, cached
from transformers import modeling_flash_attention_utils as glue

from vlmcompress.api import compress


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """[B, Q, H, hd]; causal is aligned to the last query and key, as in the real kernel."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, 2).transpose(1, 2) for x in (k, v))
    scores = q.transpose(1, 2) @ k.transpose(2, 3) * (softmax_scale or 1 / math.sqrt(q.shape[-1]))
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool)
        scores = scores.masked_fill(~allowed.tril(scores.shape[-1] - scores.shape[-2]), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """[total, H, hd], one sequence after the other."""
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = [
        flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], 0.0, softmax_scale, causal)[0]
        for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False)
    ]
    return torch.cat(parts)


@pytest.fixture
def emulated_flash(monkeypatch: pytest.MonkeyPatch, llava: Any) -> Any:
    """A LLaVA with its language model on transformers' FlashAttention-2 path."""
    for name, value in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_pad_fn": glue._pad_input,
        "_unpad_fn": glue._unpad_input,
        "_process_flash_kwargs_fn": glue._lazy_define_process_function(flash_attn_varlen_func),
    }.items():
        monkeypatch.setattr(glue, name, value)
    config = llava.model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    return llava


_METHODS = ["divprune", "fastv", "pyramiddrop", "divprune+fastv"]


def two_turns(subject: Any, method: str) -> torch.Tensor:
    """Logits of two turns on one cache; the second brings an image, so positions have gaps."""
    inputs = subject.batch(subject.prompt(1, 8, text=4))
    with compress(subject.model, method, budget="55%"):
        out = subject.generate(inputs, return_dict_in_generate=True, output_logits=True)
        ids, pixels = subject.prompt(1, 10)
        rest = torch.tensor([ids])
        second = subject.generate(
            {"input_ids": torch.cat([out.sequences, rest], 1), "pixel_values": pixels},
            **cached(subject.model, cache_in(out)),
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack([*out.logits, *second.logits])


def batch_logits(subject: Any, method: str) -> torch.Tensor:
    """Logits of a padded batch of one and two images."""
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(2, 4))
    with compress(subject.model, method, budget="55%"):
        out = subject.generate(inputs, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits)


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("run", [two_turns, batch_logits])
def test_the_flash_attention_path_equals_eager(emulated_flash, method, run):
    flash = run(emulated_flash, method)
    config = emulated_flash.model.model.language_model.config
    config._attn_implementation_internal = "eager"
    assert (flash - run(emulated_flash, method)).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None,
    reason="needs a CUDA device and flash-attn",
)
@pytest.mark.parametrize("method", _METHODS)
def test_the_real_kernels_on_a_gpu_agree_with_sdpa(random_subject, method):
    random_subject.model.to("cuda", torch.bfloat16)
    logits = {}
    inputs = random_subject.batch(random_subject.prompt(1, 3, text=4))
    inputs = {name: value.to("cuda") for name, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    for implementation in ("sdpa", "flash_attention_2"):
        random_subject.model.set_attn_implementation(implementation)
        with compress(random_subject.model, method, budget="55%"), torch.no_grad():
            logits[implementation] = random_subject.model(**inputs).logits[:, -1].float()
    scale = logits["sdpa"].abs().max()
    assert (logits["sdpa"] - logits["flash_attention_2"]).abs().max() < 0.05 * scale
