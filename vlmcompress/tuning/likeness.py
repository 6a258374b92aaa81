"""How like the whole model a compressed one is: on the whole model's own answer, without labels.

The answer is given to the compressed model token by token, as if it had said so itself, and its
next-token distributions are compared with those of the whole model. No method may see the answer
when it chooses tokens: the prompt is read first, compressed; the answer follows in one chunk on the
cache that this left.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmcompress.api import Compression, compress
from vlmcompress.budget.clock import now
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.run.answering import length_of, tokens_of
from vlmcompress.eval.run.cases import FULL, Case
from vlmcompress.patches.hooks.arguments import cache_name, caches_in
from vlmcompress.prompts import generate
from vlmcompress.report.report import Report

_MASK = "attention_mask"


@dataclass(frozen=True)
class Reference:
    """What the whole model answers to a batch."""

    ids: Tensor
    """[B, T] int64: its greedy answers, padded behind their ends."""
    said: Tensor
    """[B, T] bool: which of them are tokens of the answer, the one that ends it included."""
    log_probs: list[Tensor]
    """Per row [tokens of the answer, words] float32: its distributions over each of them."""


@dataclass(frozen=True)
class Likeness:
    """A batch under one case, beside the whole model."""

    kl: list[float]
    """Per row, nats: KL(whole || compressed), mean over the tokens of the answer."""
    agrees: list[bool]
    """Per row: whether the likeliest token is that of the whole model at every place, so that the
    greedy answer is the same."""
    before: list[int]
    mean: list[float]
    images: list[int]
    """Per row as in `eval.run.answering.Outcome`."""
    seconds: float
    """From the prompt to its first token, for the whole batch: encoder, selection, prefill."""


def reference(model: Any, processor: Any, inputs: Mapping[str, Any], longest: int) -> Reference:
    """The answers of the whole model.

    Args:
        model: not compressed.
        processor: its own.
        inputs: of `prepare`, padded on the left.
        longest: tokens of an answer at most.
    """
    ids = generate(model, processor, inputs, max_new_tokens=longest).ids
    lengths = torch.tensor([length_of(row, model) for row in ids], device=ids.device)
    said = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    with compress(model, FULL, processor=processor) as whole:
        found = forced(whole, inputs, ids).log_probs
    return Reference(ids, said, [row[mask] for row, mask in zip(found, said, strict=True)])


def likeness(
    model: Any, processor: Any, inputs: Mapping[str, Any], case: Case, whole: Reference
) -> Likeness:
    """Compare a case with the whole model; the model is as it was afterwards.

    Raises:
        VLMCompressError: the model, or these images, cannot run the case, or what comes out is no
            number.
    """
    with compress(model, case.method, case.budget, processor=processor) as handle:
        found = forced(handle, inputs, whole.ids)
    kl, agrees = [], []
    for row, mask, expected in zip(found.log_probs, whole.said, whole.log_probs, strict=True):
        mine = row[mask]
        kl.append(float(divergence(expected, mine).mean()))
        agrees.append(bool((expected.argmax(-1) == mine.argmax(-1)).all()))
    if not torch.isfinite(torch.tensor(kl)).all():
        raise VLMCompressError(f"{case} gives no distribution: its logits are not finite")
    return Likeness(kl, agrees, *tokens_of(found.report, len(kl)), found.seconds)


def divergence(whole: Tensor, other: Tensor) -> Tensor:
    """KL(whole || other) in nats, [T] of log probabilities [T, words].

    Words that the whole model never says count nothing.
    """
    p = whole.exp()
    parts = torch.where(p > 0, p * (whole - other), 0.0)
    return parts.sum(-1).clamp_min(0)


@dataclass(frozen=True)
class Forced:
    """What a compressed model makes of answers that are given to it."""

    log_probs: Tensor
    """[B, T, words] float32: its distribution over each token, behind those before it."""
    report: Report
    """Of the prompts."""
    seconds: float
    """To the first token."""


def forced(handle: Compression, inputs: Mapping[str, Any], answers: Tensor) -> Forced:
    """Distributions over each token of given answers.

    Args:
        handle: of a compressed model.
        inputs: the prompts, of `prepare`.
        answers: [B, T] int64; what stands behind the end of an answer changes nothing before it.
    """
    model: Any = handle.model
    one = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    with torch.inference_mode():
        start = now(model.device)
        first = model.generate(**inputs, **one, output_logits=True)
        seconds = (now(model.device) - start) / 1000
        report = handle.report()  # the next call has one of its own
        logits = [first.logits[0][:, None]]
        if answers.shape[1] > 1:
            (cache,) = caches_in(first)
            logits.append(_on_cache(model, inputs, answers[:, :-1], cache, one))
        return Forced(torch.cat(logits, 1).float().log_softmax(-1), report, seconds)


def _on_cache(
    model: Any, inputs: Mapping[str, Any], said: Tensor, cache: Any, one: Mapping[str, Any]
) -> Tensor:
    """[B, T, words] logits behind each of the tokens `said` [B, T], which follow the prompt.

    `generate` reads what the cache lacks in one chunk, as it does between the turns of a
    conversation. It knows the positions of each model; its logits are those of the last token.
    """
    known = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": said.shape[1]} if "logits_to_keep" in known else {}
    given = {"input_ids": torch.cat([inputs["input_ids"], said], 1)}
    if inputs.get(_MASK) is not None:
        given[_MASK] = torch.cat([inputs[_MASK], inputs[_MASK].new_ones(said.shape)], 1)
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    try:
        model.generate(**given, **{cache_name(model.forward) or "cache": cache}, **keep, **one)
    finally:
        hook.remove()
    return seen[0][:, -said.shape[1] :]
