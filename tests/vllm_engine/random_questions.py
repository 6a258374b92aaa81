"""Questions about random pixels, put to a model with random weights in both engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from random_models import MODELS, write
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm_cases import ids_of
from vllm_engines import engine_of

import vlmcompress
from vlmcompress.patches.families import llava_next
from vlmcompress.serving import hf_overrides
from vlmcompress.serving.counts import method_of
from vlmcompress.tokens import Grid, Layout, Separator

BUDGET, TOKENS = "50%", 12
NEAR = 0.01
"""Logits that rounding may put in another order."""
FRAMES = 6


@dataclass(frozen=True)
class Question:
    """A prompt, and what its placeholders stand for."""

    text: str
    images: tuple[Any, ...] = ()
    clips: tuple[Any, ...] = ()
    """[frames, height, width, 3] uint8 each."""
    fps: float = 4.0

    def of_transformers(self) -> dict[str, Any]:
        given: dict[str, Any] = {"text": [self.text]}
        if self.images:
            given["images"] = [list(self.images)]
        if self.clips:
            given |= {"videos": list(self.clips), "do_sample_frames": False}
            given["video_metadata"] = [self._times(clip) for clip in self.clips]
        return given

    def of_vllm(self, settings: Any) -> dict[str, Any]:
        data: dict[str, Any] = {"image": list(self.images)} if self.images else {}
        if self.clips:
            data["video"] = [
                (clip, {**self._times(clip), "do_sample_frames": False}) for clip in self.clips
            ]
        return {
            "prompt": self.text,
            "multi_modal_data": data,
            "mm_processor_kwargs": {"vlmcompress": settings},
        }

    def _times(self, clip: Any) -> dict[str, Any]:
        count = len(clip)
        return {
            "total_num_frames": count,
            "fps": self.fps,
            "duration": count / self.fps,
            "frames_indices": list(range(count)),
        }


@contextmanager
def all_newlines() -> Iterator[None]:
    """In process they stay with any token of the picture, as docs/serving.md says of vLLM."""
    own = llava_next.with_newlines

    def bound(count: int, rows: int, side: int) -> Layout:
        found = own(count, rows, side)
        ends = (Separator(one.place, 0, len(found)) for one in found.separators)
        return Layout(found.parts, tuple(ends))

    with patch.object(llava_next, "with_newlines", bound):
        yield


def _as_served(method: str) -> Any:
    """`all_newlines` for methods that decide by the content which rows lose all their tokens."""
    return nullcontext() if method_of(method).goes_by(Grid(1, 2, 2)) else all_newlines()


class Asked:
    """One family in both engines, and pictures and clips to ask about."""

    def __init__(self, name: str, folder: Any) -> None:
        self.made, folder = MODELS[name], write(folder, name)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(folder)
        overrides = hf_overrides([self.made.class_name], "divprune", BUDGET)
        clips = 2 if "clip" in self.made.kinds else 0
        self.context = engine_of(
            str(folder),
            name,
            hf_overrides=overrides,
            limit_mm_per_prompt={"image": 2, "video": clips},
            max_num_batched_tokens=24,
        )
        self.engine = self.context.__enter__()
        width, height = self.made.size
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (3, height, width, 3), np.uint8)
        self.media = {
            "image": [Image.fromarray(one) for one in pixels],
            "clip": list(draw.integers(0, 256, (3, FRAMES, height, width, 3), np.uint8)),
        }

    def _question(self, text: str, *media: tuple[str, int]) -> Question:
        """`text` with {} where a picture stands; of `media` the kind and which."""
        images = tuple(self.media[kind][n] for kind, n in media if kind == "image")
        clips = tuple(self.media[kind][n] for kind, n in media if kind == "clip")
        return Question(text.format(*(self.made.kinds[kind] for kind, _ in media)), images, clips)

    def questions(self, kind: str) -> list[Question]:
        """About one picture or clip each."""
        words = ("which", "what", "way")
        return [self._question(f"User : {{}} {one} ?", (kind, n)) for n, one in enumerate(words)]

    def two(self, kind: str, n: int) -> Question:
        return self._question("User : {} {} which ?", (kind, n), (kind, n + 1))

    def last(self, kind: str, n: int) -> Question:
        return self._question("User : which way ? {}", (kind, n))

    def both(self, *kinds: str) -> Question:
        return self._question("User : {} what {} way ?", *((kind, 2) for kind in kinds))

    def compress(self, questions: Any, method: Any, budget: Any = BUDGET) -> list[list[int]]:
        """Answers of transformers, each up to where the two best tokens are as good as equal."""
        with nullcontext() if method is None else _as_served(method):
            return self.in_process(questions, method, budget)

    def in_process(self, questions: Any, method: Any, budget: Any = BUDGET) -> list[list[int]]:
        """The same without any regard to vLLM."""
        return [self._answer(one, method, budget) for one in questions]

    def _answer(self, question: Question, method: Any, budget: Any) -> list[int]:
        inputs = self.processor(**question.of_transformers(), return_tensors="pt")
        pruned = (
            nullcontext()
            if method is None
            else vlmcompress.compress(self.model, method, budget, processor=self.processor)
        )
        with pruned:
            found = self.model.generate(
                **inputs,
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids: list[int] = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        best = torch.cat(found.logits).topk(2).values
        near = (best[:, 0] - best[:, 1] < NEAR).tolist()
        return ids[: near.index(True)] if True in near else ids

    def serve(self, questions: Any, settings: Any) -> list[list[int]]:
        """Answers of vLLM; `settings` of the requests, one for all or one for each."""
        return ids_of(self.outputs(questions, settings))

    def outputs(self, questions: Any, settings: Any) -> list[Any]:
        """The same with all that vLLM says of them."""
        each = settings if isinstance(settings, list) else [settings] * len(questions)
        asked = [one.of_vllm(wish) for one, wish in zip(questions, each, strict=True)]
        return self.engine.generate(asked, TOKENS, ignore_eos=True)
