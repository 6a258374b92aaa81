"""The attention mask of models that multiply what they give by it.

Retrievers close the vectors of padding by `vectors * mask`, with the mask of the prompt as it was.
That mask is taken from the model's arguments, handed to the base model as the model would have
done, and applied to the vectors of the tokens that are left.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmcompress.errors import UnsupportedCallError
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.hooks.arguments import by_name
from vlmcompress.patches.hooks.attachments import Attachments
from vlmcompress.patches.hooks.unsupported import two_dimensional

_MASK = "attention_mask"
_VECTORS = "embeddings"
"""What retrievers call their output."""


class OutputMask:
    """Hooks a model whose family has `masks_output`."""

    def __init__(self, installed: Installed) -> None:
        self._on = installed

    def hook(self, attached: Attachments) -> None:
        """Before the engine hooks the same modules: it must see the mask, and what it left."""
        attached.before(self._on.model, self._take)
        attached.before(self._on.base, self._hand_over)
        attached.after(self._on.lm, self._note)
        attached.change(self._on.model, self._apply)

    def _take(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        now = self._on.now
        if not now.inside:
            return None
        call = by_name(module, args, kwargs)
        if call.get("return_dict") is False:
            raise UnsupportedCallError("a compressed retriever needs return_dict=True")
        now.outer, now.output_mask = call, two_dimensional(call.get(_MASK))
        return (), {**call, _MASK: None}

    def _hand_over(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        mask = self._on.now.output_mask
        if mask is None:
            return None
        return (), {**by_name(module, args, kwargs), _MASK: mask}

    def _note(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Which slots of the last layer are tokens, where it has other ones than the prompt."""
        now = self._on.now
        if now.outer is not None and now.stages is not None:
            now.output_mask = now.stages.open()

    def _apply(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        now = self._on.now
        mask: Tensor | None = now.output_mask
        now.outer = now.output_mask = None
        if mask is None:
            return output
        vectors = output[_VECTORS]
        output[_VECTORS] = vectors * mask.to(vectors.device, vectors.dtype).unsqueeze(-1)
        return output
