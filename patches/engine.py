"""Hooks that shorten the visual sequence of one model instance, and their exact removal.

Nothing of transformers is replaced: PyTorch hooks on the base model, the language model and its
layers, and instance attributes (with `functools.wraps`) for `generate` and the feature calls, which
hooks cannot reach. No family and no method is named here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from vlmcompress.budget import Planner
from vlmcompress.errors import CompositionError, UnsupportedModelError
from vlmcompress.ops.select import top_k
from vlmcompress.patches.family import Family
from vlmcompress.patches.flow import Flow
from vlmcompress.patches.guard import (
    check_attention,
    check_forward,
    check_full_attention,
    check_generate,
    two_dimensional,
)
from vlmcompress.patches.reduce import Reducing
from vlmcompress.patches.state import Slots, attach_state, state_of
from vlmcompress.patches.trace import Trace, mark
from vlmcompress.patches.view import CutContext, View
from vlmcompress.tokens import Grid

_MARK = "_vlmcompress_engine"
_GRIDS = "_vlmcompress_grids"


class Engine:
    """Installs a method on one model instance."""

    def __init__(
        self, model: nn.Module, family: Family, planner: Planner, positions: str, order: str
    ) -> None:
        self.model, self.family, self.planner = model, family, planner
        self.positions, self.order = positions, order
        self.base = family.base(model)
        self.lm = family.language_model(self.base)
        self.layers = family.layers(self.base)
        self.trace = Trace()
        self._handles: list[RemovableHandle] = []
        self._wrapped: list[tuple[nn.Module, str]] = []
        self._generating = False
        self._prompt: int | None = None
        self._call: dict[str, Any] | None = None
        self._encoded: dict[str, list[Grid]] = {}
        self._flow: Flow | None = None
        self._started: Any = None

    def install(self) -> None:
        """Hook the model.

        Raises:
            CompositionError: the model is compressed already.
            UnsupportedModelError: a seam is missing or the attention implementation is unknown.
        """
        if hasattr(self.model, _MARK):
            raise CompositionError(
                f"this {type(self.model).__name__} is compressed already: "
                "call .remove() on the first Compression before compressing it again"
            )
        check_attention(self.lm)
        if self.planner.pipeline.decoder is not None:
            check_full_attention(self.lm)
        try:
            self._hook()
        except BaseException:
            self.remove()
            raise

    def _hook(self) -> None:
        object.__setattr__(self.model, _MARK, self)
        self._wrapped.append((self.model, _MARK))
        self._wrap(self.model, "generate", self._generate)
        for modality, name in self.family.feature_calls.items():
            self._wrap(self.base, name, functools.partial(self._encode, modality))
        before = functools.partial(nn.Module.register_forward_pre_hook, with_kwargs=True)
        after = functools.partial(
            nn.Module.register_forward_hook, with_kwargs=True, always_call=True
        )
        self._handles = [
            before(self.model, self._before_model),
            before(self.base, self._before_base),
            after(self.base, self._after_base),
            before(self.lm, self._before_lm),
            after(self.lm, self._after_lm),
        ]
        for number, layer in enumerate(self.layers):
            self._handles.append(before(layer, functools.partial(self._before_layer, number)))

    def _wrap(self, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        if name in vars(owner):
            raise UnsupportedModelError(
                f"{type(owner).__name__}.{name} was replaced on this instance by something else: "
                "undo that first"
            )
        original = getattr(owner, name)
        # transformers reads signatures to decide what to pass, so the wrapper must carry this one.
        wrapped = functools.wraps(original)(functools.partial(wrapper, original))
        object.__setattr__(owner, name, wrapped)
        self._wrapped.append((owner, name))

    def remove(self) -> None:
        """Leave the model as it was before `install`; harmless when called twice."""
        for handle in self._handles:
            handle.remove()
        for owner, name in self._wrapped:
            owner.__dict__.pop(name, None)
        self._handles, self._wrapped = [], []
        self._end_forward()

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_generate(self.model, kwargs)
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        self.trace = Trace()
        # Queries for scores come from the prompt, whatever else a forward carries along
        # (candidates of assisted decoding, answers so far without a cache).
        self._prompt = ids.shape[1] if isinstance(ids, Tensor) else None
        self._generating = True
        try:
            return original(*args, **kwargs)
        finally:
            self._generating, self._prompt = False, None
            self._end_forward()

    def _encode(
        self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        device = next(self.base.parameters()).device
        with self.trace.timed("encoder", device):
            output = original(*args, **kwargs)
        call = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        features = getattr(output, "pooler_output", None)
        if features is not None:
            grids = self.family.grids(self.model, modality, features, call)
            # generate() encodes before the prefill and hands the output over: it carries its grids.
            setattr(output, _GRIDS, grids)
            self._encoded[modality] = grids
        return output

    def _before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        named = _by_name(module, args, kwargs)
        check_forward(module, named)
        if not self._generating and _carries_images(named):
            self.trace = Trace()

    def _before_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._call = _by_name(module, args, kwargs)
        self._encoded = {}
        for modality, output in (self._call.get("mm_encoder_outputs") or {}).items():
            if getattr(output, "pooler_output", None) is not None:
                self._encoded[modality] = getattr(output, _GRIDS, None) or self.family.grids(
                    self.model, modality, output.pooler_output, self._call
                )

    def _after_base(self, module: nn.Module, *_: Any) -> None:
        self._end_forward()

    def _end_forward(self) -> None:
        self._call, self._encoded, self._flow = None, {}, None

    def _before_lm(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        self._flow = None
        if self._call is None:
            return None
        embeds = kwargs["inputs_embeds"]
        self._started = mark(embeds.device)
        state = state_of(kwargs.get("past_key_values"))
        if self._encoded:
            reducing = Reducing(self, self._call, self._encoded, kwargs, self._prompt)
            changed = reducing.run()
            if changed is not None:
                self._flow = reducing.flow
                return args, {**kwargs, **changed}
        if state is None:
            return None
        return args, {**kwargs, **self._continue(kwargs)}

    def _continue(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a forward on a compressed cache that brings no new image."""
        embeds, cache = kwargs["inputs_embeds"], kwargs["past_key_values"]
        state = state_of(cache)
        assert state is not None
        batch, length = embeds.shape[:2]
        columns = torch.arange(length, device=embeds.device) + state.virtual
        flow = self.new_flow(kwargs, state.virtual, Slots(columns.expand(batch, length), None))
        self._flow = flow
        positions = kwargs.get("position_ids")
        if self.positions == "renumber":
            positions = flow.renumbered(0)
        elif positions is None:
            positions = columns.expand(batch, length)
        return {"position_ids": positions, "attention_mask": flow.first_mask()}

    def new_flow(self, kwargs: dict[str, Any], past: int, columns: Slots) -> Flow:
        """The layout of a forward whose chunk has the given virtual columns."""
        mask = two_dimensional(kwargs.get("attention_mask"))
        return Flow(
            batch=len(columns.index),
            past=past,
            state=state_of(kwargs.get("past_key_values")),
            columns=columns,
            virtual_width=kwargs["inputs_embeds"].shape[1],
            flash=check_attention(self.lm).startswith("flash"),
            cache=kwargs.get("past_key_values"),
            padding=None if mask is None else mask.to(columns.index.device, torch.bool),
            rotary=self._rotary if self.positions == "renumber" else None,
        )

    def _rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        embeddings: tuple[Tensor, Tensor] = self.lm.get_submodule("rotary_emb")(
            hidden, position_ids=positions
        )
        return embeddings

    def _before_layer(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        flow = self._flow
        if flow is None:
            return None
        given = hidden = args[0] if args else kwargs["hidden_states"]
        if number in flow.cuts:
            before = flow.layer_inputs(kwargs, hidden) or {}
            hidden = self._cut(number, hidden, {**kwargs, **before})
        if flow.starts_stage(number):
            flow.current = number
        changed = flow.layer_inputs(kwargs, hidden)
        if number + 1 in flow.cuts:
            flow.stash = hidden
        if changed is None and hidden is given:
            return None
        if args:
            return (hidden, *args[1:]), {**kwargs, **(changed or {})}
        return args, {**kwargs, **(changed or {}), "hidden_states": hidden}

    def _cut(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Score the surviving tokens of every image and keep the best of them."""
        flow, decoder = self._flow, self.planner.pipeline.decoder
        assert flow is not None
        assert decoder is not None
        with self.trace.timed("selection", hidden.device):
            context = CutContext(number, self.layers, flow, hidden, kwargs["position_embeddings"])
            kept = []
            for span in flow.spans:
                alive = len(span.slots)
                count = span.trace.plan.schedule.get(number, alive)
                if 0 < count < alive:
                    kept.append(top_k(decoder.score(View(context, span)), count))
                else:
                    kept.append(torch.arange(min(count, alive), device=hidden.device))
            return flow.cut(number, kept, hidden)

    def _after_lm(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        flow, self._flow = self._flow, None
        if self._call is None or output is None:
            return
        device = kwargs["inputs_embeds"].device
        first = not self.trace.prefilled
        self.trace.add("prefill" if first else "decode", self._started, mark(device))
        self.trace.prefilled = True
        self.trace.decode_steps += not first
        if flow is None:
            return
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in parts:
            if isinstance(cache, Cache):
                attach_state(cache, flow.next_state())


def _by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward by name; most callers name them all already."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}


def _carries_images(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("mm_encoder_outputs")) or any(
        name.startswith("pixel_values") and value is not None for name, value in kwargs.items()
    )
