"""What the neurons of an MLP give, remembered for decoder methods that look at them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.methods.contracts.decoder import InDecoder
from vlmcompress.patches.call.call_state import CallState
from vlmcompress.patches.hooks.attachments import Attachments


def watch(
    method: InDecoder | None,
    layers: Iterable[nn.Module],
    now: CallState,
    attached: Attachments,
) -> None:
    """Hook the MLP of every decoder layer; each remembers only where the next layer cuts.

    Args:
        method: nothing is hooked unless it watches neurons.
        layers: of the decoder.
        now: knows the stages of the running forward, which gets what is remembered.
        attached: to put the hooks on.

    Raises:
        UnsupportedModelError: a layer has several MLPs, as a mixture of experts has.
    """
    if method is None or not method.watches:
        return
    for number, layer in enumerate(layers):
        down = getattr(getattr(layer, "mlp", None), "down_proj", None)
        if not isinstance(down, nn.Module):
            raise UnsupportedModelError(
                f"{method.name} needs the neurons of one MLP in each decoder layer, and layer "
                f"{number} ({type(layer).__name__}) has a mixture of experts or none"
            )
        attached.before(down, functools.partial(_remember, now, number), kwargs=False)


def _remember(now: CallState, number: int, module: nn.Module, args: Any) -> None:
    stages = now.stages
    if stages is not None and number + 1 in stages.cuts:
        stages.fired = args[0]
