"""Hooks that shorten the visual sequence of one model instance, and their exact removal.

Nothing of transformers is replaced: PyTorch hooks on the base model, the language model and its
layers, and instance attributes (with `functools.wraps`) for what hooks cannot reach: `generate`,
feature calls, the end of an interrupted forward. No family and no method is named here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vlmcompress.budget.clock import mark
from vlmcompress.errors import CompositionError
from vlmcompress.patches.call.entrance import Entrance
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.call.output_mask import OutputMask
from vlmcompress.patches.decoder.between_layers import BetweenLayers
from vlmcompress.patches.decoder.captured_attention import capture
from vlmcompress.patches.decoder.continuation import go_on, looked_at
from vlmcompress.patches.decoder.mlp_activations import watch
from vlmcompress.patches.decoder.prefill import Prefill
from vlmcompress.patches.encoder.feature_call import FeatureCalls
from vlmcompress.patches.hooks.arguments import (
    by_name,
    cache_of,
    caches_in,
    carries_images,
)
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.compiled import check_compiled, never_compiled
from vlmcompress.patches.hooks.unsupported import check_forward, check_generate, check_modalities
from vlmcompress.patches.sequence.cache_state import attach_state, open_for_more, state_of
from vlmcompress.patches.sequence.call_trace import Trace
from vlmcompress.patches.sequence.host_chunk import HostChunk
from vlmcompress.patches.sequence.late_entry import check_late_entry


class Engine:
    """Installs a method on one model instance."""

    installed: Installed | None
    """None once it was removed: a handle that is kept for its report keeps no weights alive."""

    def __init__(self, installed: Installed) -> None:
        self.now, self.shared = installed.now, installed.shared  # refuse to be pickled: first
        self.installed = installed
        self.planner, self.positions = installed.planner, installed.positions
        self.order = installed.order
        self.collected = sorted(installed.signals.collected)
        self.notes = installed.signals.notes
        self._features: FeatureCalls | None = FeatureCalls(installed)
        self._between: BetweenLayers | None = BetweenLayers(installed)
        self.dropped_before = self._features.dropped_before
        self._attached = Attachments()
        self._layers_hooked = False

    @property
    def _on(self) -> Installed:
        """For hooks, which run only while something is installed."""
        assert self.installed is not None
        return self.installed

    def install(self) -> None:
        """Hook the model; `remove` undoes what was done so far, whatever is raised.

        Raises:
            CompositionError: the model is compressed already.
            UnsupportedModelError: a seam is missing, the attention implementation is unknown, or
                the method lets tokens in late where the family cannot take it.
        """
        kinds = self._on.kinds  # refuses attention that it does not know
        if self.planner.pipeline.decoder is not None:
            kinds.check_cuts()
        if self.planner.pipeline.enters_late:
            name, family = self.planner.pipeline.name, self._on.family
            check_late_entry(name, family.name, bool(family.deepstack), self.positions)
        model = self._on.model
        with _MARKING:
            if engine_of(model) is not None:
                raise CompositionError(
                    f"this {type(model).__name__} is compressed already: "
                    "call .remove() on the first Compression before compressing it again "
                    "(Compression.of(model) finds it)"
                )
            self._attached.set(model, MARK, self)
        with self.shared.shut():
            self._hook()
            self.shared.open = True

    def _hook(self) -> None:
        attached, on = self._attached, self._on
        assert self._features is not None
        assert self._between is not None
        entrance = Entrance(on)
        entrance.hook(attached)
        if hasattr(on.model, "generate"):  # what embeds writes nothing
            entrance.wrap(attached, on.model, "generate", self._generate)
        for owner, name, call in self._features.calls():
            entrance.wrap(attached, owner, name, call)
        entrance.note_earlier()
        if on.family.deepstack:
            attached.wrap(on.lm, on.family.deepstack, self._between.add_features)

        if on.family.masks_output:
            OutputMask(on).hook(attached)
        attached.before(on.model, self._before_model)
        if on.solver is not None and on.solver.by_time:
            attached.after(on.model, self._after_model)
        attached.before(on.base, self._before_base)
        attached.after(on.base, self._after_base)
        attached.before(on.lm, self._before_lm)
        attached.after(on.lm, self._after_lm)
        on.signals.hook(attached)
        self._features.hook(attached)  # behind the signals, which see what a layer was given
        if on.planner.pipeline.decoder and on.family.no_scores is not None:
            capture(attached, on.layers, on.now)
        watch(on.planner.pipeline.decoder, on.layers, on.now, attached)
        if on.planner.pipeline.decoder or on.positions == "renumber" or on.kinds.masks_made_here:
            self._hook_layers()

    def _hook_layers(self) -> None:
        """Hook every decoder layer, where the model's own arguments are wrong for some forward.

        Raises:
            UnsupportedModelError: a layer was compiled since, and would ignore its hook.
        """
        with self.shared.hooking:
            if self._layers_hooked:
                return
            check_compiled(self._on.lm)
            assert self._between is not None
            hook = self._between.before_layer
            for number, layer in enumerate(self._on.layers):
                self._attached.before(layer, functools.partial(hook, number))
            self._layers_hooked = True

    def remove(self) -> None:
        """Leave the model as it was before `install`; harmless when called twice.

        Waits for every call of another thread that is running: it could not go on without the
        hooks. A call that begins meanwhile waits, and then finds the bare model.
        """
        with self.shared.shut():
            try:
                self._take_off()
            except BaseException:  # an interrupt: half of the hooks would be worse than any
                self._take_off()
                raise

    def _take_off(self) -> None:
        self.shared.open = False
        self._attached.remove()
        self.now.clear()
        self.installed = self._features = self._between = None

    @property
    def trace(self) -> Trace:
        """Of the last call that this thread began, else of the last one that any thread did."""
        return self.now.trace or self.shared.trace

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_generate(self._on.model, kwargs)
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        self._on.begin()
        # Queries for scores come from the prompt, whatever else a forward carries along
        # (candidates of assisted decoding, answers so far without a cache).
        self.now.prompt = ids.shape[1] if isinstance(ids, Tensor) else None
        self.now.generating, self.now.given = True, {**kwargs, "input_ids": ids}
        # Whose loop it is: transformers' own appends nothing but ones to the attention mask.
        self.now.own_loop = kwargs.get("custom_generate") is not None
        try:
            return original(*args, **kwargs)
        finally:
            self.now.end_generate()

    @never_compiled
    def _before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not self.now.inside:
            return
        named = by_name(module, args, kwargs)
        check_forward(module, named)
        if not self.now.generating and carries_images(named):
            self._on.begin()

    @never_compiled
    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trace, solved = self.trace, self.trace.solved
        if self.now.inside and solved is not None and output is not None and not trace.decode_steps:
            trace.add("head", self.now.ended, mark(output.logits.device))

    @never_compiled
    def _before_base(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if not self.now.inside:
            return None
        call = self.now.call = by_name(module, args, kwargs)
        on, features = self._on, self._features
        assert features is not None
        check_modalities(on.family.name, on.family.feature_calls, call)
        self.now.encoded = on.signals.handed_over(call, self.now.noted)
        if call.get("input_ids") is None and self.now.outer is not None:
            # The model has put features in the place of placeholders by itself.
            self.now.call = {**call, "input_ids": self.now.outer.get("input_ids")}
            self.now.encoded = dict(self.now.noted)
        features.check(self.now.encoded)
        state = state_of(cache_of(call))
        if state is None or not on.family.masks_in_base:
            return None
        # What the base model knows of the earlier turns is of another length than the cache.
        return (), {**call, **on.family.unmasked(call, state)}

    @never_compiled
    def _after_base(self, module: nn.Module, *_: Any) -> None:
        self.now.end_forward()

    @never_compiled
    def _before_lm(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        self.now.begin_decoder()
        if self.now.call is None:
            return None
        self.now.started = mark(kwargs["inputs_embeds"].device)
        if self._on.family.masks_in_base:
            self.now.given_masks = kwargs.get("attention_mask")
            kwargs = {**kwargs, "attention_mask": self.now.call.get("attention_mask")}
        state = state_of(cache_of(kwargs))
        if state is None and not self.now.encoded:
            return None
        open_for_more(cache_of(kwargs))
        kwargs, chunk = looked_at(self.now, kwargs)
        changed = None if chunk is None else self._prefill(kwargs, chunk)
        if changed is None:
            if state is None:
                return None
            changed = go_on(self._on, kwargs, state)
        stages = self.now.stages
        if stages is not None and not stages.leaves_layers_alone:
            self._hook_layers()
        return args, {**kwargs, **changed}

    def _prefill(self, kwargs: dict[str, Any], chunk: HostChunk) -> dict[str, Any] | None:
        """What changes for a decoder that is given new images; None where they stay whole."""
        prefill = Prefill(self._on, chunk, self.now.encoded, kwargs, self.now.prompt)
        changed = prefill.run()
        if changed is not None:
            self.now.stages = prefill.stages
        return changed

    @never_compiled
    def _after_lm(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        now = self.now
        stages, now.stages = now.stages, None
        if now.call is None or output is None:
            return
        if stages is not None:
            stages.checks.settle()
        trace = self.trace
        first, device = not trace.prefilled, kwargs["inputs_embeds"].device
        now.ended = mark(device)
        trace.add("prefill" if first else "decode", now.started, now.ended)
        trace.prefilled = True
        trace.decode_steps += not first
        solver = self._on.solver
        if first and solver is not None and trace.solved is not None:
            solver.measure(trace.solved, trace)
        state = now.next_state if stages is None else stages.next_state()
        if state is not None:
            for cache in caches_in(output):
                attach_state(cache, state)


MARK = "_vlmcompress_engine"
_MARKING = threading.Lock()


def engine_of(model: nn.Module) -> Engine | None:
    """The engine that is installed on `model`."""
    found: Engine | None = vars(model).get(MARK)
    return found
