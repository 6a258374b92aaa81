"""What each thread that uses a compressed model is in the middle of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vlmcompress.patches.hooks.per_thread import PerThread
from vlmcompress.patches.sequence.attention_masks import Given
from vlmcompress.patches.sequence.cache_state import CacheState
from vlmcompress.patches.sequence.call_trace import Solved, Trace
from vlmcompress.patches.sequence.stage_layout import StageLayout
from vlmcompress.patches.signals.signals import Encoded


class CallState(PerThread):
    """The call that a thread is in."""

    inside = False
    """Whether it is in a call that the hooks act on."""
    passing = False
    """Whether it is in a call that began before the hooks were put on, and is left alone."""
    generating = False
    rehearsing = False
    """Whether a decoder layer runs only to see what it would attend with."""
    prompt: int | None = None
    """Tokens that `generate` was given."""
    given: dict[str, Any] | None = None
    """Arguments of `generate` by name."""
    call: dict[str, Any] | None = None
    """Arguments of the base model's forward by name."""
    outer: dict[str, Any] | None = None
    """Arguments of the forward of a model that masks its output, by name."""
    output_mask: Tensor | None = None
    """[B, tokens that are left]: which of them are no padding; None where all are."""
    own_loop = False
    """Whether `generate` runs a loop of the caller's."""
    nothing_masked: bool | None = None
    """Of the prompt that `generate` was given; None before it was looked at."""
    stages: StageLayout | None = None
    """How the tokens of the forward lie in each decoder layer; None where the model's own layout is
    right everywhere."""
    next_state: CacheState | None = None
    """What the cache must remember of a forward that needs no layout of its own."""
    given_masks: Given = None
    """Masks that the base model made."""
    solved: Solved | None = None
    """A budget that is a cost, for the prefill that is to come; of `generate` for all of them, as
    without a cache it reads its prompt again for each token."""
    started: Any = None
    ended: Any = None
    """When the decoder stack began and ended."""
    trace: Trace | None = None
    """Of the last call that it began."""

    def __init__(self) -> None:
        self.encoded: dict[str, Encoded] = {}
        """What feature calls gave for the running forward."""
        self.noted: dict[str, Encoded] = {}
        """What those of the running `generate` gave."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the decoder runs by itself, on nothing of the prompt."""
        call, self.call = self.call, None
        try:
            yield
        finally:
            self.call = call

    def begin_decoder(self) -> None:
        """Nothing is known yet of how the tokens will lie."""
        self.stages = self.next_state = None

    def end_generate(self) -> None:
        """Forget the call of `generate`."""
        self.generating, self.prompt, self.given, self.nothing_masked = False, None, None, None
        self.own_loop, self.noted = False, {}
        self.end_forward()

    def end_forward(self) -> None:
        """Forget the forward, also one that failed."""
        self.call, self.encoded, self.stages, self.given_masks = None, {}, None, None
        self.next_state = None
        if not self.generating:
            self.solved = None

    def clear(self) -> None:
        """Forget all but the trace: no call is running."""
        self.end_generate()
        self.inside = self.passing = self.rehearsing = False
        self.outer = self.output_mask = None
        self.started = self.ended = None

    def fail(self) -> None:
        """An exception ended the call: a prefill that was not done has met no budget."""
        if self.trace is not None and not self.trace.prefilled:
            self.trace.solved = None
