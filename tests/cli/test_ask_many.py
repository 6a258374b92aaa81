"""`vlmcompress ask` about a folder, several files and the rows of a file."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlmcompress
from vlmcompress.asking import many
from vlmcompress.asking.many import ManyAsker
from vlmcompress.asking.questions import of_file
from vlmcompress.asking.setting import setting_of

ROOT = Path(vlmcompress.__file__).parents[1]
QUESTION = "what color is the circle ?"
SHORT = ("--max-new-tokens", 2, "--device", "cpu", "--dtype", "float32")


def pictures(folder, count, sizes=((96, 96), (120, 96), (96, 130))):
    """Noise of a few sizes, in turn."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_is_asked_one_by_one_and_answers_are_those_of_single_calls(
    cli, loaded, tiny_llava, tmp_path
):
    folder = pictures(tmp_path / "p", 5)
    (folder / "notes.txt").write_text("no picture")
    result = cli("ask", folder, QUESTION, "--budget", 20, *SHORT)
    assert result.exit_code == 0, result.output
    assert "1 files in" in result.stderr
    found = rows_of(result.stdout)
    assert [row["image"] for row in found] == sorted(map(str, folder.glob("*.png")))
    for row in found:
        alone = vlmcompress.ask(*tiny_llava, row["image"], QUESTION, budget=20, max_new_tokens=2)
        assert row["answer"] == alone.answer
        assert (row["tokens"], row["kept"], row["mean"]) == (144, 20, 20)
        assert (row["model"], row["method"], row["budget"]) == ("tiny-llava", "divprune", "20")


def test_pictures_of_one_size_share_a_batch(cli, loaded, tmp_path, monkeypatch):
    sizes, plain = [], ManyAsker._generate
    monkeypatch.setattr(
        ManyAsker,
        "_generate",
        lambda self, handle, prompts: (sizes.append(len(prompts)), plain(self, handle, prompts))[1],
    )
    folder = pictures(tmp_path / "p", 9)
    assert cli("ask", folder, QUESTION, "--batch", 2, *SHORT).exit_code == 0
    assert sizes == [2, 1] * 3


def test_rows_of_a_file_with_ids_questions_of_their_own_and_errors(cli, loaded, tmp_path):
    pictures(tmp_path, 2)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"id": 7, "image": "000.png", "question": "what is this ?"},
        {"images": ["000.png", "001.png"]},
        {"image": "bad.png", "question": "what ?"},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("ask", file, QUESTION, *SHORT)
    assert result.exit_code == 1
    assert "1 of 3 rows have an error" in result.stderr
    found = rows_of(result.stdout)
    assert (found[0]["id"], found[0]["question"]) == (7, "what is this ?")
    assert (found[1]["question"], found[1]["tokens"]) == (QUESTION, 288)
    assert "not an image" in found[2]["error"]
    assert "answer" not in found[2]


def test_csv_in_and_out(cli, loaded, tmp_path):
    pictures(tmp_path, 2)
    file, out = tmp_path / "q.csv", tmp_path / "a.csv"
    file.write_text(
        'image,question,images\n000.png,"what, then ?",\n'
        ',"two\nlines","[""000.png"", ""001.png""]"\n'
    )
    assert cli("ask", file, "--out", out, *SHORT).exit_code == 0
    with out.open(newline="") as opened:
        first, second = csv.DictReader(opened)
    assert (first["image"], first["question"]) == ("000.png", "what, then ?")
    assert json.loads(second["images"]) == ["000.png", "001.png"]
    assert second["question"] == "two\nlines"
    whole = out.read_bytes()
    assert cli("ask", file, "--out", out, "--resume", *SHORT).exit_code == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("suffix", "torn"),
    [
        pytest.param(".jsonl", b"", marks=pytest.mark.slow),
        (".jsonl", b'{"image": "half'),
        (".csv", b',a.png,,,"half\nof it'),
    ],
)
def test_stopped_and_resumed_gives_the_file_of_one_run(
    cli, loaded, tmp_path, monkeypatch, suffix, torn
):
    monkeypatch.setattr(many, "BATCHES", 3)
    folder = pictures(tmp_path / "p", 8)
    command = ("ask", folder, QUESTION, "--batch", 1, *SHORT)  # windows of 3
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    assert cli(*command, "--out", one).exit_code == 0
    plain, calls = ManyAsker._generate, []

    def interrupted(self, handle, prompts):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(self, handle, prompts)

    monkeypatch.setattr(ManyAsker, "_generate", interrupted)
    stopped = cli(*command, "--out", two)
    assert stopped.exit_code == 130
    assert "--resume goes on" in stopped.stderr
    assert one.read_bytes().startswith(two.read_bytes())
    with two.open("ab") as file:  # rows of the window that was being written, the last one torn
        file.write(one.read_bytes()[len(two.read_bytes()) :].split(b"\n")[0] + b"\n" + torn)
    assert cli(*command, "--out", two, "--resume").exit_code == 0
    assert two.read_bytes() == one.read_bytes()
    assert len(calls) == 5 + 5


