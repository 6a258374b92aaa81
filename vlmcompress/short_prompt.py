"""A prompt that is shortened once and for all, for a model that stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, SupportsFloat
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from vlmcompress.api import Compression
from vlmcompress.budget.budget import Budget
from vlmcompress.errors import VLMCompressError
from vlmcompress.installable import engine_for, warn_untested
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.call.handover import check_says_all, check_takes_embeddings, decoder_inputs
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.families.wrapped import taken_out
from vlmcompress.patches.hooks.compiled import plain
from vlmcompress.patches.signals.text_tower import LongText
from vlmcompress.report.report import Report
from vlmcompress.tuned import ProfileLike


class ShortPrompt(Mapping[str, Tensor]):
    """What `generate` takes in the place of prompts with pictures.

    `inputs_embeds` [B, L, D] in the model's dtype, `attention_mask` [B, L] int64, padded on the
    left, and `position_ids`, those of the whole prompt for what is left of it.
    """

    report: Report
    """What was kept, and what the encoder and the selection took."""

    def __init__(self, tensors: Mapping[str, Tensor], report: Report) -> None:
        self._tensors, self.report = dict(tensors), report

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = {name: list(value.shape) for name, value in self.items()}
        return f"ShortPrompt({shapes})\n{self.report}"


def shorten(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: str | Method | Sequence[Method] | None = None,
    budget: int | SupportsFloat | str | Budget | None = None,
    *,
    positions: Literal["keep", "renumber"] = "keep",
    order: Literal["raster", "method"] = "raster",
    processor: Any = None,
    text_tower: str | Path | tuple[nn.Module, Any] | LongText | None = None,
    max_memory: int | str | None = None,
    profile: ProfileLike | None = None,
    **options: Any,
) -> ShortPrompt:
    """Encode prompts and drop or merge their visual tokens; the model generates from what is left.

    Unlike inside `compress`, nothing is on the model while it generates, so that caches of fixed
    size and compiled models work. What it answers is what the compressed model would. `generate`
    returns new tokens only, as it does for embeddings.

        >>> short = vlmcompress.shorten(model, inputs, "divprune", "25%")
        >>> model.generate(**short, max_new_tokens=32, cache_implementation="static")

    The model may be compiled in place (`model.compile()`, `model.forward = torch.compile(...)`).
    Threads that use it meanwhile are left alone; those that shorten take turns.

    Args:
        model: as `compress` takes it, not compressed.
        inputs: what the model's processor made of one prompt or several.
        method: as `compress` takes it, one that acts before the decoder.
        budget: as `compress` takes it, and so the following.
        positions: see there.
        order: see there.
        processor: see there.
        text_tower: see there.
        max_memory: see there.
        profile: see there.
        **options: fields of the method.

    Returns:
        What `generate` and a forward take in the place of `inputs`, with its report.

    Raises:
        VLMCompressError: as `compress` and a call of the compressed model; the method goes on
            inside the decoder; or embeddings with a mask and positions do not say all that this
            decoder needs: features for several layers, sliding windows, images that attend to
            themselves. The model is left as it was.
    """
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise VLMCompressError(
            "shorten() takes what the model's processor gives, a mapping with input_ids, got "
            f"{type(inputs).__name__}"
        )
    bare = taken_out(model)
    family_of(bare)  # refuses what is no model
    with _turn(bare), plain(bare):
        engine = engine_for(
            bare,
            method,
            budget,
            options,
            positions=positions,
            order=order,
            processor=processor,
            text_tower=text_tower,
            max_memory=max_memory,
            profile=profile,
        )
        engine.shared.only = threading.get_ident()
        try:
            check_takes_embeddings(bare)
            check_says_all(engine._on)
            engine.install()
            warn_untested(engine, stacklevel=3)
            tensors = decoder_inputs(engine._on, inputs)
            return ShortPrompt(tensors, Compression(engine, processor).report())
        finally:
            engine.remove()


_TURNS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_FINDING = threading.Lock()


@contextmanager
def _turn(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread shortens a prompt of the same model."""
    with _FINDING:
        turn = _TURNS.setdefault(model, threading.RLock())
    with turn:
        yield
