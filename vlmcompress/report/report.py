"""What a compressed call did, in numbers that a person or a program can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.report.numbers import mean_text
from vlmcompress.tokens import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST = 24
"""Temporal steps whose counts are printed."""


@dataclass(frozen=True)
class ImageReport:
    """One image or clip of the call. All indices are raster indices in `grid`."""

    index: int
    """Which image of the call, in the order given to the processor."""
    row: int
    """Which prompt of the batch it belongs to."""
    grid: tuple[int, int, int]
    """Time, height, width; all tokens in one row where the image is laid out as several grids."""
    parts: list[tuple[int, int, int]]
    """These grids, whose tokens are counted one after the other; mostly one."""
    before: int
    given: int
    """Tokens that a method may keep: those that are not masked and that a pixel- or encoder-stage
    method left."""
    after: int
    """Tokens that enter the decoder."""
    kept: list[int]
    """The tokens that enter the decoder; for merged tokens where each group stands, mostly at its
    smallest member."""
    groups: list[list[int]] | None
    """For mergers and poolers: the tokens that each output token stands for."""
    cuts: dict[int, list[int]]
    """Decoder layer -> the tokens that enter it and the layers after it."""
    per_layer: list[int]
    mean: float
    """True mean of `per_layer`."""
    separators: list[int]
    """Newline embeddings and the like that enter each decoder layer; they count as no tokens."""
    masked: int = 0
    """Tokens that the attention mask of the call closes: no method sees them, no budget counts
    them."""
    notes: list[str] = field(default_factory=list)
    """What happened to this image that was perhaps not expected."""
    merges: dict[int, list[list[int]]] = field(default_factory=dict)
    """For methods that merge between decoder layers: layer -> the tokens, of those that entered the
    layer before, that each token entering it stands for."""

    @property
    def enters(self) -> int:
        """The decoder layer that the tokens enter; 0 but where a method lets them in late."""
        return max(self.cuts) if 0 in self.cuts else 0

    @property
    def per_frame(self) -> dict[str, list[int]]:
        """Tokens of each temporal step of the grid: `after`, and those of the `last` layer."""
        last = self.cuts[max(self.cuts)] if self.cuts else self.kept
        return {"after": self._steps(self.kept), "last": self._steps(last)}

    def _steps(self, tokens: list[int]) -> list[int]:
        counts = [0] * self.grid[0]
        for token in tokens:
            counts[token // (self.grid[1] * self.grid[2])] += 1
        return counts


@dataclass(frozen=True)
class Report:
    """The last call of a compressed model."""

    method: str
    budget: str | None
    positions: str
    order: str
    images: list[ImageReport]
    milliseconds: dict[str, float]
    """`encoder`, `selection`, `prefill` (decoder only, without selection), `decode` (all steps)."""
    decode_tokens: int
    """Decoder steps after the prefill."""
    engaged: bool
    """Whether any visual token was removed that was not masked."""
    signals: list[str]
    """What was collected for the methods besides features."""
    asked: str | None = None
    """The budget, where it is a cost such as "0.4 flops" or "120 ms"; else this and the following
    are None."""
    predicted: float | None = None
    """What the call was expected to cost, as a share of the full model's FLOPs or in milliseconds
    to the first token ..."""
    measured: float | None = None
    """... and what it did: the FLOPs of what was really kept, or the time of encoder, selection,
    prefill and LM head."""
    resolved: float | None = None
    """The share of the tokens in percent that the budget came to."""
    dropped_before: tuple[int, int] | None = None
    """The layer of the vision tower, 0-based, before which tokens left it, and of how many; None
    where no method drops there."""
    reason: str | None = None
    """Why `method="auto"` took this method; None where the user named it."""
    notes: list[str] = field(default_factory=list)
    """What holds for the whole call and was perhaps not expected."""
    processor: Any = field(default=None, repr=False, compare=False)
    """The one that `compress` was given: it knows where the patches of an image lie. No part of
    `to_dict`."""

    @property
    def cost(self) -> str:
        """`asked 0.4 flops, predicted 0.398, measured 0.398, at 25.7% of the tokens`."""

        def shown(value: float | None) -> str:
            return "unknown" if value is None else f"{value:.3g}"

        return (
            f"asked {self.asked}, predicted {shown(self.predicted)}, "
            f"measured {shown(self.measured)}, at {shown(self.resolved)}% of the tokens"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values, with `per_frame` of each image."""
        values = dataclasses.asdict(dataclasses.replace(self, processor=None))
        del values["processor"]
        for entry, image in zip(values["images"], self.images, strict=True):
            entry["per_frame"] = image.per_frame
        return values

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict())

    def overlay(
        self,
        media: Any,
        processor: Any = None,
        *,
        question: str | None = None,
        answer: str | None = None,
        model: str | None = None,
        layer: int | None = None,
        width: int = 1600,
    ) -> Image:
        """The images and clips of the call, with what was dropped dimmed, and a legend.

        Args:
            media: as they were given to the processor: paths, PIL images, arrays, clips (`Video`).
            processor: the model's, for where the patches lie; default: the one that `compress` got.
            question: written below, like `answer` and the name of the `model`.
            answer: what the model said.
            model: its name.
            layer: shows what enters this decoder layer; by default a patch is as bright as the
                share of the layers that it reaches.
            width: of the frames of a clip beside each other at most.

        Raises:
            VLMCompressError: no processor is known, or the media are not those of the call.
        """
        from vlmcompress.media.given import media_of
        from vlmcompress.report.picture import picture

        return picture(
            self,
            media_of(media),
            self.processor if processor is None else processor,
            question=question,
            answer=answer,
            model=model,
            layer=layer,
            width=width,
        )

    def plot(self) -> Any:
        """A matplotlib figure: tokens in each decoder layer, and the milliseconds of each stage.

        Raises:
            VLMCompressError: matplotlib is not installed.
        """
        from vlmcompress.report.plot import plot

        return plot(self)

    def _repr_html_(self) -> str:
        from vlmcompress.report.html import as_html

        return as_html(self)

    def __str__(self) -> str:
        asked = f", budget {self.budget}" if self.budget else ""
        state = "engaged" if self.engaged else "NOT engaged: no token was removed"
        lines = [f"{self.method}{asked}, positions {self.positions}: {state}"]
        for image in self.images:
            grid = "+".join(str(Grid(*part)) for part in image.parts)
            lines.append(
                f"  image {image.index} ({grid}): {_steps(image)} tokens{entry([image])}, "
                f"mean over layers {mean_text(image.mean)}, per layer {_runs(image.per_layer)}"
            )
            if image.grid[0] > 1:
                lines.append(f"    per frame {frame_counts([image])}")
            lines += [f"    note: {note}" for note in image.notes]
        if self.dropped_before is not None:
            layer, layers = self.dropped_before
            lines.append(f"  dropped before layer {layer} of {layers} of the vision tower")
        lines += [f"  note: {note}" for note in self.notes]
        if self.reason is not None:
            lines.append(f"  {self.reason}")
        if self.asked is not None:
            lines.append(f"  {self.cost}")
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in self.milliseconds.items())
        lines.append(f"  {times} ({self.decode_tokens} decode steps)")
        return "\n".join(lines)


