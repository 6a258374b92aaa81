"""How long this machine takes: a short calibration of a decoder, kept in memory and on disk.

A layer's time is a piecewise linear function of the tokens that enter it, through what the whole
stack took at powers of two.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from vlmcompress.budget.clock import elapsed
from vlmcompress.errors import VLMCompressError
from vlmcompress.files import cache_folder, write_json
from vlmcompress.files.untrusted import read_json
from vlmcompress.version import __version__

if TYPE_CHECKING:
    from vlmcompress.flops.exact import Costs

_SHORTEST = 16
_RUNS = 3


@dataclass(frozen=True)
class DecoderTimes:
    """Milliseconds of a decoder's prefill, for batches of one size."""

    layer: Mapping[int, float]
    """Tokens of the longest row that enter a layer -> time of one layer; ascending."""
    head: float
    """Time of the language model's head at the last position."""

    def predict(self, tokens: Sequence[int]) -> float:
        """Milliseconds of all layers and the head, given the tokens that enter each layer.

        Lengths outside the measured range count as its nearest end.
        """
        times = np.interp(tokens, list(self.layer), list(self.layer.values()))
        return float(times.sum()) + self.head


@dataclass
class Memory:
    """What is known of the times of one model instance."""

    decoder: dict[str, DecoderTimes] = field(default_factory=dict)
    """By what was measured, see `_conditions`."""
    encoder: dict[Any, float] = field(default_factory=dict)
    """Shapes of pixels -> milliseconds of the bare feature call."""
    selection: dict[Any, float] = field(default_factory=dict)
    """Pipeline and layouts -> milliseconds of the selection of the last such call."""
    last: tuple[Any, Callable[[], float]] | None = None
    """The newest call that selected, and its milliseconds, which are read before the next one."""

    def selected(self, key: Any) -> float:
        """The time of a selection; 0 before the first call of its kind, whose time is unknown."""
        if self.last is not None:
            self.selection[self.last[0]], self.last = self.last[1](), None
        return self.selection.get(key, 0.0)


_memories: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()


def memory_of(model: nn.Module) -> Memory:
    """What is known of the times of a model instance, kept for as long as the instance lives."""
    return _memories.setdefault(model, Memory())


def decoder_times(model: nn.Module, lm: nn.Module, batch: int, longest: int) -> DecoderTimes:
    """The times of a decoder up to `longest` tokens; measures what is known nowhere.

    Args:
        model: with the head.
        lm: its decoder stack.
        batch: rows.
        longest: tokens of the longest row.
    """
    lengths = lengths_up_to(longest)
    conditions = _conditions(lm, batch)
    key = hashlib.sha256(conditions.encode()).hexdigest()[:32]
    known = memory_of(model).decoder
    found = known.get(key) or _read(key) or DecoderTimes({}, 0.0)
    missing = [length for length in lengths if length not in found.layer]
    if missing:
        layer = {**found.layer, **measure_layers(lm, batch, missing)}
        head = found.head or measure_head(model, batch)
        found = DecoderTimes(dict(sorted(layer.items())), head)
        _write(key, conditions, found)
    known[key] = found
    return found


def predicted(
    costs: Costs,
    full: Costs,
    rows: Sequence[Sequence[int]],
    encoder: float,
    selection: float,
    decoder: DecoderTimes,
) -> float:
    """Milliseconds up to the first token.

    Args:
        costs: of the call in FLOPs.
        full: of the call without reduction.
        rows: of each row of the batch the tokens that enter each layer; shorter rows are padded.
        encoder: milliseconds of encoder and projector without reduction.
        selection: milliseconds of it.
        decoder: for the batch.
    """
    share = (costs.encoder + costs.projector) / (full.encoder + full.projector)
    longest = [max(tokens) for tokens in zip(*rows, strict=True)]
    return encoder * share + selection + decoder.predict(longest)


def lengths_up_to(longest: int) -> list[int]:
    """Powers of two from 16 to the first that is not below `longest`."""
    powers = [_SHORTEST << k for k in range(64)]
    shorter = list(takewhile(lambda power: power < longest, powers))
    return [*shorter, powers[len(shorter)]]


@torch.no_grad()
def measure_layers(lm: nn.Module, batch: int, lengths: Sequence[int]) -> dict[int, float]:
    """Length -> milliseconds of one layer of a prefill of random embeddings, median of 3."""
    weight = _embedding(lm)
    config: Any = lm.config
    times = {}
    for length in lengths:
        embeds = _random(weight, batch, length)
        run = lambda given=embeds: lm(inputs_embeds=given, use_cache=True)  # noqa: E731
        times[length] = median_of(run, weight.device) / config.num_hidden_layers
    return times


@torch.no_grad()
def measure_head(model: nn.Module, batch: int) -> float:
    """Milliseconds of the language model's head at one position of each row."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    weight: Tensor = head.weight
    hidden = _random(weight, batch, 1)
    return median_of(lambda: head(hidden), weight.device)


def _random(weight: Tensor, batch: int, length: int) -> Tensor:
    """[batch, length, D] like the rows of an embedding, and no number of the caller's generator."""
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = batch, length, weight.shape[1]
    return torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)


def median_of(run: Callable[[], object], device: torch.device, runs: int = _RUNS) -> float:
    """Milliseconds of `run`, the median after a warm-up; the device has finished each time."""

    run()
    return statistics.median(elapsed(run, device) for _ in range(runs))


def _embedding(lm: nn.Module) -> Tensor:
    weight: Tensor = lm.get_input_embeddings().weight  # type: ignore[operator]
    return weight


def _conditions(lm: nn.Module, batch: int) -> str:
    """What a time depends on, as JSON."""
    weight, config = _embedding(lm), lm.config
    values = config.to_dict()  # type: ignore[operator,union-attr]
    device = weight.device
    cuda = device.type == "cuda"
    return json.dumps(
        {
            "decoder": {k: v for k, v in values.items() if not k.startswith(("_", "transformers"))},
            "attention": config._attn_implementation,  # type: ignore[union-attr]
            "dtype": str(weight.dtype),
            "batch": batch,
            "device": torch.cuda.get_device_name(device) if cuda else platform.processor(),
            "machine": [platform.node(), platform.machine()],
            "threads": torch.get_num_threads(),
            "versions": [__version__, torch.__version__, transformers.__version__],
        },
        sort_keys=True,
        default=str,
    )


def _folder() -> Path:
    return cache_folder("timing")


def _read(key: str) -> DecoderTimes | None:
    """What an earlier process measured; None where there is nothing or a damaged file."""
    try:
        found = read_json(_folder() / f"{key}.json")
        layer = {int(length): float(ms) for length, ms in found["layer"].items()}
        times = DecoderTimes(dict(sorted(layer.items())), float(found["head"]))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None
    fine = all(math.isfinite(ms) and ms > 0 for ms in [*layer.values(), times.head])
    return times if fine else None


def _write(key: str, conditions: str, times: DecoderTimes) -> None:
    """Keep for other processes, whole or not at all; warns once where that is not possible."""
    content = {"conditions": json.loads(conditions), "layer": times.layer, "head": times.head}
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{key}.json", content)
    except (OSError, RuntimeError, VLMCompressError) as error:
        _warn(str(error))


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"times of this machine are not kept for the next run: {reason}", stacklevel=2)
