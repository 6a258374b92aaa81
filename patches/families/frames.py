"""How the frames of clips lie in a feature call, where the vision side treats each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vlmcompress.patches.hooks.arguments import on_host


class Frames(Protocol):
    """Cuts a feature call between frames, and joins what the pieces gave.

    A frame here is what the tower and the projector see by itself: a frame, a pair of frames that
    is one temporal step, or a tile.
    """

    modality: str
    """Whose feature call is cut."""

    def counts(self, call: Mapping[str, Any]) -> list[int]:
        """How many frames each clip of a call has; `call` are its arguments by name."""
        ...

    def part(self, call: Mapping[str, Any], clip: int, start: int, stop: int) -> dict[str, Any]:
        """The arguments that differ in a call for some frames of one clip."""
        ...

    def joined(self, clips: Sequence[Sequence[Any]]) -> Any:
        """Features of the whole call.

        Args:
            clips: for each clip, in order, the features that the calls for its parts gave.
        """
        ...


class PackedFrames:
    """Patches of all clips as rows, in the order of their temporal steps, with `video_grid_thw`."""

    modality = "video"

    def counts(self, call: Mapping[str, Any]) -> list[int]:
        return [int(t) for t, _, _ in on_host(call["video_grid_thw"])]

    def part(self, call: Mapping[str, Any], clip: int, start: int, stop: int) -> dict[str, Any]:
        sizes = on_host(call["video_grid_thw"])
        before = sum(t * h * w for t, h, w in sizes[:clip])
        _, h, w = sizes[clip]
        rows = slice(before + start * h * w, before + stop * h * w)
        return {
            "pixel_values_videos": call["pixel_values_videos"][rows],
            "video_grid_thw": call["video_grid_thw"].new_tensor([[stop - start, h, w]]),
        }

    def joined(self, clips: Sequence[Sequence[Any]]) -> Any:
        first = clips[0][0]
        if isinstance(first, Tensor):  # the clips one behind the other
            return torch.cat([part for clip in clips for part in clip])
        return type(first)([torch.cat([piece for (piece,) in clip]) for clip in clips])


class BatchedFrames:
    """Pixels [clips, frames, C, H, W]."""

    modality = "video"

    def __init__(self, behind: int = 0) -> None:
        """Describe what the call makes of them.

        Args:
            behind: tokens that it puts behind the last frame of each clip.
        """
        self._behind = behind

    def counts(self, call: Mapping[str, Any]) -> list[int]:
        clips, frames = call["pixel_values_videos"].shape[:2]
        return [frames] * clips

    def part(self, call: Mapping[str, Any], clip: int, start: int, stop: int) -> dict[str, Any]:
        return {"pixel_values_videos": call["pixel_values_videos"][clip : clip + 1, start:stop]}

    def joined(self, clips: Sequence[Sequence[Any]]) -> Any:
        """From [1, tokens, D] of each part, or a list of one [tokens, D]."""
        whole = [self._clip([features[0] for features in clip]) for clip in clips]
        first = clips[0][0]
        return torch.stack(whole) if isinstance(first, Tensor) else type(first)(whole)

    def _clip(self, parts: Sequence[Tensor]) -> Tensor:
        inner = [part[: len(part) - self._behind] for part in parts[:-1]]
        return torch.cat([*inner, parts[-1]])


class BatchedTiles(BatchedFrames):
    """The same, of which the call makes [clips * frames, tokens, D]."""

    def joined(self, clips: Sequence[Sequence[Any]]) -> Any:
        return torch.cat([part for clip in clips for part in clip])


class Tiles:
    """Pixels [tiles, C, H, W], of which the call makes [tiles, tokens, D]: clips that the processor
    has turned into images."""

    modality = "image"

    def counts(self, call: Mapping[str, Any]) -> list[int]:
        return [len(call["pixel_values"])]

    def part(self, call: Mapping[str, Any], clip: int, start: int, stop: int) -> dict[str, Any]:
        return {"pixel_values": call["pixel_values"][start:stop]}

    def joined(self, clips: Sequence[Sequence[Any]]) -> Any:
        return torch.cat([part for clip in clips for part in clip])