def _steps(image: ImageReport) -> str:
    """`576 -> 192 -> 64` where two stages before the decoder share the work."""
    counts = [image.before, image.given, image.after]
    return " -> ".join(map(str, counts if image.given not in counts[::2] else counts[::2]))


def entry(images: Sequence[ImageReport]) -> str:
    """`, enter at layer 3` where tokens do not enter at the first decoder layer, else nothing."""
    layers = sorted({image.enters for image in images})
    return f", enter at layer {', '.join(map(str, layers))}" if any(layers) else ""


def frame_counts(images: Sequence[ImageReport]) -> str:
    """Tokens of each temporal step of a clip in one line; `a>b` where the decoder drops some."""
    pairs = [
        f"{after}>{last}" if last != after else f"{after}"
        for image in images
        for after, last in zip(*image.per_frame.values(), strict=True)
    ]
    if len(set(pairs)) == 1:
        return f"{pairs[0]} x{len(pairs)}"
    return " ".join(pairs if len(pairs) <= _MOST else [*pairs[:_MOST], f"... ({len(pairs)})"])


def by_medium(images: Sequence[ImageReport], frames: Sequence[int]) -> list[list[ImageReport]]:
    """The reports of each image or clip of a prompt, in its order.

    Args:
        images: all reports.
        frames: how many frames each image or clip has; an image has one. Some families take the
            frames of a clip for images, whose reports are then gathered.

    Raises:
        VLMCompressError: the numbers do not go together.
    """
    if len(images) == len(frames):
        return [[image] for image in images]
    if len(images) != sum(frames):
        raise VLMCompressError(f"{len(frames)} images or clips but {len(images)} reports")
    queue = iter(images)
    return [[next(queue) for _ in range(count)] for count in frames]


def _runs(values: list[int]) -> str:
    """`[144, 144, 36]` as `144 x2, 36 x1`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return ", ".join(f"{value} x{count}" for value, count in runs)
