"""Damaged videos give frames or one line, and a reader that goes on."""

import numpy as np
import pytest
import video_fuzz


@pytest.fixture
def clips(corpus):
    return list(corpus.values())


def test_200_damaged_videos(clips, tmp_path):
    """`python tests/helpers/video_fuzz.py --runs 2000` does more."""
    outcomes, wrong = video_fuzz.run(clips, tmp_path, seed=0, runs=200)
    assert wrong == []
    assert outcomes.total() == 200
    read = sum(count for outcome, count in outcomes.items() if "read" in outcome)
    assert 20 < read < 180, "damage that is always or never seen tells nothing"


def test_damage_is_the_same_for_the_same_seed():
    data, other = bytes(range(256)) * 40, bytes(5000)
    made = [video_fuzz.damage(data, other, np.random.default_rng([3, 5])) for _ in range(2)]
    assert made[0] == made[1] != data


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os; os.abort()", "0 ABORT -6"),
        ("import time; time.sleep(60)", "0 HANG"),
        ("raise KeyError('k')", "ESCAPED Traceback"),
    ],
)
def test_the_fuzz_sees_an_abort_a_hang_and_a_traceback(clips, tmp_path, monkeypatch, body, words):
    """A reader that fails in this way is put in the place of ours."""
    fake = tmp_path / "fake" / "vlmcompress" / "media"
    (fake / "decoders").mkdir(parents=True)
    for module in ("__init__", "media/__init__", "media/decoders/__init__"):
        (fake.parent / f"{module}.py").touch()
    (fake.parent / "errors.py").write_text("class VLMCompressError(ValueError): pass")
    (fake / "decoders" / "choice.py").write_text("installed = lambda: ['any']")
    (fake / "video.py").write_text(f"def read_video(*a, **k):\n    {body}\n")
    monkeypatch.setattr(video_fuzz, "HANG", 3.0)
    monkeypatch.setattr(video_fuzz, "ROOT", tmp_path / "fake")
    _, wrong = video_fuzz.run(clips[:1], tmp_path, 0, 1)
    assert len(wrong) == 1
    assert words in wrong[0]
