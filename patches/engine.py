"""Hooks that shorten the visual sequence of one model instance, and their exact removal.

Nothing of transformers is replaced: PyTorch hooks on the base model, the language model and its
layers, and instance attributes (with `functools.wraps`) for `generate` and the feature calls, which
hooks cannot reach. No family and no method is named here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmcompress.budget import Planner
from vlmcompress.errors import CompositionError
from vlmcompress.patches.activations import watch
from vlmcompress.patches.attach import MARK, Attachments, engine_of
from vlmcompress.patches.calls import by_name, carries_images
from vlmcompress.patches.deepstack import follow
from vlmcompress.patches.family import Family
from vlmcompress.patches.flow import Flow
from vlmcompress.patches.guard import (
    check_forward,
    check_generate,
    check_kinds,
    check_modalities,
    two_dimensional,
)
from vlmcompress.patches.masks import FULL, SLIDING, LayerKinds, layer_kinds
from vlmcompress.patches.reduce import Reducing
from vlmcompress.patches.signals import Signals
from vlmcompress.patches.state import Slots, attach_state, state_of
from vlmcompress.patches.threads import Current, Shared
from vlmcompress.patches.trace import Trace, mark
from vlmcompress.patches.upstream import check_handed_over, encode, upstream_of
from vlmcompress.patches.view import CutContext, ranked


class Engine:
    """Installs a method on one model instance."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        planner: Planner,
        signals: Signals,
        positions: str,
        order: str,
    ) -> None:
        self._now, self._shared = Current(), Shared()  # first, for it refuses to be pickled
        self.model, self.family, self.planner, self.signals = model, family, planner, signals
        self.positions, self.order = positions, order
        self.collected = sorted(signals.collected)
        self.base = family.base(model)
        self.lm = family.language_model(self.base)
        self.layers = family.layers(self.base)
        self.upstream = upstream_of(model, family, planner)
        self._attached = Attachments()
        self._kinds: dict[str, LayerKinds] = {}

    def install(self) -> None:
        """Hook the model.

        Raises:
            CompositionError: the model is compressed already.
            UnsupportedModelError: a seam is missing or the attention implementation is unknown.
        """
        if engine_of(self.model) is not None:
            raise CompositionError(
                f"this {type(self.model).__name__} is compressed already: "
                "call .remove() on the first Compression before compressing it again "
                "(Compression.of(model) finds it)"
            )
        kinds = self.kinds
        if self.planner.pipeline.decoder is not None:
            check_kinds(kinds.names, (FULL, SLIDING) if kinds.own else (FULL,))
        try:
            self._hook()
        except BaseException:
            self.remove()
            raise

    def _hook(self) -> None:
        attached = self._attached
        attached.set(self.model, MARK, self)
        attached.wrap(self.model, "generate", self._generate)
        for modality, name in self.family.feature_calls.items():
            attached.wrap(self.base, name, functools.partial(self._encode, modality))
        if self.family.deepstack:
            attached.wrap(self.lm, self.family.deepstack, self._add_features)
        attached.before(self.model, self._before_model)
        attached.before(self.base, self._before_base)
        attached.after(self.base, self._after_base)
        attached.before(self.lm, self._before_lm)
        attached.after(self.lm, self._after_lm)
        attached.take_over(self.signals.hooks())
        if self.upstream is not None:
            self.upstream.hook(attached)
        attached.take_over(watch(self.planner.pipeline.decoder, self.layers, self._now))
        for number, layer in enumerate(self.layers):
            attached.before(layer, functools.partial(self._before_layer, number))

    def remove(self) -> None:
        """Leave the model as it was before `install`; harmless when called twice.

        Waits for every `generate` of another thread: it could not go on without the hooks.
        """
        self._shared.wait_for_others()
        self._attached.remove()
        self._now.end_forward()
        # A handle that is kept for its report keeps no weights alive.
        for name in ("model", "base", "lm", "layers", "signals", "upstream"):
            vars(self).pop(name, None)

    @property
    def trace(self) -> Trace:
        """Of the call that this thread is in, else of the last one that any thread began."""
        return self._now.trace or self._shared.trace

    def _begin(self) -> None:
        self._now.trace = self._shared.trace = Trace()

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_generate(self.model, kwargs)
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        self._begin()
        # Queries for scores come from the prompt, whatever else a forward carries along
        # (candidates of assisted decoding, answers so far without a cache).
        self._now.prompt = ids.shape[1] if isinstance(ids, Tensor) else None
        self._now.generating = True
        try:
            with self._shared.entered():
                return original(*args, **kwargs)
        finally:
            self._now.generating, self._now.prompt = False, None
            self._now.end_forward()

    def _encode(
        self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        output, encoded = encode(self, modality, original, *args, **kwargs)
        if encoded is not None:
            self._now.encoded[modality] = encoded
        return output

    def _before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        named = by_name(module, args, kwargs)
        check_forward(module, named)
        if not self._now.generating and carries_images(named):
            self._begin()

    def _before_base(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        call = self._now.call = by_name(module, args, kwargs)
        check_modalities(self.family.name, self.family.feature_calls, call)
        self._now.encoded = self.signals.handed_over(call)
        check_handed_over(self, self._now.encoded)
        state = state_of(call.get("past_key_values"))
        if state is None or not self.family.masks_in_base:
            return None
        # What the base model knows of the earlier turns is of another length than the cache.
        return (), {**call, **self.family.unmasked(call, state)}

    def _after_base(self, module: nn.Module, *_: Any) -> None:
        self._now.end_forward()

    def _before_lm(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        self._now.flow = None
        if self._now.call is None:
            return None
        self._now.started = mark(kwargs["inputs_embeds"].device)
        if self.family.masks_in_base:
            self._now.given_masks = kwargs.get("attention_mask")
            kwargs = {**kwargs, "attention_mask": self._now.call.get("attention_mask")}
        state = state_of(kwargs.get("past_key_values"))
        if self._now.encoded:
            reducing = Reducing(self, self._now.call, self._now.encoded, kwargs, self._now.prompt)
            changed = reducing.run()
            if changed is not None:
                self._now.flow = reducing.flow
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
        self._now.flow = flow
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
            kinds=self.kinds,
            given_masks=self._now.given_masks,
            cache=kwargs.get("past_key_values"),
            padding=None if mask is None else mask.to(columns.index.device, torch.bool),
            rotary=self._rotary if self.positions == "renumber" else None,
        )

    @property
    def kinds(self) -> LayerKinds:
        """Of the decoder's layers; users may change the attention implementation at any time."""
        config: Any = self.lm.config
        attention = config._attn_implementation
        if attention not in self._kinds:
            found = layer_kinds(self.lm, len(self.layers), self.family.masks_in_base)
            self._kinds[attention] = found
        return self._kinds[attention]

    def _rotary(self, hidden: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        module = self.lm.get_submodule("rotary_emb")
        kinds = (kind,) if len(set(self.kinds.names)) > 1 else ()
        embeddings: tuple[Tensor, Tensor] = module(hidden, positions, *kinds)
        return embeddings

    def _before_layer(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        flow = self._now.flow
        if flow is None or flow.leaves_layers_alone:
            return None
        given = hidden = args[0] if args else kwargs["hidden_states"]
        if number in flow.cuts:
            flow.layer_inputs(number, kwargs, hidden)
            hidden = self._cut(number, hidden)
        if flow.starts_stage(number):
            flow.start_stage(number)
        changed = flow.layer_inputs(number, kwargs, hidden)
        if number + 1 in flow.cuts:
            flow.stash = hidden
        if changed is None and hidden is given:
            return None
        if args:
            return (hidden, *args[1:]), {**kwargs, **(changed or {})}
        return args, {**kwargs, **(changed or {}), "hidden_states": hidden}

    def _cut(self, number: int, hidden: Tensor) -> Tensor:
        """Score the surviving tokens of every image and keep the best of them."""
        flow, decoder = self._now.flow, self.planner.pipeline.decoder
        assert flow is not None
        assert decoder is not None
        with self.trace.timed("selection", hidden.device):
            return flow.cut(
                number, ranked(CutContext(number, self.layers, flow, hidden), decoder), hidden
            )

    def _add_features(
        self, original: Callable[..., Any], hidden: Tensor, mask: Tensor, features: Tensor
    ) -> Any:
        """DeepStack between layers that may have fewer tokens than the first."""
        cut = None if self._now.flow is None else self._now.flow.last_cut(self._now.flow.current)
        if cut is not None:
            mask, (features,) = follow(mask, [features], cut)
        return original(hidden, mask, features)

    def _after_lm(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        flow, self._now.flow = self._now.flow, None
        if self._now.call is None or output is None:
            return
        device = kwargs["inputs_embeds"].device
        first = not self.trace.prefilled
        self.trace.add("prefill" if first else "decode", self._now.started, mark(device))
        self.trace.prefilled = True
        self.trace.decode_steps += not first
        if flow is None:
            return
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in parts:
            if isinstance(cache, Cache):
                attach_state(cache, flow.next_state())
