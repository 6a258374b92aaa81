"""Which frames of a video are read, when they are shown, and by which decoder."""

import numpy as np
import pytest
from clip_files import number_of, picture, turned, write_clip

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders import choice
from vlmcompress.media.decoders.pyav import PyAVClip
from vlmcompress.media.video import read_video

INSTALLED = choice.installed()
SHOWN_AS = {"pyav": "PyAV", "torchcodec": "torchcodec", "decord": "decord"}
ONE, FULL = 0x10000, 0x40000000
UNEVEN = [k * 100 + max(0, k - 20) * 100 for k in range(40)]


def test_both_promised_decoders_are_tried_here():
    assert {"pyav", "decord"} <= set(INSTALLED)


@pytest.mark.parametrize(
    ("frames", "indices"),
    [
        (7, [0, 6, 13, 19, 26, 32, 39]),
        (6, [0, 8, 16, 23, 31, 39]),
        (2, [0, 39]),
        (1, [19]),
        (40, list(range(40))),
        (41, list(range(40))),
    ],
)
def test_frames_are_spread_from_the_first_to_the_last(decoder, clip, frames, indices):
    read = read_video(clip, frames=frames, decoder=decoder)
    assert read.indices == indices
    assert [number_of(frame) for frame in read.frames] == indices
    assert read.times == pytest.approx([k / 10 for k in indices])
    assert (read.total, read.fps, read.duration) == (40, pytest.approx(10), pytest.approx(4))
    assert read.decoder == SHOWN_AS[decoder]
    assert read.frames.shape == (len(indices), 48, 64, 3)
    assert read.frames.dtype == np.uint8


def test_all_channels_are_right(decoder, tmp_path):
    read = read_video(
        write_clip(tmp_path / "x.mkv", 5, codec="ffv1", pixels="yuv444p"), decoder=decoder
    )
    expected = np.stack([picture(k, 64, 48) for k in range(5)]).astype(int)
    assert abs(read.frames.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("fps", "indices"),
    [
        (10, list(range(40))),
        (5, list(range(0, 40, 2))),
        (4, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]),
        (1000, list(range(40))),
        (0.25, [0]),
    ],
)
def test_frames_a_second_takes_what_is_shown_at_these_times(decoder, clip, fps, indices):
    read = read_video(clip, fps=fps, decoder=decoder)
    assert read.indices == indices
    assert [number_of(frame) for frame in read.frames] == indices


def test_variable_frame_rate_goes_by_the_timestamps(decoder, tmp_path):
    read = read_video(write_clip(tmp_path / "x.mkv", times=UNEVEN), fps=2, decoder=decoder)
    # From frame 20 on a frame is shown for 0.2 seconds; 2.5 and 3.5 seconds lie inside one.
    assert read.indices == [0, 5, 10, 15, 20, 22, 25, 27, 30, 32, 35, 37]
    assert [number_of(frame) for frame in read.frames] == read.indices
    assert not read.steady
    told = read.metadata()
    times = [index / told["fps"] for index in told["frames_indices"]]
    assert times == pytest.approx(read.times)
    assert times == pytest.approx([UNEVEN[k] / 1000 for k in read.indices])
    assert told["total_num_frames"] / told["fps"] == pytest.approx(read.duration, abs=1e-3)


def test_metadata_of_a_steady_clip_counts_frames(decoder, clip):
    read = read_video(clip, frames=4, decoder=decoder)
    told = read.metadata()
    assert (told["fps"], told["total_num_frames"]) == (pytest.approx(10), 40)
    assert told["frames_indices"] == [0, 13, 26, 39]
    assert (told["width"], told["height"], told["video_backend"]) == (64, 48, SHOWN_AS[decoder])


@pytest.mark.parametrize(("frames", "taken"), [(5, 5), (9, 8), (40, 8), (100, 20), (400, 32)])
def test_by_default_two_frames_a_second_but_8_to_32(tmp_path, frames, taken):
    assert len(read_video(write_clip(tmp_path / "x.mp4", frames)).indices) == taken


CLIPS = {
    "mp4": lambda p: write_clip(p / "x.mp4"),
    "mp4 with its index in front": lambda p: write_clip(p / "x.mp4", movflags="faststart"),
    "mov": lambda p: write_clip(p / "x.mov"),
    "mkv with an uneven rate": lambda p: write_clip(p / "x.mkv", times=UNEVEN),
    "webm": lambda p: write_clip(p / "x.webm", codec="libvpx-vp9"),
    "odd width": lambda p: write_clip(p / "x.mkv", 9, (37, 23), codec="ffv1", pixels="yuv444p"),
    "one pixel": lambda p: write_clip(p / "x.mkv", 9, (1, 1), codec="ffv1", pixels="yuv444p"),
}


@pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS)
def test_both_decoders_give_the_same_frames(tmp_path, make):
    file = make(tmp_path)
    first, second = (read_video(file, frames=6, decoder=name) for name in ("decord", "pyav"))
    assert (first.decoder, second.decoder) == ("decord", "PyAV")
    assert (first.frames == second.frames).all()
    assert first.indices == second.indices
    assert first.times == pytest.approx(second.times, abs=1e-3)
    assert len({frame.tobytes() for frame in first.frames}) > 1


TURNS = {
    1: (0, -ONE, 0, ONE, 0, 0, 0, 64 * ONE, FULL),
    2: (-ONE, 0, 0, 0, -ONE, 0, 64 * ONE, 48 * ONE, FULL),
    3: (0, ONE, 0, -ONE, 0, 0, 48 * ONE, 0, FULL),
}


@pytest.mark.parametrize("turns", TURNS)
def test_rotation_is_honoured(decoder, clip, tmp_path, turns):
    file = turned(clip, tmp_path / "x.mp4", TURNS[turns])
    upright = read_video(file, frames=3, decoder=decoder)
    expected = np.rot90(read_video(clip, frames=3).frames, turns, axes=(1, 2))
    assert upright.frames.shape == expected.shape
    # decord turns before it converts the colours, so that edges of chroma may differ.
    assert abs(upright.frames.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("name", ["x.ts", "x.h264", "x.gif"])
def test_decord_is_refused_what_it_would_get_wrong(tmp_path, name):
    """It returns wrong frames of a transport stream, and opens neither of the other two."""
    gif = {"codec": "gif", "pixels": "rgb8"} if name == "x.gif" else {}
    file = write_clip(tmp_path / name, **gif)
    with pytest.raises(MediaError, match=r"is not read rightly by decord: .*take 'pyav'"):
        read_video(file, decoder="decord")
    read = read_video(file, frames=5)
    assert read.decoder == "PyAV"
    if not gif:  # 8 levels of red are too few to tell frames
        assert [number_of(frame) for frame in read.frames] == read.indices == [0, 10, 19, 29, 39]


def test_pyav_is_preferred_and_named(clip):
    assert read_video(clip, frames=2).decoder == "PyAV"


def test_an_unknown_decoder(clip):
    with pytest.raises(MediaError, match="'ffmpeg' is unknown: give one of 'auto', 'pyav', "):
        read_video(clip, decoder="ffmpeg")


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_what_is_not_installed_is_named_with_what_to_install(monkeypatch, clip, error):
    missing = {"decord"}
    real = choice.importlib.import_module

    def load(name):
        if name in missing:
            raise error(f"no {name}")
        return real(name)

    monkeypatch.setattr(choice.importlib, "import_module", load)
    assert read_video(clip, frames=2).decoder == "PyAV"
    with pytest.raises(MediaError, match=r"'decord' is not installed: .*pip install decord"):
        read_video(clip, decoder="decord")
    missing.add("av")
    with pytest.raises(MediaError, match=r'PyAV, .* pip install "vlmcompress\[video\]"'):
        read_video(clip)


def test_where_pyav_lacks_the_codec_another_decoder_takes_over(clip, monkeypatch):
    """Then nothing but the packets tells what is shown, and decord has to agree with them."""
    real = PyAVClip.__init__

    def without_codec(self, *args):
        real(self, *args)
        self.decodes = False

    monkeypatch.setattr(PyAVClip, "__init__", without_codec)
    read = read_video(clip, frames=5)
    assert read.decoder in ("torchcodec", "decord")
    assert [number_of(frame) for frame in read.frames] == read.indices
    with pytest.raises(MediaError, match="in a codec that no installed decoder has"):
        read_video(clip, decoder="pyav")


def test_a_decord_bridge_of_the_user_does_no_harm(clip):
    decord = INSTALLED["decord"]
    decord.bridge.set_bridge("torch")
    try:
        read = read_video(clip, frames=2, decoder="decord")
    finally:
        decord.bridge.set_bridge("native")
    assert [number_of(frame) for frame in read.frames] == [0, 39]


def test_pyav_seeks_to_the_key_frame_before_a_sample(clip, monkeypatch):
    passed = []
    real = PyAVClip._follow

    def count(self, shown, first):
        return real(self, ((passed.append(f.pts) or f, whole) for f, whole in shown), first)

    monkeypatch.setattr(PyAVClip, "_follow", count)
    assert [number_of(f) for f in read_video(clip, frames=2).frames] == [0, 39]
    assert 2 <= len(passed) <= 1 + 12, "the frames in between were decoded as well"
