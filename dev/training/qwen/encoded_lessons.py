"""Lessons for Qwen's decoder: pictures and clips as the frozen tower sees them, with questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dev.training.llava.data import Pictures
from dev.training.llava.packed_questions import pose
from dev.training.qwen.data import (
    OWNER,
    TOKENS,
    Clips,
    as_pairs,
    as_patches,
    picture_labels,
)
from dev.training.qwen.lessons import clip_owners, picture_owners, pose_clip
from dev.training.qwen.tower import Tower
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, THEME_OF
from vlmcompress.eval.worlds.clips import Clip, make_clip
from vlmcompress.eval.worlds.questions import Question
from vlmcompress.eval.worlds.scene import make_scene

_PICTURES = 6
_CLIPS = 6


@dataclass(frozen=True)
class Lesson:
    """Pictures, or clips, with questions.

    Attributes:
        states: [B, steps * 36, 4 * VISION_WIDTH], what the merger reads.
        labels: [B, ROWS, steps * 36], int8.
        owners: For each of them the values of the owner row for its objects.
        asked: Its questions.
        clips: The clips, or none of them.
    """

    states: Tensor
    labels: NDArray[np.int8]
    owners: list[tuple[int, ...]]
    asked: list[list[Question]]
    clips: list[Clip]

    @property
    def steps(self) -> int:
        """1 for pictures."""
        return self.states.shape[1] // TOKENS


class School:
    """Draws lessons; features of the frozen tower are computed when first needed."""

    def __init__(
        self, tower: Tower, pictures: Pictures, clips: Clips, start: float, end: float
    ) -> None:
        """Teach with a part of the pictures and clips, from `start` to `end` in [0, 1]."""
        self.tower, self.pictures, self.clips = tower, pictures, clips
        self.rows, self.films = (
            np.arange(int(start * len(data)), int(end * len(data))) for data in (pictures, clips)
        )
        self.seen: dict[tuple[bool, int], Tensor] = {}

    @torch.no_grad()
    def _states(self, moving: bool, rows: NDArray[np.int64]) -> Tensor:
        fresh = [int(row) for row in rows if (moving, int(row)) not in self.seen]
        if fresh:
            frames = self.clips.frames[fresh] if moving else as_pairs(self.pictures.pixels[fresh])
            states = self.tower(as_patches(frames))[0].unflatten(0, (len(fresh), -1)).flatten(1, 2)
            self.seen |= {(moving, row): s for row, s in zip(fresh, states.clone(), strict=True)}
        return torch.stack([self.seen[moving, int(row)] for row in rows])

    def picture_lesson(self, rng: np.random.Generator, odds: Sequence[float]) -> Lesson:
        """Some pictures with questions, kinds drawn with `odds`."""
        rows = np.sort(rng.choice(self.rows, size=_PICTURES, replace=False))
        scenes = [make_scene(int(row)) for row in rows]
        return Lesson(
            self._states(False, rows),
            picture_labels(self.pictures.labels[rows]),
            [picture_owners(scene) for scene in scenes],
            [pose(scene, rng, list(odds)) for scene in scenes],
            [],
        )

    def clip_lesson(self, rng: np.random.Generator, odds: Sequence[float]) -> Lesson:
        """Some clips with questions, kinds drawn with `odds`."""
        rows: list[int] = []
        clips, asked = [], []
        while len(rows) < _CLIPS:
            clip = make_clip(int(rng.choice(self.films)))
            kind = CLIP_KINDS[int(rng.choice(len(CLIP_KINDS), p=odds))]
            if clip.theme != THEME_OF[kind] or clip.seed in rows:
                continue
            questions = pose_clip(clip, rng, odds)
            if questions:
                rows.append(clip.seed)
                clips.append(clip)
                asked.append(questions)
        labels = self.clips.labels[rows].transpose(0, 2, 1, 3).reshape(len(rows), OWNER + 1, -1)
        owners = [clip_owners(clip) for clip in clips]
        return Lesson(self._states(True, np.array(rows)), labels, owners, asked, clips)
