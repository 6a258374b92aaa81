"""Every kind of clip, frame by frame beside what decoding it in order shows."""

from array import array
from types import SimpleNamespace
from unittest.mock import Mock

import av
import numpy as np
import pytest
from clip_corpus import HIDDEN, KINDS, UNEVEN, in_order, read_number

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders import index, pyav
from vlmcompress.media.decoders.choice import open_clip
from vlmcompress.media.decoders.clip import compare_times
from vlmcompress.media.decoders.pyav_file import PyAVFile
from vlmcompress.media.video import read_video

REQUESTS = 12

FOR_DECORD = {
    *("h264, B", "h264, B of B", "h264, 10 bits", "hevc, closed groups", "hevc, 10 bits"),
    *("vp8", "vp9", "ffv1", "prores", "uneven, mkv"),
    *("rotated", "one frame", "begins late"),
}
FOR_TORCHCODEC = (
    FOR_DECORD
    | {"av1", "gif", "wmv", "mpeg4, B"}
    | {
        *("h264, open groups", "h264, open groups, mkv", "hevc, open groups"),
    }
)


@pytest.fixture(scope="session")
def shown(corpus):
    """Kind -> all frames in order."""
    return {kind: in_order(path) for kind, path in corpus.items()}


@pytest.fixture(params=list(KINDS))
def kind(request, corpus):
    if request.param not in corpus:
        pytest.skip("this build of PyAV has no encoder for it")
    return request.param


def numbers(kind, frames):
    if kind == "rotated":
        frames = [np.rot90(frame, -1) for frame in frames]
    return [read_number(frame) for frame in frames]


def test_most_kinds_were_made(corpus):
    assert len(corpus) >= 35, f"missing: {set(KINDS) - set(corpus)}"


def test_the_reference_shows_each_frame_once(kind, shown):
    seen = numbers(kind, shown[kind])
    if kind == "one frame":
        assert seen == [0]
    elif kind == "vp8, hidden frames":
        assert seen == [number for number in range(48) if number not in HIDDEN]
    elif kind == "glued, open groups":
        assert seen[:20] == list(range(20))
        assert len(set(seen)) > 30
    else:
        assert seen == list(range(48 - len(seen), 48))
        assert len(seen) == 48 if not kind.startswith(("cut", "trimmed")) else 20 < len(seen) < 48


@pytest.mark.rotating(axis="decoder", by="kind", count=1)
def test_any_frames_are_those_of_decoding_in_order(kind, decoder, corpus, shown):
    expected = shown[kind]
    allowed = {"decord": FOR_DECORD, "torchcodec": FOR_TORCHCODEC}.get(decoder, set(KINDS))
    if kind not in allowed:
        # Some are refused only once a frame comes with another time; none may be wrong.
        try:
            compare(kind, corpus[kind], decoder, expected)
        except MediaError as error:
            refused = str(error)
        else:
            refused = "nothing"
        assert "is not read rightly by" in refused
        return
    compare(kind, corpus[kind], decoder, expected)


def compare(kind, file, decoder, expected):
    """Random requests beside the frames of decoding in order."""
    random = np.random.default_rng(0)
    clip = open_clip(file, decoder, 10_000)
    assert len(clip.index) == len(expected)
    for _ in range(REQUESTS):
        count = int(random.integers(1, min(9, len(expected) + 1)))
        wanted = sorted(random.choice(len(expected), count, replace=False).tolist())
        got = list(clip.frames(wanted))
        right = [expected[index] for index in wanted]
        assert numbers(kind, got) == numbers(kind, right)
        if decoder == "pyav":
            assert all((one == other).all() for one, other in zip(got, right, strict=True))


def test_times_are_those_at_which_frames_are_shown(kind, corpus):
    times = open_clip(corpus[kind], "auto", 10_000).index.times
    assert times[0] == 0
    steps = np.diff(times)
    if "uneven" in kind or "repeated" in kind:
        assert times == pytest.approx([time / 100 for time in UNEVEN], abs=2e-3)
    elif kind == "h264, bare stream":  # it does not say
        assert steps == pytest.approx(np.full(47, 0.04), abs=1e-4)
    elif kind == "vp8, hidden frames":
        assert times == pytest.approx([k / 10 for k in range(48) if k not in HIDDEN], abs=2e-3)
    elif kind == "glued, open groups":
        assert (steps > 0).all()
    else:
        assert steps == pytest.approx(np.full(len(steps), 0.1), abs=2e-3)


def test_any_rate_takes_what_is_shown_at_these_times(kind, corpus, shown):
    names = numbers(kind, shown[kind])
    rate = float(np.random.default_rng(len(kind)).uniform(0.3, 12))
    read = read_video(corpus[kind], fps=rate)
    assert numbers(kind, read.frames) == [names[index] for index in read.indices]
    times = open_clip(corpus[kind], "auto", 10_000).index.times
    end = times[-1] + 1 / read.fps
    asked = np.arange(0, end - 1e-4, 1 / rate)
    expected = np.unique(np.searchsorted(times, asked + 1e-4, side="right") - 1)
    assert read.indices == expected.tolist()


