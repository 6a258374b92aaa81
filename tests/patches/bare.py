"""What a bare model says, asked once for all laws that compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch

from vlmcompress.api import Compression
from vlmcompress.errors import VLMCompressError

Inputs = dict[str, torch.Tensor]


@torch.no_grad()
def last_logits(subject: Any, inputs: Inputs) -> torch.Tensor:
    """[B, V] of the last token of each prompt."""
    return subject.model(**inputs, position_ids=subject.positions(inputs)).logits[:, -1]


@dataclass(frozen=True, eq=False)
class Bare:
    """The answers of a model that is not compressed; ask for them before it is."""

    subject: Any
    inputs: Inputs

    @cached_property
    def logits(self) -> torch.Tensor:
        """[B, V] of the last token of each prompt."""
        self._check()
        return last_logits(self.subject, self.inputs)

    @cached_property
    def ids(self) -> torch.Tensor:
        """[B, L + 6] what it generates."""
        self._check()
        return self.subject.generate(self.inputs)

    def _check(self) -> None:
        with pytest.raises(VLMCompressError, match="not compressed"):
            Compression.of(self.subject.model)


_asked: dict[Any, Bare] = {}


def bare(subject: Any, inputs: Inputs) -> Bare:
    """The answers to `inputs` with the attention that is set; remembered for the whole process."""
    given = tuple((name, value.numpy().tobytes()) for name, value in sorted(inputs.items()))
    key = id(subject.model), subject.lm.config._attn_implementation, hash(given)
    if key not in _asked:
        _asked[key] = Bare(subject, inputs)
    return _asked[key]
