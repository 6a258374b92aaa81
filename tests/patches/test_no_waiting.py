"""Between the first decoder layer and the last nothing waits for the device.

Only a GPU would really wait, so the operations that make one wait are watched for.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from shown import told
from torch.utils._python_dispatch import TorchDispatchMode

from vlmcompress.api import compress
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.methods.registry import METHODS
from vlmcompress.ops import propagation

WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "repeat_interleave",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
BY_COUNT = sorted(
    name
    for name in METHODS.names()
    if issubclass(METHODS.get(name), DecoderMethod) and not METHODS.get(name).adaptive
)


class Watching(TorchDispatchMode):
    """Notes every operation that reads a value or makes a size out of values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        masks = name in ("index", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or name in WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits(subject: Any, inputs: dict[str, Any], monkeypatch: Any) -> list[str]:
    """What waited while the layers of one prefill ran."""
    watching, block = Watching(), ExitStack()
    monkeypatch.setattr(propagation, "_near", lambda tensor: False)  # as on a GPU
    for name in ("tolist", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def noted(tensor: Any, *args: Any, _name: str = name, _real: Any = real) -> Any:
            if inside:
                watching.seen.append(_name)
            return _real(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, noted)
    inside: list[bool] = []

    def enter(*_: Any) -> None:
        inside.append(True)
        block.enter_context(watching)

    def leave(*_: Any) -> None:
        block.close()
        inside.clear()

    layers = subject.lm.layers
    handles = [
        layers[0].register_forward_pre_hook(enter, prepend=True),
        layers[-1].register_forward_hook(leave),
    ]
    try:
        with torch.no_grad():
            subject.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        monkeypatch.undo()
    return watching.seen


@pytest.mark.parametrize("method", BY_COUNT)
def test_no_decoder_method_of_known_counts_waits(
    random_subject, method, monkeypatch, tmp_path_factory
):
    subject = random_subject
    inputs = subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))
    budget = "80%" if method == "flashvid-prune" else "60%"  # it cuts late
    with compress(subject.model, method, budget, **told(method, tmp_path_factory)) as c:
        assert waits(subject, inputs, monkeypatch) == []
        assert any(image.cuts for image in c.report().images)


def test_waiting_is_noticed(random_subject, monkeypatch):
    def reading(module: Any, args: Any) -> None:
        hidden = args[0]
        assert bool(hidden.isfinite().all())
        hidden[0, 0].tolist()
        assert len(hidden[hidden > 0])

    subject = random_subject
    handle = subject.lm.layers[1].register_forward_pre_hook(reading)
    try:
        seen = waits(subject, subject.batch(subject.prompt(1, 1)), monkeypatch)
    finally:
        handle.remove()
    assert {"_local_scalar_dense", "tolist", "index"} <= set(seen)
