"""Tasks about the synthetic worlds: drawn when needed, so that no data have to be fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmcompress.defaults import EVAL_LIMIT
from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.metrics.metrics import METRICS, Metric
from vlmcompress.eval.tasks.settings import Settings, check_limit, check_name
from vlmcompress.eval.tasks.task import Media, Sample
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, CLIP_STREAM, ask_clip
from vlmcompress.eval.worlds.clips import (
    CLIP_VERSION,
    FRAMES_PER_SECOND,
    Clip,
    make_clip,
    render_clip,
)
from vlmcompress.eval.worlds.long_clips import (
    LENGTHS,
    LONG_CLIP_KINDS,
    LONG_CLIP_VERSION,
    LongClip,
    ask_long_clip,
    make_long_clip,
    render_long_clip,
)
from vlmcompress.eval.worlds.posters.draw import draw_poster
from vlmcompress.eval.worlds.posters.poster import VERSION as POSTER_VERSION
from vlmcompress.eval.worlds.posters.poster import Poster, make_poster
from vlmcompress.eval.worlds.posters.questions import POSTER_KINDS, POSTER_STREAM, ask_poster
from vlmcompress.eval.worlds.questions import SCENE_STREAM, in_turn
from vlmcompress.eval.worlds.world import (
    HELD_OUT_SEEDS,
    KINDS,
    VERSION,
    Question,
    Scene,
    ask,
    draw,
    make_scene,
)
from vlmcompress.media.video import Video
from vlmcompress.registry import unknown

WORLDS_PER_SEED = 10_000
"""Worlds that belong to one seed of a task, so that two seeds share none."""
SEEDS = range(len(HELD_OUT_SEEDS) // WORLDS_PER_SEED)
"""What `samples` takes."""


@dataclass(frozen=True)
class WorldTask:
    """Questions about one of the `WORLDS`, kinds and wordings in turn.

    Attributes:
        world: name of the world.
        kinds: what is asked for, with a line on each.
        others: see `vlmcompress.eval.tasks.task.Task`.
    """

    name: str
    version: int
    world: str
    kinds: dict[str, str]
    metric: str
    max_new_tokens: int

    @property
    def medium(self) -> str:
        """ "image" or "video"."""
        return WORLDS[self.world].medium

    @property
    def scorer(self) -> Metric:
        """What `metric` names."""
        return METRICS.get(self.metric)()

    def only(self, kind: str) -> WorldTask:
        """The task of one kind alone, named "NAME/KIND"."""
        return replace(self, name=f"{self.name}/{kind}", kinds={kind: self.kinds[kind]})

    def samples(self, limit: int | None, seed: int) -> Sequence[Sample]:
        """The first `limit` questions (None: `defaults.EVAL_LIMIT`) about the worlds of `seed`.

        Seed 0 begins where the held-out worlds begin. Nothing is drawn before a sample is loaded.

        Raises:
            VLMCompressError: a seed outside `SEEDS`, or more questions than its worlds give.
        """
        if seed not in SEEDS:
            raise VLMCompressError(
                f"seed {seed} is out of range: task {self.name!r} takes 0 to {SEEDS[-1]}"
            )
        wanted = EVAL_LIMIT if limit is None else check_limit(limit)
        first = HELD_OUT_SEEDS.start + seed * WORLDS_PER_SEED
        found = WORLDS[self.world].questions(tuple(self.kinds), wanted, first)
        return [
            Sample(
                task=self.name,
                index=index,
                kind=question.kind,
                wording=question.wording,
                question=question.text,
                answers=(question.answer,),
                load=partial(WORLDS[self.world].load, world),
            )
            for index, (world, question) in enumerate(found)
        ]

    def score(self, sample: Sample, answer: str) -> float:
        """How right an answer is, from 0 to 1."""
        return self.scorer.score(answer, sample.answers)

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "name": self.name,
            "version": self.version,
            "medium": self.medium,
            "metric": self.metric,
            "max_new_tokens": self.max_new_tokens,
            "kinds": list(self.kinds),
            "world": self.world,
            "world_version": WORLDS[self.world].version,
        }


@dataclass(frozen=True)
class World:
    """What differs between pictures and clips.

    Attributes:
        medium: "image" or "video".
        version: of the drawings and questions.
        kinds: of questions that can be asked about it.
        make: the scene or clip of a seed.
        ask: a question of a kind and wording about it, or None.
        stream: of its questions, see `SCENE_STREAM`.
        load: draws it.
    """

    medium: str
    version: int
    kinds: Sequence[str]
    make: Callable[[int], Any]
    ask: Callable[..., Question | None]
    stream: int
    load: Callable[[Any], Media]

    def questions(
        self, kinds: tuple[str, ...], limit: int, first: int
    ) -> list[tuple[Any, Question]]:
        """`limit` questions about the worlds from seed `first` on, one scene or clip each.

        Raises:
            VLMCompressError: `WORLDS_PER_SEED` worlds do not give so many.
        """

        def make(seed: int) -> Any:
            if seed >= first + WORLDS_PER_SEED:
                raise ValueError(f"seed {seed} belongs to the next seed of the task")
            return self.make(seed)

        try:
            return list(in_turn(kinds, make, self.ask, limit, first, self.stream))
        except ValueError as error:
            raise VLMCompressError(
                f"{limit} questions are too many: a seed stands for {WORLDS_PER_SEED} worlds"
            ) from error


def read_world_task(settings: Settings) -> WorldTask:
    """The task that a YAML file with the key `world` describes.

    Raises:
        VLMCompressError: a key is missing, unknown or of the wrong type, or names what is not.
    """
    world = settings.text("world")
    if world not in WORLDS:
        raise settings.error(unknown("world", world, list(WORLDS)))
    task = WorldTask(
        name=check_name(settings.text("name")),
        version=settings.number("version", 1),
        world=world,
        kinds=settings.table("kinds"),
        metric=settings.text("metric"),
        max_new_tokens=settings.number("max_new_tokens"),
    )
    settings.finish()
    if task.metric not in METRICS.names():
        raise settings.error(unknown("metric", task.metric, METRICS.names()))
    for kind in task.kinds:
        if kind not in WORLDS[world].kinds:
            raise settings.error(unknown("kind", kind, list(WORLDS[world].kinds)))
    return task


def _draw(scene: Scene) -> Media:
    return [draw(scene)]


def _draw_poster(poster: Poster) -> Media:
    return [draw_poster(poster)]


def _film(clip: Clip) -> Media:
    return [_video(render_clip(clip)[0])]


def _long_film(clip: LongClip) -> Media:
    return [_video(render_long_clip(clip))]


def _video(frames: NDArray[np.uint8]) -> Video:
    indices = list(range(len(frames)))
    times = [index / FRAMES_PER_SECOND for index in indices]
    return Video(frames, indices, times, len(frames), float(FRAMES_PER_SECOND), True, "drawn")


def _long(frames: int) -> World:
    make = partial(make_long_clip, frames)
    return World("video", LONG_CLIP_VERSION, LONG_CLIP_KINDS, make, ask_long_clip, 6, _long_film)


WORLDS = {
    "pictures": World("image", VERSION, KINDS, make_scene, ask, SCENE_STREAM, _draw),
    "posters": World(
        "image",
        POSTER_VERSION,
        POSTER_KINDS,
        make_poster,
        ask_poster,
        POSTER_STREAM,
        _draw_poster,
    ),
    "clips": World("video", CLIP_VERSION, CLIP_KINDS, make_clip, ask_clip, CLIP_STREAM, _film),
    **{f"clips-{frames}": _long(frames) for frames in LENGTHS},
}
"""Worlds by name."""

LEARNT = {"small-llava": "posters"}
"""The world of pictures that a built-in model learnt, where it is not "pictures"."""


def world_of(model: str) -> str:
    """Name of the task, and of the world, of pictures that suits a model best.

    Args:
        model: a name as `vlmcompress.load` takes it.
    """
    return LEARNT.get(model, "pictures")
