"""Encoding clips some frames at a time, so that the encoder's memory does not grow with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmcompress.budget.memory import in_words
from vlmcompress.errors import BudgetError, UnsupportedCallError, UnsupportedModelError
from vlmcompress.patches.call.installed import Installed
from vlmcompress.patches.encoder.live_memory import LiveMemory
from vlmcompress.patches.families.frames import Frames
from vlmcompress.patches.signals.tower_hooks import Record

_FEATURES = ("pooler_output", "deepstack_features")
"""What a feature call gives that the base model uses."""


@dataclass
class _Frame:
    """What encoding frames of one size takes."""

    one: int | None = None
    """Bytes that the encoder makes for one frame at once ..."""
    two: int | None = None
    """... and for two together."""

    def most(self, limit: int) -> int:
        """How many frames may be encoded together; they need memory in proportion.

        Raises:
            BudgetError: not one.
        """
        if self.one is None:
            return 1
        if self.one > limit:
            raise BudgetError(
                f"max_memory is {in_words(limit)}, and encoding one frame takes "
                f"{in_words(self.one)}: give at least that"
            )
        if self.two is None:
            return 2 if 2 * self.one <= limit else 1
        return 1 + (limit - self.one) // max(1, self.two - self.one)

    def learn(self, frames: int, peak: int) -> None:
        """The bytes that a chunk took."""
        if frames == 1:
            self.one = peak
        elif frames == 2:
            self.two = peak

    def knows(self, frames: int) -> bool:
        """Whether nothing is to be learnt from a chunk of so many."""
        return (self.one, self.two)[frames - 1] is not None if frames < 3 else True


class Streaming:
    """Cuts feature calls of one model between frames.

    What a chunk may take is the memory of the tensors that vision tower and projector hold at once.
    The first chunks, of one frame and of two, are measured; the others are as large as the limit
    allows. Pixels and features of the whole clip are kept: a method sees all features, and chooses
    what it would have chosen of a clip that was encoded at once.
    """

    def __init__(self, installed: Installed, limit: int) -> None:
        """Find out how the clips of a model can be cut.

        Args:
            installed: what is installed on the model.
            limit: bytes.

        Raises:
            UnsupportedModelError: its frames are not known to be encoded each by itself.
        """
        family = installed.family
        if family.frames is None:
            raise UnsupportedModelError(
                f"max_memory cuts clips between frames, and frames of {family.name} models are not "
                "known to be encoded each by itself: leave it out"
            )
        self._installed, self._limit = installed, limit
        self._frames: Frames = family.frames
        self._known: dict[Any, _Frame] = {}

    def over(
        self, modality: str, call: dict[str, Any], run: Callable[..., Any], record: Record
    ) -> Callable[..., Any]:
        """`run`, cut between frames, where `modality` is that of clips.

        Args:
            modality: "image" or "video".
            call: arguments of the feature call by name, which follow what `run` changes.
            run: the call, with other values for some arguments.
            record: of the signals.
        """
        if modality != self._frames.modality:
            return run
        return functools.partial(self._run, call, run, record)

    def _run(
        self, call: dict[str, Any], run: Callable[..., Any], record: Record, **changed: Any
    ) -> Any:
        whole = {**call, **changed}
        known = [
            name for name in whole.get("kwargs", {}) if name.startswith(f"{self._frames.modality}_")
        ]
        if known:
            raise UnsupportedCallError(
                f"{', '.join(known)} describe the whole clip, and max_memory cuts it: do not give "
                "them"
            )
        clips: list[list[Any]] = []
        largest = 0
        for clip, count in enumerate(self._frames.counts(whole)):
            clips.append([])
            frame = self._frame(self._frames.part(whole, clip, 0, 1))
            start = 0
            while start < count:
                size = min(frame.most(self._limit), count - start)
                part = self._frames.part(whole, clip, start, start + size)
                clips[-1].append(
                    self._chunk(functools.partial(run, **{**changed, **part}), size, frame)
                )
                self._installed.signals.settle(record)
                start, largest = start + size, max(largest, size)
        call.update(whole)
        self._say(clips, largest)
        return self._joined(clips)

    def _frame(self, part: Mapping[str, Any]) -> _Frame:
        """What is known of frames like this one."""
        values = [value for value in part.values() if isinstance(value, Tensor)]
        key = tuple((tuple(value.shape), value.dtype) for value in values), torch.is_grad_enabled()
        return self._known.setdefault(key, _Frame())

    def _chunk(self, run: Callable[[], Any], size: int, frame: _Frame) -> Any:
        """What a call gave, without what is not needed any more."""
        if frame.knows(size):
            output = run()
        else:
            with LiveMemory() as memory:
                output = run()
            frame.learn(size, memory.peak)
        if getattr(output, "pooler_output", None) is None:
            raise UnsupportedCallError("max_memory needs feature calls with return_dict=True")
        found = {name: getattr(output, name, None) for name in _FEATURES}
        return type(output)(**{name: value for name, value in found.items() if value is not None})

    def _joined(self, clips: list[list[Any]]) -> Any:
        first = clips[0][0]

        def joined(read: Callable[[Any], Any]) -> Any:
            return self._frames.joined([[read(part) for part in clip] for clip in clips])

        found = {"pooler_output": joined(lambda part: part.pooler_output)}
        if "deepstack_features" in first:
            found["deepstack_features"] = [
                joined(functools.partial(_layer, layer))
                for layer in range(len(first.deepstack_features))
            ]
        return type(first)(**found)

    def _say(self, clips: list[list[Any]], largest: int) -> None:
        chunks = sum(map(len, clips))
        self._installed.trace.notes.append(
            f"clips were encoded in {chunks} chunk{'s' * (chunks > 1)} of at most {largest} "
            f"frame{'s' * (largest > 1)} for max_memory {in_words(self._limit)}"
        )


def _layer(number: int, output: Any) -> Any:
    return output.deepstack_features[number]
