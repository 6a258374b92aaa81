"""Tasks by name, and those about the built-in worlds."""

import subprocess
import sys

import numpy as np
import pytest
from task_files import asked, load

from vlmcompress.errors import UnknownNameError, VLMCompressError
from vlmcompress.eval.tasks import from_worlds as tasks_worlds
from vlmcompress.eval.tasks.registry import load_tasks, task_names
from vlmcompress.eval.worlds.clip_questions import CLIP_KINDS, held_out_clips
from vlmcompress.eval.worlds.clips import render_clip
from vlmcompress.eval.worlds.long_clips import LENGTHS, LONG_CLIP_KINDS
from vlmcompress.eval.worlds.posters.draw import draw_poster
from vlmcompress.eval.worlds.posters.questions import POSTER_KINDS, held_out_posters
from vlmcompress.eval.worlds.world import KINDS, draw, held_out

ON_POSTERS = tuple(kind for kind in POSTER_KINDS if kind != "count")


def asked_posters(limit):
    return held_out_posters(limit, kinds=ON_POSTERS)


def test_names_of_all_tasks():
    every = {"pictures": KINDS, "posters": ON_POSTERS, "clips": CLIP_KINDS}
    every |= {f"clips-{frames}": LONG_CLIP_KINDS for frames in LENGTHS}
    names = [[task, *(f"{task}/{kind}" for kind in kinds)] for task, kinds in every.items()]
    assert task_names() == [name for group in names for name in group]
    assert [task.name for task in load_tasks(task_names())] == task_names()


@pytest.mark.parametrize(
    ("name", "limit", "source"),
    [
        ("pictures", None, held_out),
        ("pictures", 33, held_out),
        ("posters", 33, asked_posters),
        ("clips", 40, held_out_clips),
    ],
)
def test_seed_zero_asks_the_held_out_questions(name, limit, source):
    samples = load(name).samples(limit, 0)
    expected = [(q.kind, q.wording, q.text, q.answer) for _, q in source(limit or 500)]
    assert asked(samples) == expected
    assert [s.index for s in samples] == list(range(len(expected)))
    assert {s.task for s in samples} == {name}


def test_pictures_are_drawn_as_ever():
    task = load("pictures")
    assert task.medium == "image"
    for sample, (scene, _) in zip(task.samples(5, 0), held_out(5), strict=True):
        (picture,) = sample.load()
        assert np.array_equal(picture, draw(scene))


def test_posters_are_drawn_as_ever():
    task = load("posters")
    assert task.medium == "image"
    for sample, (poster, _) in zip(task.samples(3, 0), asked_posters(3), strict=True):
        (picture,) = sample.load()
        assert np.array_equal(picture, draw_poster(poster))


def test_clips_come_as_videos_with_their_times():
    task = load("clips")
    assert task.medium == "video"
    for sample, (clip, _) in zip(task.samples(3, 0), held_out_clips(3), strict=True):
        (video,) = sample.load()
        assert np.array_equal(video.frames, render_clip(clip)[0])
        assert video.decoder == "drawn"
        assert video.times == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
        metadata = video.metadata()
        assert metadata["fps"] == 4
        assert metadata["total_num_frames"] == 8
        assert metadata["frames_indices"] == list(range(8))


def test_one_kind_alone():
    task = load("pictures/count")
    samples = task.samples(20, 0)
    assert task.name == "pictures/count"
    assert {(s.kind, s.task) for s in samples} == {("count", "pictures/count")}
    assert [s.wording for s in samples] == [0, 1] * 10
    assert task.describe()["kinds"] == ["count"]


@pytest.mark.parametrize("name", ["pictures", "posters", "clips"])
def test_seeds_are_repeatable_and_share_no_world(name):
    task = load(name)
    seeds = [{s.load.args[0].seed for s in task.samples(60, seed)} for seed in (0, 1, 99)]
    assert min(seeds[1]) >= 1_010_000 > max(seeds[0])
    assert min(seeds[2]) >= 1_990_000 > max(seeds[1])
    assert [len(found) for found in seeds] == [60] * 3
    assert asked(task.samples(60, 7)) == asked(task.samples(60, 7)) != asked(task.samples(60, 8))


def test_nothing_is_drawn_before_it_is_needed(monkeypatch):
    monkeypatch.setattr(tasks_worlds, "draw", lambda scene: 1 / 0)
    sample = load("pictures").samples(3, 0)[0]
    with pytest.raises(ZeroDivisionError):
        sample.load()


def test_worlds_are_scored_by_exact_match():
    task = load("pictures")
    sample = task.samples(1, 0)[0]
    assert task.score(sample, f" {sample.answers[0].upper()}. ") == 1
    assert task.score(sample, "nothing") == 0


@pytest.mark.parametrize("seed", [-1, 100])
def test_worlds_refuse_seeds_out_of_range(seed):
    with pytest.raises(VLMCompressError, match=f"seed {seed} is out of range"):
        load("pictures").samples(5, seed)


@pytest.mark.parametrize("first", [1_000_000, 1_999_970])
def test_a_seed_never_asks_about_the_worlds_of_the_next(first, monkeypatch):
    monkeypatch.setattr(tasks_worlds, "WORLDS_PER_SEED", 30)
    monkeypatch.setattr(tasks_worlds, "HELD_OUT_SEEDS", range(first, 2_000_000))
    assert len(load("pictures").samples(20, 0)) == 20
    with pytest.raises(VLMCompressError, match="40 questions are too many"):
        load("pictures").samples(40, 0)


def test_worlds_refuse_no_samples():
    with pytest.raises(VLMCompressError, match="at least 1, got 0"):
        load("pictures").samples(0, 0)


def test_unknown_and_repeated_names(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown task 'picture': did you mean 'pictures'"):
        load("picture")
    with pytest.raises(UnknownNameError, match="did you mean 'clips/motion'"):
        load("clips/motions")
    with pytest.raises(VLMCompressError, match="must end in one of"):
        load("data.txt")
    with pytest.raises(VLMCompressError, match="must end in one of"):
        load(tmp_path)
    with pytest.raises(VLMCompressError, match="no task is given: known: pictures"):
        load_tasks([])
    with pytest.raises(VLMCompressError, match="two tasks are called 'clips'"):
        load_tasks(["clips", "pictures", "clips"])


def test_import_is_light():
    heavy = ["yaml", "pyarrow", "rapidfuzz", "pandas", "transformers"]
    code = (
        "import sys, vlmcompress.eval.tasks.registry; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
