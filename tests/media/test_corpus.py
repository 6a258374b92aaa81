"""Every kind of clip, frame by frame beside what decoding it in order shows."""

import numpy as np
import pytest
from clip_corpus import KINDS, UNEVEN, in_order, read_number

from vlmcompress.errors import MediaError
from vlmcompress.media.decoders.choice import open_clip
from vlmcompress.media.video import read_video

REQUESTS = 12

FOR_DECORD = {
    *("h264, B", "h264, B of B", "h264, 10 bits", "hevc, closed groups", "hevc, 10 bits"),
    *("vp8, hidden frames", "vp9, hidden frames", "ffv1", "prores", "uneven, mkv"),
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
    elif kind == "glued, open groups":
        assert seen[:20] == list(range(20))
        assert len(set(seen)) > 30
    else:
        assert seen == list(range(48 - len(seen), 48))
        assert len(seen) == 48 if not kind.startswith(("cut", "trimmed")) else 20 < len(seen) < 48


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
