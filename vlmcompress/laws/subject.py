"""A model with prompts for it, as the laws ask it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlmcompress.api import Compression, compress
from vlmcompress.errors import UntestedModelWarning
from vlmcompress.laws.picture_tokens import PictureTokens
from vlmcompress.methods.contracts.method import Method
from vlmcompress.patches.families.parts import ModelParts

Inputs = Mapping[str, Any]
_STEPS = 4
"""Tokens that are generated."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A bare model in evaluation mode, and one picture or clip for each prompt."""

    parts: ModelParts
    alone: Sequence[Inputs]
    """Each prompt by itself."""
    both: Inputs | None
    """All in one batch, padded on the left; None where they cannot be in one."""
    no_batch: str | None = None
    """Why they cannot."""
    grey: Inputs | None = None
    """The first prompt with a grey picture ..."""
    corner: Inputs | None = None
    """... and with one that has something in its upper right quarter; see `places`."""
    special: Sequence[int] = field(default=())
    """Tokens that must not be generated, as they mean something in a prompt."""

    @property
    def model(self) -> Any:
        """As users hold it."""
        return self.parts.model

    @property
    def single(self) -> Inputs:
        """The first prompt."""
        return self.alone[0]

    @cached_property
    def bare(self) -> Tensor:
        """[1, L, V] logits of the bare model for `single`."""
        return self.logits(self.single)

    @cached_property
    def bare_both(self) -> Tensor:
        """[B, L, V] logits of the bare model for `both`."""
        assert self.both is not None
        return self.logits(self.both)

    @cached_property
    def tokens(self) -> PictureTokens:
        """Where the picture is in `single`."""
        return PictureTokens.of(self.parts, self.single)

    @cached_property
    def tokens_of_both(self) -> PictureTokens:
        """Where the pictures are in `both`."""
        assert self.both is not None
        return PictureTokens.of(self.parts, self.both)

    @contextmanager
    def compressed(self, method: str | Method, budget: str | None = None) -> Iterator[Compression]:
        """While the model is compressed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntestedModelWarning)
            compression = compress(self.model, method, budget)
        with compression:
            yield compression

    @torch.no_grad()
    def logits(self, inputs: Inputs, **options: Any) -> Tensor:
        """[B, L, V] of a forward."""
        found: Tensor = self.model(**inputs, **options).logits
        return found

    @torch.no_grad()
    def generate(self, inputs: Inputs, use_cache: bool = True) -> list[tuple[Tensor, Tensor]]:
        """Per step the logits [B, V] and the tokens [B] that followed."""
        vocabulary = self.bare.shape[-1]
        suppressed = {*self.special, *self.tokens.ids}
        output = self.model.generate(
            **inputs,
            min_new_tokens=_STEPS,
            max_new_tokens=_STEPS,
            do_sample=False,
            num_beams=1,
            suppress_tokens=sorted(token for token in suppressed if 0 <= token < vocabulary),
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps = len(output.logits)
        return list(zip(output.logits, output.sequences[:, -steps:].unbind(1), strict=True))
