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


def note(output: Any, known: object) -> None:
    """Let `known_of` give `known` for this output of a feature call while its tensors live."""
    for number, features in enumerate(_tensors(output)):
        _KNOWN[features] = known, number


def known_of(output: Any) -> Any:
    """What was noted of the call that gave all tensors of an output in this order, else None."""
    found = [_KNOWN.get(features) for features in _tensors(output)]
    known = found[0][0] if found and found[0] is not None else None
    for number, one in enumerate(found):
        if one is None or one[0] is not known or one[1] != number:
            return None
    return known


def _tensors(output: Any) -> Sequence[Tensor]:
    features = output.pooler_output
    return [features] if isinstance(features, Tensor) else features
