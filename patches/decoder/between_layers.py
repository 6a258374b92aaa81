"""Between the decoder's layers: tokens are dropped or enter, and arguments follow what is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.methods.contracts.decoder import DecoderMethod, DecoderReducer, LateEntry
from vlmcompress.ops.deferred_checks import collected
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.decoder.captured_rows import CapturedAttention
from vlmcompress.patches.decoder.cut_context import CutContext
from vlmcompress.patches.decoder.layer_attention import ComputedAttention
from vlmcompress.patches.decoder.merging import merged
from vlmcompress.patches.decoder.ranking import ranked
from vlmcompress.patches.hooks.arguments import device_of, hidden_of, named_after_first, with_hidden
from vlmcompress.patches.hooks.compiled import never_compiled
from vlmcompress.patches.sequence.deepstack import follow
from vlmcompress.patches.sequence.watched_attention import attention_of


class BetweenLayers:
    """What the engine hooks the decoder's layers with."""

    def __init__(self, installed: Installed) -> None:
        self._on = installed

    @never_compiled
    def before_layer(
        self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Hook of the layer `number`: other arguments than the model's own, where they differ."""
        stages = self._on.now.stages
        if stages is None or stages.leaves_layers_alone:
            return None
        if len(args) > 1:
            args, kwargs = args[:1], named_after_first(module, args, kwargs)
        given = hidden = hidden_of(args, kwargs)
        if number in stages.cuts:
            hidden = self._cut(number, hidden, kwargs)
        if stages.starts_stage(number):
            stages.start_stage(number)
        if number + 1 in stages.cuts:
            stages.entered = hidden
        changed = stages.arguments.of(number, kwargs, hidden)
        followed = stages.arguments.follow(kwargs)
        if stages.earlier.wants(number):
            if self._on.family.no_scores is None:
                stages.earlier.remember(number, hidden, stages.arguments.embeddings)
            else:
                stages.earlier.calls[number] = hidden, {**followed, **(changed or {})}
        if changed is None and hidden is given and followed is kwargs:
            return None
        return with_hidden(args, {**followed, **(changed or {})}, hidden)

    def add_features(
        self, original: Callable[..., Any], hidden: Tensor, mask: Tensor, features: Tensor
    ) -> Any:
        """DeepStack between layers that may have fewer tokens than the first."""
        stages = self._on.now.stages
        cut = None if stages is None else stages.last_cut(stages.current)
        if stages is not None and cut is not None:
            mask, (features,) = follow(mask, [features], cut, stages.placeholders)
        return original(hidden, mask, features)

    def _cut(self, number: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """Score the surviving tokens of every image and keep the best of them, or let tokens in.

        `given` are the model's own arguments of the layer, by name.
        """
        on, stages, decoder = self._on, self._on.now.stages, self._on.planner.pipeline.decoder
        assert stages is not None
        assert decoder is not None
        _check_own_choice(on.layers, number)
        if isinstance(decoder, LateEntry):
            return stages.late.before(number, hidden)
        own = stages.arguments.of(number, given, hidden)  # notes rotary embeddings, too
        hidden = hidden.to(device_of(on.layers[number], hidden.device))  # accelerate does so later
        context: CutContext = ComputedAttention(number, on.layers, stages, hidden)
        if on.family.no_scores is not None:
            arguments = {**stages.arguments.follow(given), **(own or {})}
            context = CapturedAttention(number, on.layers, stages, hidden, on.now, arguments)
        # Nothing waits for the device in the middle of a prefill.
        with on.trace.timed("selection", hidden.device), collected(stages.checks):
            if isinstance(decoder, DecoderReducer):
                return stages.cut(number, *merged(context, decoder))
            assert isinstance(decoder, DecoderMethod)
            return stages.cut(number, ranked(context, decoder), hidden)


def _check_own_choice(layers: nn.ModuleList, number: int) -> None:
    """Refuse a cut before a layer that attends to what an indexer of an earlier layer picked.

    What that layer hands on are places among tokens some of which are gone then.

    Raises:
        UnsupportedCallError: it is one; says before which layers a cut is possible.
    """
    if _picks(layers[number]):
        return
    possible = ", ".join(str(n) for n, layer in enumerate(layers) if n and _picks(layer))
    raise UnsupportedCallError(
        f"decoder layer {number} attends to what an earlier layer picked, so nothing can be "
        f"dropped right before it: cut before one of the layers {possible or '(none)'}"
    )


def _picks(layer: nn.Module) -> bool:
    """Whether a layer attends to all tokens, or to what an indexer of its own picks."""
    return not getattr(attention_of(layer), "skip_topk", False)