@pytest.mark.parametrize("kind", ["h264, open groups", "hevc, open groups", "h264, B of B"])
def test_a_seek_spares_decoding_what_lies_before(kind, corpus, monkeypatch):
    decoded = []
    real = PyAVFile.decode

    def count(self, packets):
        return ((decoded.append(frame.pts) or frame, whole) for frame, whole in real(self, packets))

    clip = open_clip(corpus[kind], "auto", 10_000)
    monkeypatch.setattr(PyAVFile, "decode", count)
    list(clip.frames([47]))
    assert len(decoded) < 20


def test_packets_that_do_not_say_what_is_hidden(corpus, monkeypatch):
    """Decoding shows it, where a sampled frame lies behind; then all frames are counted."""
    monkeypatch.setattr(index, "_is_hidden", lambda packet: False)
    read = read_video(corpus["vp8, hidden frames"], frames=45)
    assert read.total == 45
    expected = [number for number in range(48) if number not in HIDDEN]
    assert [read_number(frame) for frame in read.frames] == expected


def test_stamps_that_repeat_or_are_missing_name_no_frames():
    opened = SimpleNamespace(has_no_stamps=False)
    assert index._go_by_stamps(index.Packets(stamps=array("q", [0, 2, 1])), opened)
    assert not index._go_by_stamps(index.Packets(stamps=array("q", [0, 1, 1])), opened)
    assert not index._go_by_stamps(index.Packets(without_stamp=True), opened)
    assert not index._go_by_stamps(index.Packets(corrupt={7}), opened)
    opened.has_no_stamps = True
    assert not index._go_by_stamps(index.Packets(stamps=array("q", [0, 2, 1])), opened)


def test_times_that_do_not_go_on_are_a_step_apart():
    stamps = np.array([90, 100, 110, 0, 10, index._UNKNOWN, 20])
    times = index._ascending(stamps, 0.01, 0.04)
    assert times.tolist() == pytest.approx([0, 0.1, 0.2, 0.24, 0.34, 0.38, 0.42])


def test_another_time_than_that_of_the_index_is_refused(corpus):
    known = open_clip(corpus["h264, B"], "auto", 10_000).index
    compare_times("x.mp4", "any", known, [1, 2], [0.1, 0.2])
    for told in ([0.1, 0.3], [0.1, float("nan")]):
        with pytest.raises(MediaError, match=r"frame 2 at .* s instead of 0\.200 s"):
            compare_times("x.mp4", "any", known, [1, 2], told)


def packet(frames, key=False, pts=None):
    """What PyAV makes of a packet: frames, or an error for None."""
    made = SimpleNamespace(is_keyframe=key, pts=pts)
    made.decode = Mock(side_effect=av.error.InvalidDataError(1, "") if frames is None else [frames])
    return made


def frame_of(pts, key=False, corrupt=False):
    return SimpleNamespace(pts=pts, key_frame=key, is_corrupt=corrupt)


def test_what_follows_damage_is_not_whole_until_a_key_frame_that_was_read_after_it(corpus):
    opened = PyAVFile(av, corpus["h264, B"], 10_000)
    packets = [
        packet([], key=True, pts=5),  # read before the damage, shown behind it
        packet(None, pts=6),
        packet([frame_of(5, key=True), frame_of(7)], pts=7),
        packet([frame_of(8)], key=True, pts=9),
        packet([frame_of(9, key=True), frame_of(10)], pts=10),
        packet([frame_of(11, corrupt=True), frame_of(12)], pts=12),
        packet([frame_of(13, key=True)], key=True, pts=13),
    ]
    whole = {frame.pts: fit for frame, fit in opened.decode(packets)}
    assert whole == {5: False, 7: False, 8: False, 9: True, 10: True} | {
        11: False,
        12: False,
        13: True,
    }
    assert opened.broken


def test_the_doubt_of_a_container_is_no_damage(corpus):
    opened = PyAVFile(av, corpus["h264, B"], 10_000)
    opened.doubted = {3}
    assert [
        fit for _, fit in opened.decode([packet([frame_of(3, corrupt=True), frame_of(4)])])
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("first", "whole"),
    [
        ({"pict_type": 1, "key_frame": True, "pts": 9}, True),
        ({"pict_type": 2, "key_frame": True, "pts": 9}, False),
        ({"pict_type": 1, "key_frame": False, "pts": 9}, False),
        ({"pict_type": 1, "key_frame": True, "pts": 10}, False),
    ],
)
def test_what_follows_a_false_key_frame_is_not_whole(first, whole):
    leading, after = SimpleNamespace(pts=7), SimpleNamespace(pts=11)
    frames = [(leading, True), (SimpleNamespace(**first), True), (after, True)]
    assert [(f.pts, fit) for f, fit in pyav._from_key(iter(frames), 9)] == [
        (first["pts"], whole),
        (11, whole),
    ]
