"""Hooks that shorten the visual sequence of one model instance, and their exact removal.

Nothing of transformers is replaced: PyTorch hooks on the base model, the language model and its
layers, and instance attributes (with `functools.wraps`) for `generate` and the feature calls, which
hooks cannot reach. No family and no method is named here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmcompress.budget.clock import mark
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import CompositionError
from vlmcompress.ops.deferred_checks import collected
from vlmcompress.patches.call.call_state import Current, Shared
from vlmcompress.patches.cost.budget_solver import Solver
from vlmcompress.patches.decoder.continuation import go_on, masking
from vlmcompress.patches.decoder.layer_attention import CutContext, ranked
from vlmcompress.patches.decoder.mlp_activations import watch
from vlmcompress.patches.decoder.prefill import Reducing
from vlmcompress.patches.encoder.feature_call import check_handed_over, encode, upstream_of
from vlmcompress.patches.families.family import Family
from vlmcompress.patches.hooks.arguments import by_name, carries_images
from vlmcompress.patches.hooks.attachments import Attachments, check_compiled
from vlmcompress.patches.hooks.unsupported import (
    check_forward,
    check_generate,
    check_kinds,
    check_modalities,
)
from vlmcompress.patches.sequence.attention_masks import FULL, SLIDING, LayerKinds, layer_kinds
from vlmcompress.patches.sequence.cache_state import attach_state, state_of
from vlmcompress.patches.sequence.call_trace import Trace
from vlmcompress.patches.sequence.deepstack import follow
from vlmcompress.patches.signals.signals import Signals


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
        self.now, self._shared = Current(), Shared()  # first, for it refuses to be pickled
        self.model, self.family, self.planner, self.signals = model, family, planner, signals
        self.positions, self.order = positions, order
        self.collected = sorted(signals.collected)
        self.base = family.base(model)
        self.lm = family.language_model(self.base)
        self.layers = family.layers(self.base)
        self.upstream = upstream_of(model, family, planner)
        by_cost = planner.budget is not None and planner.budget.is_cost
        self.solver = Solver(model, family, planner) if by_cost else None
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
        kinds = self.kinds  # refuses attention that it does not know
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
        if self.solver is not None and self.solver.by_time:
            attached.after(self.model, self._after_model)
        attached.before(self.base, self._before_base)
        attached.after(self.base, self._after_base)
        attached.before(self.lm, self._before_lm)
        attached.after(self.lm, self._after_lm)
        attached.take_over(self.signals.hooks())
        if self.upstream is not None:
            self.upstream.hook(attached)
        attached.take_over(watch(self.planner.pipeline.decoder, self.layers, self.now))
        self._layers_hooked = False
        kinds = self.kinds
        if self.planner.pipeline.decoder or self.positions == "renumber" or kinds.own:
            self._hook_layers()

    def _hook_layers(self) -> None:
        """Hook every decoder layer, where the model's own arguments are wrong for some forward.

        Raises:
            UnsupportedModelError: a layer was compiled since, and would ignore its hook.
        """
        if self._layers_hooked:
            return
        check_compiled(self.lm)
        for number, layer in enumerate(self.layers):
            self._attached.before(layer, functools.partial(self._before_layer, number))
        self._layers_hooked = True

    def remove(self) -> None:
        """Leave the model as it was before `install`; harmless when called twice.

        Waits for every `generate` of another thread: it could not go on without the hooks.
        """
        self._shared.wait_for_others()
        self._attached.remove()
        self.now.end_forward()
        # A handle that is kept for its report keeps no weights alive.
        for name in ("model", "base", "lm", "layers", "signals", "upstream", "solver"):
            vars(self).pop(name, None)

    @property
    def trace(self) -> Trace:
        """Of the call that this thread is in, else of the last one that any thread began."""
        return self.now.trace or self._shared.trace

    def _begin(self) -> None:
        self.now.trace = self._shared.trace = Trace()

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_generate(self.model, kwargs)
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        self._begin()
        # Queries for scores come from the prompt, whatever else a forward carries along
        # (candidates of assisted decoding, answers so far without a cache).
        self.now.prompt = ids.shape[1] if isinstance(ids, Tensor) else None
        self.now.generating, self.now.given = True, {**kwargs, "input_ids": ids}
        # Whose loop it is: transformers' own appends nothing but ones to the attention mask.
        self.now.own_loop = kwargs.get("custom_generate") is not None
        try:
            with self._shared.entered():
                return original(*args, **kwargs)
        finally:
            self.now.end_generate()

    def _encode(
        self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        output, encoded = encode(self, modality, original, *args, **kwargs)
        if encoded is not None:
            self.now.encoded[modality] = encoded
        return output

    def _before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        named = by_name(module, args, kwargs)
        check_forward(module, named)
        if not self.now.generating and carries_images(named):
            self._begin()

    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trace, solved = self.trace, self.trace.solved
        if solved is not None and output is not None and not trace.decode_steps:
            trace.add("head", self.now.ended, mark(output.logits.device))

    def _before_base(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        call = self.now.call = by_name(module, args, kwargs)
        check_modalities(self.family.name, self.family.feature_calls, call)
        self.now.encoded = self.signals.handed_over(call)
        check_handed_over(self, self.now.encoded)
        state = state_of(call.get("past_key_values"))
        if state is None or not self.family.masks_in_base:
            return None
        # What the base model knows of the earlier turns is of another length than the cache.
        return (), {**call, **self.family.unmasked(call, state)}

    def _after_base(self, module: nn.Module, *_: Any) -> None:
        self.now.end_forward()

    def _before_lm(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        self.now.begin_decoder()
        if self.now.call is None:
            return None
        self.now.started = mark(kwargs["inputs_embeds"].device)
        if self.family.masks_in_base:
            self.now.given_masks = kwargs.get("attention_mask")
            kwargs = {**kwargs, "attention_mask": self.now.call.get("attention_mask")}
        state = state_of(kwargs.get("past_key_values"))
        if state is None and not self.now.encoded:
            return None
        kwargs = {**kwargs, "attention_mask": masking(self.now, kwargs.get("attention_mask"))}
        changed = self._reduce(kwargs) if self.now.encoded else None
        if changed is None:
            if state is None:
                return None
            changed = go_on(self, kwargs, state)
        flow = self.now.flow
        if flow is not None and not flow.leaves_layers_alone:
            self._hook_layers()
        return args, {**kwargs, **changed}

    def _reduce(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What changes for a decoder that is given new images; None where they stay whole."""
        assert self.now.call is not None
        reducing = Reducing(self, self.now.call, self.now.encoded, kwargs, self.now.prompt)
        changed = reducing.run()
        if changed is not None:
            self.now.flow = reducing.flow
        return changed

    @property
    def kinds(self) -> LayerKinds:
        """Of the decoder's layers; users may change the attention implementation at any time."""
        config: Any = self.lm.config
        attention = config._attn_implementation
        if attention not in self._kinds:
            found = layer_kinds(self.lm, len(self.layers), self.family.masks_in_base)
            self._kinds[attention] = found
        return self._kinds[attention]

    def _before_layer(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        flow = self.now.flow
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
        flow, decoder = self.now.flow, self.planner.pipeline.decoder
        assert flow is not None
        assert decoder is not None
        context = CutContext(number, self.layers, flow, hidden)
        # Nothing waits for the device in the middle of a prefill.
        with self.trace.timed("selection", hidden.device), collected(flow.checks):
            return flow.cut(number, ranked(context, decoder), hidden)

    def _add_features(
        self, original: Callable[..., Any], hidden: Tensor, mask: Tensor, features: Tensor
    ) -> Any:
        """DeepStack between layers that may have fewer tokens than the first."""
        cut = None if self.now.flow is None else self.now.flow.last_cut(self.now.flow.current)
        if cut is not None:
            mask, (features,) = follow(mask, [features], cut)
        return original(hidden, mask, features)

    def _after_lm(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        now = self.now
        flow, now.flow = now.flow, None
        if now.call is None or output is None:
            return
        if flow is not None:
            flow.checks.settle()
        trace = self.trace
        first, device = not trace.prefilled, kwargs["inputs_embeds"].device
        now.ended = mark(device)
        trace.add("prefill" if first else "decode", now.started, now.ended)
        trace.prefilled = True
        trace.decode_steps += not first
        if first and self.solver is not None and trace.solved is not None:
            self.solver.measure(trace.solved, trace)
        state = now.next_state if flow is None else flow.next_state()
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in parts:
            if isinstance(cache, Cache) and state is not None:
                attach_state(cache, state)


MARK = "_vlmcompress_engine"


def engine_of(model: nn.Module) -> Engine | None:
    """The engine that is installed on `model`."""
    found: Engine | None = vars(model).get(MARK)
    return found
