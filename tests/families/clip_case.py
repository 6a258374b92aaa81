"""A clip of two frames in a prompt of a tiny model."""

from __future__ import annotations

from typing import Any

import torch
from media import clip
from model_case import TYPE_IDS, Case, Inputs, case_of

FRAMES = 2


class ClipCase(Case):
    """The same model with a clip in its prompt; words between frames where it wants them."""

    features_of = "get_video_features"

    def __init__(self, model_type: str) -> None:
        known = case_of(model_type)
        self.model_type, self.model, self.parts = model_type, known.model, known.parts
        self.token = self.parts.family.placeholders(self.model)["video"]
        media = clip(self.model, self.parts.base, FRAMES)
        assert media is not None
        self.inputs = self._accepted(media)

    @property
    def single(self) -> Inputs:
        return self.inputs

    def _accepted(self, media: Inputs) -> Inputs:
        """A prompt that the bare model takes: its frames in one piece, else one by one."""
        base: Any = self.parts.base
        with torch.no_grad():
            output = base.get_video_features(**media, return_dict=True)
        features = self.parts.family.features(output)
        count = sum(piece.shape[:-1].numel() for piece in features)
        whole = [self.token] * count
        frame = [self.token] * (count // FRAMES)
        for body in (whole, [*frame, 31, *frame]):
            inputs = self._batch([[40, 41, 42, *body, *range(50, 60)]], media)
            for name in TYPE_IDS:
                if name in inputs:
                    inputs[name] = inputs[name] * 2
            try:
                self.logits(inputs)
            except Exception:  # whatever a model raises at a prompt that it does not want
                continue
            return inputs
        raise AssertionError(f"{self.model_type} takes no clip of these")
