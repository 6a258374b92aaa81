"""Files that are not what they seem: pipes, playlists, false claims, names that look like URLs."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from clip_corpus import encode, glued, numbered, read_number
from clip_files import write_clip

import vlmcompress
from vlmcompress.errors import MediaError
from vlmcompress.media.decoders import index, mp4_claims
from vlmcompress.media.decoders.choice import open_clip
from vlmcompress.media.decoders.pyav_file import PyAVFile
from vlmcompress.media.images import read_image
from vlmcompress.media.video import read_video

ROOT = Path(vlmcompress.__file__).parents[1]


@pytest.fixture
def in_time():
    """Fail after ten seconds instead of waiting for ever."""

    def stop(*args):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [read_image, read_video])
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_only_regular_files_are_opened(in_time, tmp_path, read, kind):
    path = tmp_path / "x"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path = Path("/dev/zero")
    with pytest.raises(MediaError, match=f"is {kind}, only regular files are read"):
        read(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(MediaError, match=f"is {kind}, only regular files are read"):
        read(link)


def test_a_link_to_a_file_is_followed(clip, tmp_path):
    (tmp_path / "link.mp4").symlink_to(clip)
    assert read_video(tmp_path / "link.mp4", frames=2).total == 40


@pytest.mark.parametrize("name", ["concat:x.mp4", "a:b.mp4", "%03d.mp4", b"\xff\xfe.mp4"])
def test_a_name_is_only_a_name(tmp_path, monkeypatch, clip, name):
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(name)).write_bytes(clip.read_bytes())
    assert read_video(os.fsdecode(name), frames=2).total == 40


def test_a_playlist_opens_nothing(tmp_path):
    """It would read any file of this machine, under the name of a video."""
    write_clip(tmp_path / "a.ts")
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile a.ts\n")
    with av.open(str(tmp_path / "x.mp4")) as bare:
        assert bare.format.name == "concat"
    with pytest.raises(MediaError, match="not a video"):
        read_video(tmp_path / "x.mp4")


def test_tags_in_another_encoding(tmp_path):
    file = tmp_path / "x.mkv"
    with av.open(str(file), "w") as container:
        container.metadata["title"] = "ABCDEFGH"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), "rgb24")))
        container.mux(stream.encode())
    data = file.read_bytes()
    assert b"ABCDEFGH" in data
    file.write_bytes(data.replace(b"ABCDEFGH", b"\xff\xfe\xe9\xe8ABCD"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(file))
    assert [read_number(frame) for frame in read_video(file).frames] == [0, 1, 2]


def patched(path, file, box, **values):
    """A copy whose first `box` holds other numbers at these places of its contents."""
    data = bytearray(file.read_bytes())
    start = data.find(box.encode()) + 4
    for place, value in values.items():
        at = start + int(place.lstrip("at"))
        data[at : at + 4] = struct.pack(">I", value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_2_600_000_000_frames_in_a_small_file(in_time, tmp_path, clip, decoder):
    """Of such a file decord makes a table, which aborts the process."""
    file = patched(tmp_path / "x.mp4", clip, "stts", at8=2_600_000_000)
    if decoder == "auto":
        assert read_video(file, frames=2).total == 40
        return
    with pytest.raises(MediaError, match="claims 2600000000 frames and has 40"):
        read_video(file, decoder=decoder)


@pytest.mark.parametrize("claimed", [50_000_000, 2_600_000_000])
def test_a_table_larger_than_any_file_is_not_made(in_time, tmp_path, clip, claimed):
    """FFmpeg would take gigabytes and not stop at Ctrl-C."""
    file = patched(tmp_path / "y.mp4", clip, "stts", at8=claimed)
    file = patched(tmp_path / "x.mp4", file, "stsz", at4=1, at8=claimed)
    with pytest.raises(MediaError, match=f"claims {claimed} samples of 1 bytes and holds"):
        read_video(file)


def test_what_is_claimed_by_sound_files_and_others_is_left_alone(corpus):
    assert {mp4_claims.impossible_claim(file) for file in corpus.values()} == {None}


def test_more_frames_than_an_index_holds(monkeypatch, clip):
    monkeypatch.setattr(index, "MOST_FRAMES", 39)
    with pytest.raises(MediaError, match="over 39 frames: cut it first"):
        read_video(clip, frames=2)


def test_a_frame_size_that_changes_in_the_file(tmp_path):
    small, large = write_clip(tmp_path / "a.ts", 20), write_clip(tmp_path / "b.ts", 20, (80, 60))
    with pytest.raises(MediaError, match="changes its frame size"):
        read_video(glued(small, large, tmp_path / "x.ts"), frames=4)


def test_large_frames_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    file = encode(tmp_path / "x.mp4", 3)
    monkeypatch.setattr(PyAVFile, "decode", lambda *a: pytest.fail("it was decoded"))
    with pytest.raises(MediaError, match="64x48 = 3072 pixels a frame, the limit is 3000"):
        read_video(file, max_pixels=3000)


def test_damage_that_is_not_sampled_does_no_harm(tmp_path):
    """What cannot be decoded costs the frames up to the next key frame and no others."""
    file = encode(tmp_path / "x.mkv", bf="0")
    with av.open(str(file)) as container:
        hit = next(p for k, p in enumerate(container.demux(video=0)) if k == 20)
        payload = bytes(hit)
    data = file.read_bytes()
    assert data.count(payload) == 1
    file.write_bytes(data.replace(payload, bytes(len(payload))))
    kept = read_video(file, frames=6)
    assert kept.indices == [0, 9, 19, 28, 38, 47]
    assert [read_number(frame) for frame in kept.frames] == kept.indices
    for lost in (20, 23):
        with pytest.raises(MediaError, match=f"frame {lost} cannot be decoded"):
            list(open_clip(file, "auto", 10_000).frames([lost]))


def test_ctrl_c_ends_reading(tmp_path):
    file = write_clip(tmp_path / "x.avi", 2000, (64, 64), codec="mpeg4")
    code = (
        # what a shell runs in the background is born deaf to it
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from vlmcompress.media.video import read_video; print('go', flush=True)\n"
        "while True: read_video(sys.argv[1], frames=700)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=10)
        finally:
            process.kill()
    assert told.rstrip().endswith("KeyboardInterrupt")


def test_few_numbers_are_kept_of_many_frames():
    """Eight bytes each: the index of ten million frames fits anywhere."""
    times = index._ascending(np.arange(0, 2_000_000, dtype=np.int64), 0.1, 0.1)
    assert times.nbytes == 16_000_000
    assert times[-1] == pytest.approx(199_999.9)
