"""Models of published shapes with random weights, for which no checkpoint is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from vlmcompress.errors import VLMCompressError
from vlmcompress.profiler.published_shapes import SHAPES, configuration


def build(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
    attention: str = "sdpa",
    layers: int | None = None,
    encoder_layers: int | None = None,
) -> nn.Module:
    """A model of a published shape in evaluation mode.

    Weights go to `device` in `dtype` one by one, without a copy anywhere else. Buffers (rotary
    frequencies, position ids) are the real ones in the dtype in which the model computes them.

    Args:
        name: one of `SHAPES`.
        device: where it goes; by default the GPU if there is one, else the CPU.
        dtype: of all weights.
        attention: "sdpa", "eager" or "flash_attention_2".
        layers: of the decoder, if not all; to fit a CPU.
        encoder_layers: of the vision tower, likewise.

    Raises:
        VLMCompressError: unknown shape, layers that it does not have, or a device or an attention
            implementation that cannot be had here.
    """
    target = _there(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = configuration(name, layers, encoder_layers)
    kind: Any = getattr(transformers, f"{SHAPES[name].family}ForConditionalGeneration")
    try:
        with init_empty_weights(include_buffers=False):
            model: nn.Module = kind._from_config(config, attn_implementation=attention, dtype=dtype)
    except (ImportError, ValueError) as error:
        raise VLMCompressError(f"{name} with {attention} attention: {error}") from error
    model.tie_weights()  # type: ignore[operator]  # which making them one by one has undone
    _fill(model, target, dtype)
    return model.eval()


def _there(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VLMCompressError(
            f"device {str(device)!r} is not there: give cpu, cuda ..."
        ) from error
    return torch.device(device)


_BLOCK = 1_000_003
"""Random numbers that are drawn; a prime, so that no two rows of a matrix begin at the same one."""


def _fill(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put weights of about unit gain in the place of those on the meta device."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_BLOCK, generator=generator).to(device, dtype)
    made: dict[int, nn.Parameter] = {}  # tied weights stay one tensor
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if id(old) not in made:
                    # As `from_pretrained` leaves them: for frozen ones PyTorch takes slower paths.
                    made[id(old)] = nn.Parameter(_weight(name, old.shape, noise))
                module._parameters[name] = made[id(old)]
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _weight(name: str, shape: Sequence[int], noise: Tensor) -> Tensor:
    """Random matrices, norms that scale by one, no bias."""
    if len(shape) < 2 and name in ("weight", "bias"):
        return torch.full(tuple(shape), float(name == "weight"), device=noise.device).to(
            noise.dtype
        )
    whole = torch.empty(tuple(shape), device=noise.device, dtype=noise.dtype)
    scaled = noise * math.prod(shape[1:]) ** -0.5
    for chunk in torch.split(whole.view(-1), len(noise)):
        chunk.copy_(scaled[: len(chunk)])
    return whole
