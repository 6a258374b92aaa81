"""`vlmcompress tune`, and what `ask`, `eval` and `serve` make of its profile."""

import json

import pytest
from raced import drawn

import vlmcompress
from vlmcompress.eval.run.store import Store
from vlmcompress.tuned import Tuned

FEW = ("--candidates", "stride,divprune,scope+fastv", "--batch", 2, "--max-new-tokens", 4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures with questions."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for sample in drawn("pictures", 6):
        name = f"{sample.index}.png"
        sample.load()[0].save(folder / name)
        rows.append({"image": name, "question": sample.question})
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tune(cli, loaded, photos, tmp_path):
    """Tune on them."""

    def run(*arguments, out="mine.json", asked="asked.jsonl"):
        given = ("--media", photos, "--out", tmp_path / out, *FEW, *arguments)
        given += () if asked is None else ("--questions", photos / asked)
        return cli("tune", *given)

    return run


def test_a_profile_is_written_and_used(tune, cli, photos, tmp_path, loaded):
    result = tune("--budget", "25%,50%", "--plot", tmp_path / "mine.png", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.png"]
    profile = json.loads((tmp_path / "mine.json").read_text())
    assert profile["model"]["name"] == "tiny-llava"
    assert profile["complete"] is True
    assert profile["made"]["questions"] == str(photos / "asked.jsonl")
    for budget in ("25%", "50%"):
        rows = profile["budgets"][budget]["rows"]
        assert {row["method"] for row in rows} == {"stride", "divprune", "scope+fastv"}
        assert f"{budget}: {rows[0]['method']} says what the whole model says" in result.stdout
        assert f"* {rows[0]['method']}" in result.stdout
        blind = {row["method"]: row["question_blind"] for row in rows}
        assert blind == {"stride": True, "divprune": True, "scope+fastv": False}
    taken = profile["budgets"]["25%"]["rows"][0]["method"]
    ask = (
        "ask",
        photos / "0.png",
        "what ?",
        "--budget",
        "25%",
        "--profile",
        tmp_path / "mine.json",
    )
    answer = json.loads(cli(*ask, "--json").stdout)
    assert answer["report"]["method"] == f"auto: {taken.replace('(', ' (').split(' ')[0]}"
    assert "tuned at 25%" in answer["report"]["reason"]


def test_general_questions_and_only_blind_methods(tune, tmp_path):
    result = tune("--budget", "25%", "--samples", 4, "--question-blind", asked=None)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: candidate scope+fastv reads the question, and --question-blind is set\n"
    )
    blind = ("--candidates", "stride,divprune", "--question-blind", "--objective", "time")
    assert tune("--budget", "25%", "--samples", 4, *blind, asked=None).exit_code == 0
    profile = json.loads((tmp_path / "mine.json").read_text())
    assert profile["made"]["questions"] == "general"
    assert profile["made"]["samples"] == 4
    assert profile["objective"] == "time"


def test_a_killed_run_leaves_no_half_file_and_goes_on(tune, tmp_path, monkeypatch):
    append = Store.append
    room = [5]

    def full(self, name, lines):
        room[0] -= 1
        if room[0] < 0:
            raise KeyboardInterrupt
        append(self, name, lines)

    monkeypatch.setattr(Store, "append", full)
    stopped = tune("--budget", "25%")
    assert stopped.exit_code == 130
    assert "the same command with --resume goes on" in stopped.stderr
    assert not (tmp_path / "mine.json").exists()
    monkeypatch.setattr(Store, "append", append)
    (lines,) = (tmp_path / "mine.tuning").glob("answers-*.jsonl")
    lines.write_text(lines.read_text() + '{"task": "tuning", "torn')
    again = tune("--budget", "25%")
    assert again.exit_code == 2
    assert "holds a run: go on with --resume" in again.stderr
    other = tune("--budget", "50%", "--resume")
    assert other.exit_code == 2
    assert "holds another run" in other.stderr
    assert tune("--budget", "25%", "--resume").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    assert tune("--budget", "25%", out="whole.json").exit_code == 0
    torn, whole = (
        json.loads((tmp_path / name).read_text())["budgets"]["25%"]
        for name in ("mine.json", "whole.json")
    )
    for one, other in zip(torn["rows"], whole["rows"], strict=True):
        assert one["method"] == other["method"]
        assert one["kl"] == pytest.approx(other["kl"])
    assert torn["tied"] == whole["tied"]


def test_a_bound_that_is_too_short(tune, tmp_path):
    result = tune("--budget", "25%", "--minutes", "1e-9")
    assert result.exit_code == 2
    assert "minutes are too short for 5 measurements of a batch of 2" in result.stderr
    assert not (tmp_path / "mine.json").exists()


def test_mistakes_are_found_before_a_model_is_loaded(refuses, unloadable, photos, tmp_path):
    out = ("--out", tmp_path / "mine.json")
    good = (*out, "--media", photos)
    refuses("tune", "the name must end in .json", "--out", tmp_path / "mine.txt")
    refuses("tune", "nothing to ask about: give --media", *out)
    refuses("tune", "is no folder", *out, "--media", tmp_path / "none")
    refuses("tune", "'x' is not understood", *good, "--budget", "x")
    refuses("tune", "0.4 flops cannot be tuned for: give a share", *good, "--budget", "0.4 flops")
    refuses("tune", "8 per frame cannot be tuned for", *good, "--budget", "8 per frame")
    refuses("tune", "did you mean 'divprune'", *good, "--candidates", "divprun")
    refuses("tune", "full takes no budget", *good, "--candidates", "full")
    refuses("tune", "auto takes candidates and is none", *good, "--candidates", "auto")
    refuses("tune", "--minutes must be above 0", *good, "--minutes", "0")
    refuses("tune", "did you mean 'tiny-llava'", *good, "--model", "tiny-lava")
    refuses("tune", "must end in .jsonl or .csv", *good, "--questions", "asked.txt")
    refuses("ask", "cannot read profile", photos / "0.png", "what ?", "--profile", "none.json")
    refuses("eval", "cannot read profile", "--out", tmp_path / "r", "--profile", "none.json")
    refuses("serve", "cannot read profile", "tiny-llava", "--profile", tmp_path / "none.json")
    (tmp_path / "mine.json").write_text("{}")
    refuses("tune", "exists: go on with --resume", *good)
    refuses("ask", "is no profile", photos / "0.png", "what ?", "--profile", tmp_path / "mine.json")


def test_clips_need_a_model_of_clips(cli, loaded, clip, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    given = ("tune", "--media", folder, "--budget", "25%", "--samples", 2, *FEW)
    wrong = cli(*given, "--out", tmp_path / "a.json", "--model", "tiny-llava")
    assert wrong.exit_code == 2
    assert "takes no videos" in wrong.stderr
    right = cli(*given, "--out", tmp_path / "b.json", "--candidates", "stride,pool")
    assert right.exit_code == 0, right.output
    assert json.loads((tmp_path / "b.json").read_text())["model"]["name"] == "tiny-qwen"


def test_eval_asks_what_the_profile_takes(tune, cli, tmp_path):
    assert tune("--budget", "25%,50%").exit_code == 0
    profile = Tuned.read(tmp_path / "mine.json")
    given = ("--tasks", "pictures/color", "--limit", 2, "--budgets", "25%,50%")
    run = cli("eval", "--out", tmp_path / "r", *given, "--profile", tmp_path / "mine.json")
    assert run.exit_code == 0, run.output
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    asked = {(row["method"], row["budget"]) for row in results["tasks"]["pictures/color"]["cases"]}
    for budget in ("25%", "50%"):
        assert (profile.rows(budget)[0]["method"], budget) in asked


def test_serve_takes_the_best_that_it_can_serve(tune, cli, tmp_path):
    assert tune("--budget", "25%").exit_code == 0
    path = tmp_path / "mine.json"
    content = json.loads(path.read_text())
    rows = content["budgets"]["25%"]["rows"]
    rows.sort(key=lambda row: row["method"] != "scope+fastv")
    path.write_text(json.dumps(content))
    given = ("serve", "tiny-llava", "--budget", "25%", "--print")
    result = cli(*given, "--profile", path)
    assert result.exit_code == 0, result.output
    assert f'"method": "{rows[1]["method"]}"' in result.stdout
    assert "fastv acts between decoder layers" in result.stderr
    assert f"the best that can be served is {rows[1]['method']}" in result.stderr
    plain = cli("serve", "tiny-llava", "-m", rows[1]["method"], "-b", "25%", "--print")
    assert plain.stdout == result.stdout
    content["budgets"]["25%"]["rows"] = rows[1:]
    path.write_text(json.dumps(content))
    result = cli(*given, "--profile", path)
    assert result.stderr.startswith(f"note: tuned at 25%: {rows[1]['method']} says")
    content["budgets"]["25%"]["rows"] = rows[:1]
    path.write_text(json.dumps(content))
    none = cli(*given, "--profile", path)
    assert none.exit_code == 2
    assert "has no method at 25% that can be served" in none.stderr
    wrong = cli("serve", "tiny-qwen", "--budget", "25%", "--print", "--profile", path)
    assert "is of another model, tiny-llava: type llava there, qwen2_5_vl here" in wrong.stderr
    both = cli(*given, "--profile", path, "--method", "divprune")
    assert 'give it with "auto", not divprune' in both.stderr


def test_in_python(tiny_llava, photos, tmp_path, loaded):
    found = vlmcompress.tune(
        *tiny_llava,
        photos,
        photos / "asked.jsonl",
        "25%",
        out=tmp_path / "mine.json",
        candidates=["stride", "divprune"],
        samples=4,
        max_new_tokens=4,
    )
    assert str(found).startswith("25%: ")
    taken = found.rows("25%")[0]["method"]
    with vlmcompress.compress(tiny_llava[0], "auto", "25%", profile=tmp_path / "mine.json") as c:
        assert c.report().method == f"auto: {taken}"
    with pytest.raises(vlmcompress.VLMCompressError, match="objective 'speed' is not possible"):
        vlmcompress.tune(*tiny_llava, photos, out=tmp_path / "x.json", objective="speed")
