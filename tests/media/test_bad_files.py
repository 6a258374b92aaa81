"""Videos that cannot be read, or that are beyond a limit: one clear line each."""

import numpy as np
import pytest
from clip_files import write_clip, write_no_frames, write_sound
from PIL import Image

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders import pyav
from vlmcompress.media.images import read_image
from vlmcompress.media.video import read_video

BAD = {
    "missing": (lambda p, c: p / "none.mp4", r"none\.mp4' does not exist"),
    "folder": (lambda p, c: p, "is a folder"),
    "empty": (lambda p, c: _write(p / "x.mp4", b""), "is an empty file"),
    "text": (lambda p, c: _write(p / "x.mp4", b"no video\n" * 99), "not a video"),
    "truncated": (
        lambda p, c: _write(p / "x.mp4", c.read_bytes()[:-600]),
        "truncated|not read rightly",
    ),
    "truncated with its index in front": (lambda p, c: _cut(p), "truncated or damaged"),
    "damaged in the middle": (lambda p, c: _spoilt(p), "damaged|not read rightly"),
    "sound only": (lambda p, c: write_sound(p / "x.mp4"), "no video stream"),
    "no frames": (lambda p, c: write_no_frames(p / "x.mp4"), "no video stream|has no frames"),
    "no frames in mkv": (lambda p, c: write_no_frames(p / "x.mkv"), "no frames|truncated"),
    "image": (lambda p, c: _image(p / "x.png"), "is an image, not a video"),
}


def _write(path, data):
    path.write_bytes(data)
    return path


def _cut(folder):
    whole = write_clip(folder / "whole.mp4", 60, (320, 240), movflags="faststart").read_bytes()
    return _write(folder / "x.mp4", whole[: len(whole) * 6 // 10])


def _spoilt(folder):
    whole = write_clip(folder / "whole.mp4", 60, (320, 240), movflags="faststart").read_bytes()
    middle = len(whole) // 2
    noise = np.random.default_rng(1).bytes(2000)
    return _write(folder / "x.mp4", whole[:middle] + noise + whole[middle + 2000 :])


def _image(path):
    Image.new("RGB", (30, 20)).save(path)
    return path


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_bad_files(decoder, clip, tmp_path, make, words):
    with pytest.raises(MediaError, match=words) as raised:
        read_video(make(tmp_path, clip), decoder=decoder)
    assert "\n" not in str(raised.value)


def test_a_file_that_may_not_be_read(decoder, clip, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.FileIO", refused)
    with pytest.raises(MediaError, match="Permission denied"):
        read_video(clip, decoder=decoder)


def test_a_song_with_a_cover_is_no_video(tmp_path):
    with pytest.raises(MediaError, match="no video stream"):
        read_video(write_sound(tmp_path / "x.mp4", cover=True))


def test_a_file_that_ends_early_is_refused_though_the_sample_is_there(decoder, tmp_path):
    with pytest.raises(MediaError, match="truncated or damaged: it ends inside frame"):
        read_video(_cut(tmp_path), frames=1, decoder=decoder)


@pytest.mark.slow
def test_10000_frames_are_sampled_without_being_held(decoder, tmp_path, monkeypatch):
    file = write_clip(tmp_path / "long.mp4", 10_000, (16, 16))
    converted = []
    real = pyav.upright
    monkeypatch.setattr(pyav, "upright", lambda f: converted.append(f.pts) or real(f))
    read = read_video(file, decoder=decoder)
    assert read.total == 10_000
    assert len(read.indices) == 32
    assert read.indices[-1] == 9999
    assert len(converted) == (32 if decoder == "pyav" else 0)
    with pytest.raises(MediaError, match="10000 of 10000 frames are asked for, the limit is 768"):
        read_video(file, frames=10_000, decoder=decoder)


@pytest.mark.parametrize(
    ("limit", "allowed", "words"),
    [
        ("max_frames", 5, "5 of 40 frames are asked for, the limit is 4; give fewer"),
        ("max_pixels", 64 * 48, "64x48 = 3072 pixels a frame, the limit is 3071; scale it down"),
        ("max_bytes", 5 * 64 * 48 * 3, "5 frames of 64x48 take 46080 bytes, the limit is 46079"),
    ],
)
def test_limits(decoder, clip, limit, allowed, words):
    assert len(read_video(clip, frames=5, decoder=decoder, **{limit: allowed}).frames) == 5
    with pytest.raises(MediaError, match=words):
        read_video(clip, frames=5, decoder=decoder, **{limit: allowed - 1})


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"frames": 4, "fps": 2}, "both given"),
        ({"frames": 0}, "at least 1, got 0"),
        ({"fps": 0}, "above zero, got 0"),
        ({"fps": float("nan")}, "above zero, got nan"),
        ({"fps": float("inf")}, "above zero, got inf"),
        ({"frames": 2.5}, "must be an integer, got 2.5"),
        ({"fps": "fast"}, "must be a number, got 'fast'"),
    ],
)
def test_sampling_that_cannot_be(clip, sampling, words):
    with pytest.raises(MediaError, match=words):
        read_video(clip, **sampling)


def test_a_frame_size_that_changes_is_refused(clip, monkeypatch):
    real = pyav.PyAVClip.frames
    monkeypatch.setattr(
        pyav.PyAVClip,
        "frames",
        lambda self, indices: (f[: 48 - 2 * k] for k, f in enumerate(real(self, indices))),
    )
    with pytest.raises(MediaError, match="changes its frame size"):
        read_video(clip, frames=3)


@pytest.mark.parametrize("given", [3, None, "", b"x.mp4", ["x.mp4"]])
@pytest.mark.parametrize(("read", "kind"), [(read_video, "video"), (read_image, "image")])
def test_what_is_no_path_is_said_in_one_line(read, kind, given):
    with pytest.raises(MediaError, match=f"the {kind} must be the path of a file, got") as raised:
        read(given)
    assert "\n" not in str(raised.value)
