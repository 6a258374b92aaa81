"""Questions about the sample pictures and clips, and what transformers answers to them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

import vlmcompress
from vlmcompress.media.images import read_image
from vlmcompress.media.video import read_video
from vlmcompress.methods.contracts.method import ProjectorMethod
from vlmcompress.methods.registry import METHODS
from vlmcompress.models.loading import load
from vlmcompress.models.names import ASSETS
from vlmcompress.prompts import prepare

SAMPLES = ASSETS / "samples"
MORE = (
    "what color is the circle ?",
    "how many objects are there ?",
    "what shape is the red object ?",
)
TOKENS = 12
"""Of an answer."""


@dataclass(frozen=True)
class Case:
    """A question about pictures or a clip."""

    files: tuple[str, ...]
    question: str
    frames: int | None = None
    """Of a clip."""

    @property
    def media(self) -> list[Any]:
        return [_read(name, self.frames) for name in self.files]


@functools.cache
def _read(name: str, frames: int | None) -> Any:
    path = str(SAMPLES / name)
    return read_video(path, frames=frames) if name.endswith(".mp4") else read_image(path)


def _asked(name: str) -> dict[str, str]:
    return {file: one["question"] for file, one in json.loads((SAMPLES / name).read_text()).items()}


PICTURES = [Case((file,), question) for file, question in _asked("samples.json").items()]
CLIPS = [Case((file,), question, 4) for file, question in _asked("clips.json").items()]
"""Of four frames: where time runs further than height and width, transformers and vLLM go on from
different positions behind the clip, pruned or not (docs/serving.md)."""
ALL = [
    *PICTURES,
    *(Case(one.files, question) for one in PICTURES for question in MORE),
    *(Case(a.files + b.files, b.question) for a, b in pairwise(PICTURES)),
]


@functools.cache
def loaded(name: str) -> tuple[Any, Any]:
    """A built-in model of transformers, and its processor."""
    torch.set_num_threads(1)
    return load(name, device="cpu", dtype="float32")


@functools.cache
def answers(
    name: str,
    cases: tuple[Case, ...],
    method: str | None = None,
    budget: Any = None,
    positions: str = "keep",
) -> list[list[int]]:
    """Greedy answers of transformers as ids, full or compressed in process."""
    model, processor = loaded(name)

    def answer(case: Case) -> list[int]:
        inputs = prepare(model, processor, [(case.media, case.question)])
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    if method is None:
        return [answer(case) for case in cases]
    with vlmcompress.compress(model, method, budget, positions=positions, processor=processor):
        return [answer(case) for case in cases]


def request(name: str, case: Case, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same question for vLLM."""
    _, processor = loaded(name)
    clips = [one for one in case.media if hasattr(one, "frames")]
    images = [one for one in case.media if not hasattr(one, "frames")]
    kinds = ["video" if hasattr(one, "frames") else "image" for one in case.media]
    turn = [*({"type": kind} for kind in kinds), {"type": "text", "text": case.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True
    )
    data: dict[str, Any] = {"image": images} if images else {}
    if clips:
        data["video"] = [
            (np.stack([np.asarray(f) for f in clip.frames]), _times(clip)) for clip in clips
        ]
    asked: dict[str, Any] = {"prompt": prompt, "multi_modal_data": data}
    if settings is not None:
        asked["mm_processor_kwargs"] = {"vlmcompress": settings}
    return asked


def _times(clip: Any) -> dict[str, Any]:
    return {**clip.metadata(), "do_sample_frames": False}


def ids_of(outputs: Sequence[Any]) -> list[list[int]]:
    """The answers of vLLM."""
    return [list(one.outputs[0].token_ids) for one in outputs]


def servable() -> list[str]:
    """Specs of all methods that keep some tokens between projector and decoder."""
    own = [name for name in METHODS.names() if issubclass(METHODS.get(name), ProjectorMethod)]
    merging = [f"{name}(stage='projector')" for name in ("tome", "pitome", "mctf", "downsample")]
    whole = {"full", "text-only", "zoo-prune", "embedlens", "downsample", "hawk", "restore"}
    return sorted(
        {*own, *merging, "embedlens(table={model!r})"} - whole - {"tome", "pitome", "mctf"}
    )
