"""The methods that are asked, and how exact a dtype is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmcompress.errors import VLMCompressError
from vlmcompress.laws.law import first_line
from vlmcompress.laws.subject import Subject
from vlmcompress.methods.contracts.method import Method, Selector
from vlmcompress.tokens import VisualTokens

TOLERANCES = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Of logits, as a share of the largest."""
_DECODER = ("fastv", "fastv(k=1)", "pyramiddrop")
"""The first that the model allows is asked."""


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two ways to compute the same logits may be apart."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])


def noticed_in(dtype: torch.dtype) -> float:
    """From where on logits differ: in half precision less than is tolerated."""
    precise = dtype in (torch.float32, torch.float64)
    return tolerance_of(dtype) if precise else torch.finfo(dtype).eps


@dataclass(frozen=True)
class EverySecond(Selector):
    """Looks at no content, so that rounding cannot change what it keeps."""

    name: ClassVar[str] = "every 2nd"
    summary: ClassVar[str] = "keeps every second token"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """[count] int64, ascending."""
        places = torch.arange(count, device=tokens.features.device)
        return places * len(tokens.grid) // count


@dataclass(frozen=True)
class Setting:
    """A method at a budget."""

    method: str | Method
    budget: str | None = None

    @property
    def name(self) -> str:
        """For the table."""
        name = self.method if isinstance(self.method, str) else self.method.name
        return name if self.budget is None else f"{name} {self.budget}"


def decoder_setting(subject: Subject) -> tuple[Setting | None, str]:
    """A method between decoder layers that the model allows, or why there is none."""
    reason = "the family has no decoder stage"
    if "decoder" not in subject.parts.family.stages:
        return None, reason
    for spec in _DECODER:
        try:
            with subject.compressed(spec):
                return Setting(spec), ""
        except VLMCompressError as error:
            reason = first_line(error)
    return None, reason