def test_a_file_of_other_settings_or_questions_is_not_gone_on_with(cli, loaded, tmp_path):
    folder, out = pictures(tmp_path / "p", 2), tmp_path / "a.jsonl"
    assert cli("ask", folder, QUESTION, "--out", out, *SHORT).exit_code == 0
    whole = out.read_bytes()

    def refuses(words, *command):
        result = cli("ask", *command, "--out", out, *SHORT)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert out.read_bytes() == whole

    refuses("exists: go on with --resume", folder, QUESTION)
    refuses("other settings", folder, QUESTION, "--resume", "--budget", 9)
    refuses("another question", folder, "what ?", "--resume")
    (folder / "001.png").unlink()
    refuses("more rows than questions", folder, QUESTION, "--resume")


def test_one_that_the_method_refuses_does_not_stop_the_others(cli, loaded, tmp_path, monkeypatch):
    plain = ManyAsker._generate

    def picky(self, handle, prompts):
        if any(prompt[0][0].size == (120, 96) for prompt in prompts):
            raise vlmcompress.VLMCompressError("too wide")
        return plain(self, handle, prompts)

    monkeypatch.setattr(ManyAsker, "_generate", picky)
    result = cli("ask", pictures(tmp_path / "p", 6), QUESTION, *SHORT)
    assert [row.get("error") for row in rows_of(result.stdout)] == [None, "too wide", None] * 2


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("line 2: field 'question' is missing", ["q.jsonl"]),
        ("--compare is for one question", ["p", "q ?", "--compare"]),
        ("--overlay is for one question", ["p", "q ?", "--overlay", "x.png"]),
        ("--out, --resume and --batch are for", ["p/000.png", "q ?", "--out", "x.jsonl"]),
        ("--resume goes on with the file of --out", ["p", "q ?", "--resume"]),
        ("the name must end in .csv, .jsonl", ["p", "q ?", "--out", "x.txt"]),
        ("there is nothing to ask about in 'empty'", ["empty", "q ?"]),
        ("no question", ["p"]),
        ("the model has no name", ["p", "q ?", "--model", ""]),
        ("a file has no name", ["", "q ?"]),
        ("a file has no name", ["--each", "", "q ?"]),
        ("'p' stands beside a data file", ["q.jsonl", "p"]),
        ("--frames and --fps are for videos", ["p", "q ?", "--frames", 3]),
        ("does not exist", ["--each", "gone.png", "q ?"]),
        ("unknown method 'divprunee'", ["p", "q ?", "--method", "divprunee"]),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    refuses, unloadable, tmp_path, monkeypatch, words, arguments
):
    pictures(tmp_path / "p", 2)
    (tmp_path / "empty").mkdir()
    row = {"image": "p/000.png", "question": "what ?"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + '\n{"image": "p/001.png"}\n')
    monkeypatch.chdir(tmp_path)
    refuses("ask", words, *arguments)


def test_quiet_says_nothing_but_errors(cli, loaded, tmp_path):
    folder = pictures(tmp_path / "p", 1)
    (folder / "x.txt").write_text("x")
    assert cli("ask", folder, QUESTION, "--quiet", *SHORT).stderr == ""
    assert "neither" in cli("ask", folder, QUESTION, *SHORT).stderr


@pytest.mark.slow
def test_ten_thousand_lines_take_no_more_memory_than_a_thousand(tmp_path, tiny_llava, monkeypatch):
    """Of questions and answers; pictures are held a batch at a time, which the stand-in reads."""
    pictures(tmp_path, 1)

    def stand_in(self, handle, questions):
        return [vlmcompress.VLMCompressError(one.text) for one in questions]

    monkeypatch.setattr(ManyAsker, "_answer", stand_in)

    def peak(lines):
        file = tmp_path / "q.jsonl"
        with file.open("w") as opened:
            for number in range(lines):
                row = {"image": "000.png", "question": f"number {number} " + "x" * 200}
                opened.write(json.dumps(row) + "\n")
        asker = ManyAsker(*tiny_llava, setting_of(), batch=8, max_new_tokens=1)
        tracemalloc.start()
        count = sum(len(window) for window in asker.answers(of_file(file, None)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == lines
        return found

    peak(100)
    assert peak(10_000) < 1.5 * peak(1_000)


@pytest.mark.slow
def test_killed_over_two_hundred_files_and_resumed(tmp_path):
    """A process of its own, killed as the system kills: nothing of it runs afterwards."""
    folder = pictures(tmp_path / "p", 200)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(out, *more):
        line = ["-m", "vlmcompress", "ask", folder, QUESTION, "--out", out, *SHORT, *more]
        return subprocess.Popen(
            [sys.executable, *map(str, line)], env=environment, stderr=subprocess.PIPE, text=True
        )

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    whole = command(one)
    assert whole.wait() == 0, whole.stderr.read()
    assert len(one.read_text().splitlines()) == 200
    killed = command(two)
    while not (two.exists() and two.stat().st_size):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < len(two.read_text().splitlines()) < 200
    resumed = command(two, "--resume")
    assert resumed.wait() == 0, resumed.stderr.read()
    assert two.read_bytes() == one.read_bytes()
