"""What is known of features that were encoded long before the prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_KNOWN: Any = WeakIdKeyDictionary()
"""Tensor of features -> what is known of the call that gave it, and its number there.

No attribute of the output, which hooks of accelerate build anew on the way; none of the tensor,
which would be copied and saved along with it.
"""


def note(features: Any, known: object) -> None:
    """Let `known_of` give `known` for these features of a call while their tensors live."""
    for number, one in enumerate(_tensors(features)):
        _KNOWN[one] = known, number


def known_of(features: Any) -> Any:
    """What was noted of the call that gave all these tensors in this order, else None."""
    found = [_KNOWN.get(one) for one in _tensors(features)]
    known = found[0][0] if found and found[0] is not None else None
    for number, one in enumerate(found):
        if one is None or one[0] is not known or one[1] != number:
            return None
    return known


def _tensors(features: Any) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features
