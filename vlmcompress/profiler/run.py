"""One run of a model in one setting, timed stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import StoppingCriteriaList

from vlmcompress.budget.clock import now
from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import first_token
from vlmcompress.patches.cost.model_shape import shape_of
from vlmcompress.patches.cost.workload import load_of
from vlmcompress.patches.engine import engine_of
from vlmcompress.profiler.machine import peak_memory
from vlmcompress.profiler.stopwatch import FirstToken, Hooks, Stopwatch
from vlmcompress.tokens import Layout

Wrap = Callable[[nn.Module], AbstractContextManager[object]]
Prepare = Callable[[Callable[[str], None]], Mapping[str, Any]]

_BETWEEN = "hooks"
"""Stage of putting hooks on and off, which is no part of a call and is not reported."""


@dataclass(frozen=True)
class Setting:
    """A way to run the model."""

    label: str
    wrap: Wrap | None = None
    """Compresses the model while its context lasts: `lambda model: compress(model, ...)`. None for
    the bare model."""
    budget: str | None = None
    """As it is written; None for the method's own, which is taken for a share of the tokens."""


@dataclass(frozen=True)
class RunTimes:
    """Times of one run, in milliseconds."""

    stages: dict[str, float]
    ttft: float
    """From the start of `generate` to the first token."""
    generate: float
    """All of `generate`."""
    total: float
    """Media, preprocessing and `generate`, by the clock on the wall."""


@dataclass(frozen=True)
class Tokens:
    """Visual tokens of a call, all images together."""

    images: int
    before: int
    after: int
    """Visual tokens that enter the decoder."""
    mean: float
    """Mean over decoder layers of the visual tokens that enter each."""


@dataclass(frozen=True)
class RunFacts:
    """Tokens, FLOPs and bytes of a run: all but times, and so the same in every run."""

    tokens: Tokens
    flops: float
    """FLOPs up to the first token, without the selection."""
    kv_bytes: int | None
    """Bytes that the prefill leaves in the cache; None without a cache."""
    peak_bytes: int | None = None
    """Most memory beyond weights and inputs; None where it cannot be measured."""


class Runner:
    """Runs settings on one model and one prompt."""

    def __init__(self, model: nn.Module, prepare: Prepare, output_tokens: int) -> None:
        self._model: Any = model
        self._prepare, self._output_tokens = prepare, output_tokens
        self._shape = shape_of(model)
        self._images: list[tuple[int, Layout]] = []
        """Row and layout of each; a compressed run finds them out."""
        self.batch = self.text = 0
        """Rows of the prompt, and their tokens that are not visual, of all rows together."""

    def look(self, setting: Setting) -> RunFacts:
        """Run twice: to warm up, and to measure memory. The first setting must be a compressed one.

        Raises:
            VLMCompressError: the setting refuses, or there is no visual token.
        """
        self.run(setting)
        with peak_memory(self._model.device) as peak:
            _, seen = self.run(setting)
        return replace(seen, peak_bytes=peak.bytes)

    def run(self, setting: Setting) -> tuple[RunTimes, RunFacts]:
        """Run once."""
        model = self._model
        start = now(model.device)
        watch = Stopwatch(model.device, "preprocess")
        inputs = self._prepare(watch.switch)
        total = now(model.device) - start
        watch.switch(_BETWEEN)
        hooks = Hooks(model, watch, setting.wrap is not None)
        wrap = setting.wrap or nullcontext
        with hooks.outer(), wrap(model), hooks.inner():  # each begins when the one before is in
            start = now(model.device)
            watch.switch("other")
            watch.remember("start")
            self._generate(inputs, watch)
            watch.switch(_BETWEEN)
            watch.remember("end")
            total += now(model.device) - start
            seen = self._seen(inputs, hooks.kv_bytes)
        stages = watch.stop()
        del stages[_BETWEEN]
        ttft, generate = watch.between("start", "first token"), watch.between("start", "end")
        return RunTimes(stages, ttft, generate, total), seen

    def _generate(self, inputs: Mapping[str, Any], watch: Stopwatch) -> None:
        output = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            min_new_tokens=self._output_tokens,
            max_new_tokens=self._output_tokens,
            stopping_criteria=StoppingCriteriaList([FirstToken(watch)]),
        )
        made = output.shape[1] - inputs["input_ids"].shape[1]
        if made != self._output_tokens:
            raise VLMCompressError(f"{self._output_tokens} tokens were asked for, got {made}")

    def _seen(self, inputs: Mapping[str, Any], kv_bytes: int | None) -> RunFacts:
        engine, model = engine_of(self._model), self._model
        if engine is not None and not self._images:
            self._images = [(image.row, image.layout) for image in engine.trace.images]
        before = sum(len(layout) for _, layout in self._images)
        if not before:
            raise VLMCompressError("there is nothing to save: the prompt has no visual tokens")
        text = self._words(inputs)
        self.batch, self.text = len(text), sum(text)
        if engine is None:
            load = load_of(model, [(row, layout, None) for row, layout in self._images], text)
            tokens = Tokens(len(self._images), before, before, before)
        else:
            found = [image.report(number) for number, image in enumerate(engine.trace.images)]
            load = load_of(model, found, text, engine.planner.pipeline.upstream)
            after, mean = sum(one.after for one in found), sum(one.mean for one in found)
            tokens = Tokens(len(found), before, after, mean)
        return RunFacts(tokens, first_token(self._shape, load).total, kv_bytes)

    def _words(self, inputs: Mapping[str, Any]) -> list[int]:
        """Per row its tokens that are no placeholders and no padding."""
        ids: Tensor = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        text = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        for row, layout in self._images:
            text[row] -= layout.placeholders
        return text
