"""`vlmcompress calibrate`: a schedule file, whole or not at all."""

import json
import re

import pytest

import vlmcompress
from vlmcompress.calibrate import training_questions
from vlmcompress.methods.adaptinfer import AdaptInfer
from vlmcompress.methods.embedlens import WordTable
from vlmcompress.methods.psigmoid import PSigmoid

METHODS = {"adaptinfer": AdaptInfer, "gsearch": lambda path: PSigmoid(table=path)}


@pytest.mark.parametrize("kind", list(METHODS))
def test_a_schedule_is_written_and_can_be_used(cli, loaded, tmp_path, kind):
    out = tmp_path / "s.json"
    result = cli("calibrate", kind, "--out", out, "--limit", 4, "--budget", "60%", "--seed", 7)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert loaded == [("tiny-llava", {"device": None, "dtype": None})]
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    found = json.loads(out.read_text())
    assert found["kind"] == kind
    assert found["model"] == {"name": "tiny-llava", "layers": 6}
    assert found["measured"]["samples"] == 4
    assert found["measured"]["data"] == "training questions from seed 7"
    assert sum(found["shares"]) / 6 == pytest.approx(0.6, abs=1e-4)
    method = METHODS[kind](str(out))
    assert f'"{method.name}(table=' in result.stdout
    assert method.schedule(6, 144, None)


@pytest.mark.slow
def test_the_seed_and_the_tolerance_reach_the_measurement(cli, loaded, tmp_path):
    found = []
    for seed, tolerance in ((0, 0), (0, 0), (50, 0), (0, 0.9)):
        out = tmp_path / "g.json"
        given = ("--limit", 7, "--seed", seed, "--tolerance", tolerance)
        assert cli("calibrate", "gsearch", "--out", out, *given).exit_code == 0
        found.append(json.loads(out.read_text())["measured"])
    assert found[0] == found[1]
    assert found[0]["found"] != found[2]["found"]
    assert found[3]["tolerance"] == 0.9
    assert found[3]["mean"] < found[0]["mean"]


def test_questions_of_ones_own(cli, loaded, tmp_path):
    lines = []
    for number, asked in enumerate(training_questions(3)):
        asked.picture.resize((120, 80)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": asked.question}))
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(lines))
    out = tmp_path / "s.json"
    given = ("--data", data, "--limit", 2, "--batch", 1)
    assert cli("calibrate", "adaptinfer", "--out", out, *given).exit_code == 0
    measured = json.loads(out.read_text())["measured"]
    assert (measured["samples"], measured["data"]) == (2, str(data))


def test_a_model_of_clips_is_calibrated_on_pictures(cli, loaded, tmp_path):
    out = tmp_path / "s.json"
    given = ("--model", "tiny-qwen", "--limit", 2)
    result = cli("calibrate", "adaptinfer", "--out", out, *given)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["model"] == {"name": "tiny-qwen", "layers": 7}


def test_words_are_written_and_can_be_used(cli, loaded, tmp_path):
    out = tmp_path / "w.json"
    result = cli("calibrate", "embedlens", "--out", out, "--limit", 4)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert "tiny-llava with 4 pictures: training questions from seed 0" in found["origin"]
    assert f"{len(found['sink'])} sink words and {len(found['dead'])} dead" in result.stdout
    assert WordTable.read(str(out)) == WordTable.parse(found)


@pytest.fixture
def fails(cli, tmp_path):
    """Check that a call is refused with one line that matches `pattern`, and writes nothing."""

    def check(pattern, *arguments):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        result = cli("calibrate", *arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert re.match(f"error: .*{pattern}", result.stderr), result.stderr
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    return check


def test_bad_input_is_found_before_a_model_is_loaded(fails, unloadable, tmp_path):
    out = ("--out", tmp_path / "s.json")
    fails("the name must end in .json", "gsearch", "--out", tmp_path / "s.txt")
    fails("there is no folder", "gsearch", "--out", tmp_path / "none" / "s.json")
    fails("did you mean 'tiny-llava'", "gsearch", *out, "--model", "tiny-lava")
    fails("no questions for 'a/b': give --data", "gsearch", *out, "--model", "a/b")
    fails("'64' is no share", "gsearch", *out, "--budget", "64")
    fails("'x' is not understood", "adaptinfer", *out, "--budget", "x")
    fails("--tolerance is for gsearch", "adaptinfer", *out, "--tolerance", "0.1")
    fails("--budget is for schedules", "embedlens", *out, "--budget", "50%")
    fails("does not exist", "adaptinfer", *out, "--data", tmp_path / "none.jsonl")
    (tmp_path / "d.jsonl").write_text("{}")
    fails("line 1 must be like", "adaptinfer", *out, "--data", tmp_path / "d.jsonl")
    fails("--seed is for", "adaptinfer", *out, "--data", tmp_path / "d.jsonl", "--seed", "1")


def test_what_only_the_model_tells_leaves_an_old_file_alone(fails, loaded, tmp_path):
    (tmp_path / "s.json").write_text("old")
    out = ("--out", tmp_path / "s.json", "--limit", "1")
    fails("cannot keep fewer than", "adaptinfer", *out, "--budget", "10%")
    fails("more than 16.67%", "gsearch", *out, "--budget", "10%")
    fails("tolerance must be at least 0 and below 1", "gsearch", *out, "--tolerance", "1")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "d.jsonl").write_text('{"image": "bad.png", "question": "what ?"}')
    fails("not an image", "gsearch", *out, "--data", tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    "arguments", [[], ["nothing", "--out", "s.json"], ["gsearch"], ["gsearch", "--limit", "0"]]
)
def test_usage_errors(cli, arguments):
    result = cli("calibrate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_file_works_where_a_method_is_named(cli, loaded, tmp_path):
    out = tmp_path / "s.json"
    assert cli("calibrate", "adaptinfer", "--out", out, "--limit", 2).exit_code == 0
    model, _ = vlmcompress.load("tiny-llava", device="cpu", dtype="float32")
    with vlmcompress.compress(model, AdaptInfer(str(out)), budget="50%") as handle:
        assert handle.report().budget == "50%"


@pytest.mark.parametrize("kind", ["adaptinfer", "gsearch", "embedlens"])
def test_a_pipe_hears_how_far_it_is(cli, loaded, tmp_path, monkeypatch, kind):
    """By calls of the model, of which there are never more than said."""
    monkeypatch.setattr("vlmcompress.cli.progress_bar.EVERY", 0.0)
    result = cli("calibrate", kind, "--out", tmp_path / "x.json", "--limit", 3, "--batch", 2)
    assert result.exit_code == 0, result.output
    shares = [int(line.split("%")[0]) for line in result.stderr.splitlines()]
    assert shares == sorted(shares)
    assert 30 <= shares[-1] <= 100
