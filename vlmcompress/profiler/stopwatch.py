"""A stopwatch for the stages of one `generate`, and the hooks that tell it where one ends.

The hooks are the profiler's own, so that the bare model and a compressed one are timed by the same
clock. Around each hook of a compressed model stand two of the profiler's, one put on before
`compress()` and one after it: what lies between them is selection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria
from transformers.cache_utils import Cache

from vlmcompress.budget.clock import Mark, mark, milliseconds
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.patches.hooks.arguments import caches_in
from vlmcompress.patches.hooks.attachments import Attachments

STAGES = (
    "media",
    "preprocess",
    "encoder",
    "projector",
    "selection",
    "prefill",
    "other",
    "decode",
)
"""In the order of a call. `other` is what lies between the others up to the first token:
embedding, packing of tiles, the head of the language model, and `generate` itself. `decode` is all
after it."""


class Stopwatch:
    """Gives every moment to exactly one stage, so that stages add up to the whole.

    On CUDA marks are events on the stream, which nothing waits for until `stop`.
    """

    def __init__(self, device: torch.device, stage: str) -> None:
        self._device = device
        self._stages = [stage]
        self._cuts: list[tuple[Mark, str]] = [(mark(device), stage)]
        self._named: dict[str, Mark] = {}

    def enter(self, stage: str) -> None:
        """What follows is of `stage`, until it is left."""
        self._stages.append(stage)
        self._cut()

    def leave(self) -> None:
        """Back to the stage that was interrupted."""
        self._stages.pop()
        self._cut()

    def switch(self, stage: str) -> None:
        """The present stage ends, and `stage` takes its place."""
        self._stages[-1] = stage
        self._cut()

    def remember(self, name: str) -> None:
        """Call the start of the present stage by a name, the first time; see `between`."""
        self._named.setdefault(name, self._cuts[-1][0])

    def _cut(self) -> None:
        self._cuts.append((mark(self._device), self._stages[-1]))

    def stop(self) -> dict[str, float]:
        """Milliseconds of each stage that occurred, and nothing is timed any more."""
        ends = [*(point for point, _ in self._cuts[1:]), mark(self._device)]
        sums: dict[str, float] = {}
        for (start, stage), end in zip(self._cuts, ends, strict=True):
            sums[stage] = sums.get(stage, 0.0) + milliseconds(start, end)
        return sums

    def between(self, start: str, end: str) -> float:
        """Milliseconds between two remembered moments."""
        return milliseconds(self._named[start], self._named[end])


class FirstToken(StoppingCriteria):
    """Never stops anything: `generate` calls it when a token is there."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        """[B] bool, all False."""
        self._watch.switch("decode")
        self._watch.remember("first token")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Hooks:
    """The profiler's hooks of one run: `outer` go on before `compress()` and `inner` after it."""

    def __init__(self, model: nn.Module, watch: Stopwatch, compressed: bool) -> None:
        self._watch, self._compressed = watch, compressed
        self._parts = ModelParts.of(model)
        self._prefilled = self._packed = False
        self.kv_bytes: int | None = None
        """Bytes that the prefill left in the cache; None where the model returned no cache."""

    @contextmanager
    def outer(self) -> Iterator[None]:
        """The hooks that run before those of a compressed model."""
        with _attached() as attached:
            for tower in self._parts.towers:
                self._around(attached, tower, "encoder")
            for module in self._parts.family.projectors(self._parts.base):
                self._around(attached, module, "projector")
            first = "selection" if self._compressed else "prefill"
            attached.before(self._parts.lm, self._prefill(self._watch.enter, first))
            for layer in self._cut_layers():
                attached.before(layer, self._prefill(self._watch.enter, "selection"))
            yield

    @contextmanager
    def inner(self) -> Iterator[None]:
        """The hooks that run after those of a compressed model."""
        with _attached() as attached, ExitStack() as replaced:
            attached.before(self._parts.lm, self._prefill(self._watch.switch, "prefill"))
            attached.after(self._parts.lm, self._after_lm)
            for layer in self._cut_layers():
                attached.before(layer, self._prefill(self._watch.leave))
            if self._compressed:
                base, family = self._parts.base, self._parts.family
                for modality in family.feature_calls:
                    owner, name = family.feature_call(base, modality)
                    replaced.enter_context(_replaced(owner, name, self._encode))
                if hasattr(base, "pack_image_features"):
                    pack = _replaced(base, "pack_image_features", self._pack)
                    replaced.enter_context(pack)
            yield

    def _cut_layers(self) -> Iterable[nn.Module]:
        """Before which tokens may be dropped."""
        return self._parts.layers if self._compressed else ()

    def _around(self, attached: Attachments, module: nn.Module, stage: str) -> None:
        attached.before(module, lambda *_: self._watch.enter(stage))
        attached.after(module, lambda *_: self._watch.leave())

    def _prefill(self, act: Callable[..., None], *stage: str) -> Callable[..., None]:
        """A hook that acts in the prefill only."""
        return lambda *_: None if self._prefilled else act(*stage)

    def _encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A feature call: what is neither tower nor projector nor packing serves the selection."""
        self._packed = False
        return self._timed("selection", original, *args, **kwargs)

    def _pack(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Packing of features; signals are packed after them, and belong to the selection."""
        stage = "selection" if self._packed else "other"
        self._packed = True
        return self._timed(stage, original, *args, **kwargs)

    def _timed(self, stage: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._watch.enter(stage)
        try:
            return call(*args, **kwargs)
        finally:
            self._watch.leave()

    def _after_lm(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._prefilled:
            return
        self._prefilled = True
        self._watch.leave()
        caches = caches_in(output)
        self.kv_bytes = sum(map(bytes_of, caches)) if caches else None


@contextmanager
def _attached() -> Iterator[Attachments]:
    attached = Attachments()
    try:
        yield attached
    finally:
        attached.remove()


@contextmanager
def _replaced(owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Calls of a method of this instance go to `wrapper(original, ...)`.

    Unlike `Attachments.wrap` around a replacement that is there already, which comes back.
    """
    before, original = vars(owner).get(name), getattr(owner, name)
    wrapped = functools.wraps(original)(functools.partial(wrapper, original))
    object.__setattr__(owner, name, wrapped)
    try:
        yield
    finally:
        vars(owner).pop(name)
        if before is not None:
            object.__setattr__(owner, name, before)


def bytes_of(cache: Cache) -> int:
    """Bytes of all keys and values that a cache holds."""
    layers: Any = cache.layers
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
