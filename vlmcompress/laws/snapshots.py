"""All that a patch could touch, to be compared before and after."""

from __future__ import annotations

from typing import Any

import torch


def snapshot(model: Any) -> dict[str, Any]:
    """Everything of every module that a patch could touch."""
    found = {}
    for name, module in model.named_modules():
        state = {k: v for k, v in vars(module).items() if not k.startswith("_") or "hooks" in k}
        found[name] = (
            type(module),
            {k: dict(v) if isinstance(v, dict) else _identity(v) for k, v in state.items()},
            sorted(vars(module)),
        )
    return found


def _identity(value: Any) -> Any:
    # Qwen keeps the rope_deltas of its last prompt: as many after every call, but a new tensor.
    return value.tolist() if isinstance(value, torch.Tensor) else id(value)
