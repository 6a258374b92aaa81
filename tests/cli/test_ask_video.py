"""`vlmcompress ask` about videos."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import write_clip, write_sound
from PIL import Image

import vlmcompress
from vlmcompress.media.decoders import choice
from vlmcompress.media.video import read_video

SAMPLES = Path(vlmcompress.__file__).parent / "assets" / "samples"
QUESTION = "which way does the circle move ?"
SHORT = ("--max-new-tokens", 2, "--device", "cpu", "--dtype", "float32")


def ask(cli, *arguments):
    """The JSON document that `ask` prints."""
    result = cli("ask", *arguments, *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def fails(cli, tmp_path):
    """Check that a call is refused with exit code 2 and one line that matches `pattern`."""

    def check(pattern, *arguments):
        result = cli("ask", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert re.match(f"error: .*{pattern}", result.stderr), result.stderr

    return check


def test_a_clip_is_asked_about_with_the_built_in_video_model(cli, loaded, clip):
    document = ask(cli, "--video", clip, QUESTION, "--budget", "25%")
    assert [name for name, _ in loaded] == ["tiny-qwen"]
    assert document["model"] == "tiny-qwen"
    (image,) = document["report"]["images"]
    assert image["grid"][0] == 4
    assert image["after"] == image["before"] // 4
    counts = image["per_frame"]
    assert len(counts["after"]) == 4
    assert sum(counts["after"]) == image["after"]
    assert counts["last"] == counts["after"]
    assert document["images"] == []
    (told,) = document["videos"]
    assert told["file"] == str(clip)
    assert told["decoder"] == "PyAV"
    assert told["frame_indices"] == list(range(8))
    assert told["timestamps"] == pytest.approx([k / 4 for k in range(8)])
    assert (told["size"], told["frames_total"]) == ([96, 96], 8)


def test_the_answer_is_that_of_the_python_interface(cli, loaded, tiny_qwen, clip):
    model, processor = tiny_qwen
    read = read_video(clip, frames=6)
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    inputs = processor(
        videos=[read.frames],
        video_metadata=[read.metadata()],
        text=processor.apply_chat_template([turn], add_generation_prompt=True),
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert "mm_token_type_ids" in inputs
    with vlmcompress.compress(model, "divprune", 40) as c, torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    document = ask(cli, clip, QUESTION, "--frames", 6, "--budget", 40)
    assert document["answer"] == processor.decode(new, skip_special_tokens=True).strip()
    assert document["report"]["images"] == json.loads(c.report().to_json())["images"]
    assert document["videos"][0]["frame_indices"] == read.indices == [0, 1, 3, 4, 6, 7]


def test_a_video_is_known_by_its_name(cli, loaded, clip, picture):
    document = ask(cli, clip, picture, "what ?", "--fps", 2)
    assert document["images"] == [str(picture)]
    assert [told["file"] for told in document["videos"]] == [str(clip)]
    assert document["videos"][0]["frame_indices"] == [0, 2, 4, 6]
    assert [image["grid"][0] for image in document["report"]["images"]] == [2, 1]


def test_several_clips_in_order(cli, loaded, clip, tmp_path):
    other = write_clip(tmp_path / "x.mkv", 4, (96, 96))
    document = ask(cli, "--video", other, "--video", clip, "-q", "what ?")
    assert [told["file"] for told in document["videos"]] == [str(other), str(clip)]
    assert [image["grid"][0] for image in document["report"]["images"]] == [2, 4]


def test_per_frame_budget_keeps_the_same_number_of_every_frame(cli, loaded, clip):
    even = ask(cli, clip, QUESTION, "--budget", "9 per frame")
    assert even["budget"] == even["report"]["budget"] == "9 per frame"
    assert even["report"]["images"][0]["per_frame"]["after"] == [9] * 4
    whole = ask(cli, clip, QUESTION, "--budget", 36)["report"]["images"][0]
    assert whole["after"] == 36
    assert whole["kept"] != even["report"]["images"][0]["kept"]


def test_text_output_counts_frames_and_names_the_decoder(cli, loaded, clip):
    result = cli("ask", clip, QUESTION, "--budget", "9 per frame", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "per frame  9 x4" in result.stdout
    assert "8 of 8 frames by PyAV, at 0.00 0.25 0.50" in result.stdout
    spec = "divprune(ratio=0.5)+fastv(k=2)"
    deeper = cli("ask", clip, QUESTION, "--method", spec, *SHORT).stdout
    assert re.search(r"per frame  .*\d+>\d+", deeper)


def test_overlay_is_a_sheet_of_the_frames(cli, loaded, clip, tmp_path):
    out = tmp_path / "kept.png"
    ask(cli, clip, QUESTION, "--overlay", out)
    with Image.open(out) as page:
        assert page.width == 4 * 320 + 3 * 12


def test_compare_answers_on_all_tokens_too(cli, loaded, clip):
    document = ask(cli, clip, QUESTION, "--compare", "--repeat", 1)
    assert document["full"]["tokens"]["before"] == document["full"]["tokens"]["after"]
    assert document["reduced"]["tokens"]["after"] == document["full"]["tokens"]["after"] // 4


def test_a_clip_of_one_pixel_is_enlarged(cli, loaded, tmp_path):
    dot = write_clip(tmp_path / "dot.mkv", 4, (1, 1), codec="ffv1", pixels="yuv444p")
    assert ask(cli, dot, "what ?")["videos"][0]["size"] == [1, 1]


def test_a_family_without_videos(fails, loaded, clip):
    fails(
        "llava models take images but no videos; .*qwen2_5_vl",
        *(clip, "what ?", "--model", "tiny-llava"),
    )


def test_a_processor_with_one_place_for_pixels(
    fails, loaded, clip, picture, tiny_qwen, monkeypatch
):
    _, processor = tiny_qwen
    monkeypatch.setattr(processor.video_processor, "model_input_names", ("pixel_values",))
    fails("takes images or videos in one prompt, not both", clip, picture, "what ?")


def test_a_clip_that_no_processor_takes(fails, loaded, tmp_path):
    strip = write_clip(tmp_path / "x.mkv", 4, (1000, 2), codec="ffv1", pixels="yuv444p")
    fails("processor refuses the input: .*200", strip, "what ?", "--device", "cpu")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.mp4", r"video .*none\.mp4' does not exist"),
        (lambda p: p, "is a folder"),
        (lambda p: _write(p / "x.mp4", b""), "empty file"),
        (
            lambda p: _write(p / "x.mp4", b"\0\0\0\x18ftypmp42" + b"x" * 99),
            "damaged or not a video",
        ),
        (lambda p: write_sound(p / "x.mp4"), "no video stream"),
    ],
    ids=["missing", "folder", "empty", "truncated", "sound only"],
)
def test_bad_files(fails, unloadable, tmp_path, make, words):
    fails(words, "--video", make(tmp_path), "what ?")


def test_an_image_given_as_video(fails, unloadable, picture):
    fails("is an image, not a video: give it with --image", "--video", picture, "what ?")


def test_missing_decoders(fails, unloadable, clip, monkeypatch):
    monkeypatch.setattr(choice, "_load", lambda name: None)
    fails(r'PyAV, .*, is not installed: pip install "vlmcompress\[video\]"', clip, "what ?")


def test_a_decoder_on_request(cli, loaded, clip):
    document = ask(cli, "--video", clip, QUESTION, "--decoder", "decord")
    assert document["videos"][0]["decoder"] == "decord"
    assert document["videos"][0]["frame_indices"] == list(range(8))


def test_a_decoder_that_cannot_be(fails, unloadable, tmp_path, clip, picture):
    fails("'x' is unknown: give one of 'auto', 'pyav'", clip, "what ?", "--decoder", "x")
    fails("--decoder is for videos", picture, "what ?", "--decoder", "pyav")
    stream = write_clip(tmp_path / "x.ts", 8)
    fails("not read rightly by decord: .*pyav", stream, "what ?", "--decoder", "decord")


def test_a_pipe_is_refused_at_once(fails, unloadable, tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    fails("is a FIFO, only regular files are read", "--video", tmp_path / "x.mp4", "what ?")
    fails("is a FIFO, only regular files are read", "--image", tmp_path / "x.mp4", "what ?")


def test_sampling_that_cannot_be(fails, unloadable, clip, picture):
    fails("--frames and --fps are both given", clip, "what ?", "--frames", 4, "--fps", 2)
    fails("--frames and --fps are for videos", picture, "what ?", "--frames", 4)
    fails("at least 1, got 0", clip, "what ?", "--frames", 0)
    fails("above zero, got -1", clip, "what ?", "--fps", -1)


def test_too_many_frames(fails, unloadable, tmp_path):
    long = write_clip(tmp_path / "long.mp4", 1000, (16, 16))
    fails("1000 of 1000 frames are asked for, the limit is 768", long, "what ?", "--frames", 1000)


def test_a_budget_above_a_frame_keeps_it_whole_and_says_so(cli, loaded, clip):
    found = cli("ask", clip, "what ?", "--budget", "1000 per frame", "--model", "tiny-qwen")
    assert found.exit_code == 0, found.output
    assert "tokens     144 -> 144" in found.stdout
    assert re.search(r"^note       .*1000", found.stdout, re.MULTILINE)


def test_a_damaged_file_is_one_line_though_libraries_talk(tmp_path, clip):
    """In a process of its own: decord writes to the file descriptor, past Python's stderr."""
    data = clip.read_bytes()
    bad = _write(tmp_path / "x.mp4", data[: len(data) // 2])
    code = "import sys; sys.argv[0] = 'vlmcompress'; from vlmcompress.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", str(bad), "what ?"],
        env={**os.environ, "PYTHONPATH": str(Path(vlmcompress.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*truncated, damaged or not a video.*\n", done.stderr)


def test_stderr_is_put_back(capfd, clip):
    from vlmcompress.cli.common import silent_libraries

    def talk():
        with silent_libraries():
            os.write(2, b"from a library")
            raise KeyError

    with pytest.raises(KeyError):
        talk()
    os.write(2, b"from a person")
    assert capfd.readouterr().err == "from a person"


def _write(path, data):
    path.write_bytes(data)
    return path


def test_the_frames_reach_the_model_as_they_were_read(cli, loaded, clip, tiny_qwen, monkeypatch):
    _, processor = tiny_qwen
    seen = {}
    real = type(processor).__call__

    def spy(self, *args, **kwargs):
        seen.update(kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", spy)
    ask(cli, clip, QUESTION, "--frames", 4)
    assert (np.asarray(seen["videos"][0][0]) == read_video(clip, frames=4).frames).all()
    assert seen["do_sample_frames"] is False
    assert seen["cap_pixels_per_frame"] is False
    assert seen["video_metadata"][0]["frames_indices"] == [0, 2, 5, 7]


def test_the_built_in_model_answers_the_sample_clips(cli, loaded):
    """With all tokens and, for the one of the README, with a quarter of them."""
    samples = json.loads((SAMPLES / "clips.json").read_text())
    answers = {
        name: ask(cli, SAMPLES / name, expected["question"], "--method", "full")["answer"]
        for name, expected in samples.items()
    }
    wrong = [name for name, expected in samples.items() if answers[name] != expected["answer"]]
    assert len(wrong) <= 1
    document = ask(cli, "--video", SAMPLES / "runway.mp4", QUESTION, "--budget", "25%")
    assert document["answer"] == samples["runway.mp4"]["answer"] == "right"


def test_a_clip_in_pieces_is_answered_as_the_clip(cli, loaded, clip):
    asked = ("ask", clip, "what appears first ?", "--json", "--budget", "18")
    whole, pieces = (cli(*asked, *more) for more in ((), ("--max-memory", "4MB")))
    assert pieces.exit_code == 0, pieces.stderr
    found, expected = json.loads(pieces.stdout), json.loads(whole.stdout)
    assert found["answer"] == expected["answer"]
    assert "clips were encoded in" in pieces.stdout
    assert "clips were encoded in" not in whole.stdout
    small = cli(*asked, "--max-memory", "1KB")
    assert small.exit_code == 2
    assert "encoding one frame takes" in small.stderr
