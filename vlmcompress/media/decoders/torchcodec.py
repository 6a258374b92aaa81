"""torchcodec, where it counts and times the same frames as the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vlmcompress.media.decoders.clip import Frame, compare_times, disagrees
from vlmcompress.media.decoders.pyav import PyAVClip

_TOGETHER = 16
"""Frames that are asked for in one call, and held."""


class TorchcodecClip:
    """A file opened by torchcodec."""

    name = "torchcodec"

    def __init__(self, torchcodec: ModuleType, file: Path, source: PyAVClip) -> None:
        """Open `file` and compare it with the index of `source`.

        Raises:
            MediaError: torchcodec cannot open it, or counts other frames.
        """
        self._file = file
        self.index = index = source.index
        if index.oddity is not None:
            raise disagrees(file, self.name, index.oddity)
        try:
            # The exact mode looks at all packets, as the index does.
            self._decoder: Any = torchcodec.decoders.VideoDecoder(
                str(file.absolute()), dimension_order="NHWC", seek_mode="exact"
            )
            self._start = float(self._decoder.metadata.begin_stream_seconds_from_content or 0)
            count = len(self._decoder)
        # Its C++ side raises RuntimeError and what Python makes of others.
        except Exception as error:
            raise disagrees(file, self.name, "it cannot open it") from error
        if count != len(index):
            raise disagrees(file, self.name, f"it counts {count} frames of {len(index)}")

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """See `Clip.frames`.

        Raises:
            MediaError: a frame cannot be decoded, or is shown at another time than the index says.
        """
        for place in range(0, len(indices), _TOGETHER):
            wanted = list(indices[place : place + _TOGETHER])
            try:
                batch = self._decoder.get_frames_at(wanted)
                times = np.asarray(batch.pts_seconds, np.float64) - self._start
                pixels = batch.data.numpy()
            except Exception as error:
                why = f"it cannot decode frames {wanted[0]} to {wanted[-1]}"
                raise disagrees(self._file, self.name, why) from error
            compare_times(self._file, self.name, self.index, wanted, times)
            for frame in pixels:
                yield np.ascontiguousarray(frame, dtype=np.uint8)
