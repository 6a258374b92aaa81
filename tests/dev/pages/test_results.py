"""docs/results.md is what the committed figures say."""

import json

from made_up_results import content

from dev.pages import committed_results as committed
from dev.pages import results
from vlmcompress import auto


def test_the_page_is_up_to_date():
    assert results.PAGE.read_text() == results.page(), "run `make readme`"


def test_the_table_of_right_answers(task, monkeypatch):
    figure = {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 9}
    listed = [{"method": name, **figure} for name in ("never", "divprune+fastv", "divprune")]
    figures = {"25%": listed, "12.5%": listed}
    monkeypatch.setattr(auto, "_tables", lambda: {"behind": figures})
    made = content("tiny-llava", pictures=task)
    monkeypatch.setattr(committed, "results", lambda model: {"tiny-llava": made}[model])
    lines = results.accuracy().splitlines()
    assert lines[0] == "| method | 36 tokens | 18 tokens |"
    assert lines[2:-2] == [
        "| `full` | 100.0 | 100.0 |",
        "| `text-only` | 7.1 | 7.1 |",
        "| `random` | 57.1 | - |",
        "| `stride` | 64.3 | - |",
        "| `pool` | 1.4 | - |",
        "| `divprune` | 100.0 | 90.0 |",
        "| `divprune+fastv` | - | 80.0 |",
        "| `auto` | 100.0 | 80.0 |",
    ]
    widths = sorted(
        row["interval"][1] - row["interval"][0]
        for row in task["cases"]
        if row["method"] in results.ACCURATE
    )
    assert len(widths) == 8
    half = (widths[3] + widths[4]) / 4
    for words in (
        "70 held-out questions",
        "`tiny-llava` (144 visual tokens), float32, CPU made up, torch 2, transformers 5",
        f"about {100 * half:.1f} points either way",
        "`auto` takes `divprune`, `divprune+fastv`, chosen by these",
        "(eval/tiny-llava/report.md)",
        "`make accuracy`",
    ):
        assert words in lines[-1], words


def test_the_table_of_clips_also_tells_of_pictures(task, monkeypatch):
    made = content("tiny-qwen", clips=task, pictures={"full": {"accuracy": 0.125}, "scored": 8})
    monkeypatch.setattr(committed, "results", lambda model: {"tiny-qwen": made}[model])
    text = results.clips()
    assert text.startswith("| method | 36 tokens | 18 tokens |")
    assert "right in 12.5 % of 8 questions" in text
    assert "(eval/tiny-qwen/report.md)" in text


def test_speed_table(tmp_path):
    full = {"case": "c", "method": "full", "tokens": [576, 576], "ttft_ms": [30.0, 29.0, 31.0]}
    full |= {"achieved": 0.0, "predicted": 0.0, "ttft_cut": 0.0}
    row = {"case": "c", "method": "divprune", "tokens": [576, 64.0], "ttft_ms": [12.0, 11.0, 13.0]}
    # The bare model of its own turns took 24 ms.
    row |= {"achieved": 0.875, "predicted": 0.9, "ttft_cut": 0.5}
    others = [{**row, "method": "hiprune"}, {"case": "c", "method": "fastv", "skipped": "no"}]
    made_on = {"prompt": {"text": 40}, "cpu": "d", "threads": 2, "dtype": "bfloat16"}
    made_on |= {"versions": {"torch": "2", "transformers": "5"}}
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"cases": {"c": made_on}, "rows": [full, row, *others]}))
    lines = results.speed(file).splitlines()
    assert lines[2:4] == [
        "| c | `full` | 576 of 576 | 30 (29 to 31) | 1.00 | 0 % | 0 % |",
        "| c | `divprune` | 64 of 576 | 12 (11 to 13) | 2.00 | 88 % | 90 % |",
    ]
    assert lines[4] == ""
    assert "d, 2 threads, bfloat16, torch 2, transformers 5" in lines[-1]
    later = {**row, "method": "pool", "measured": {"threads": 1}}
    file.write_text(json.dumps({"cases": {"c": made_on}, "rows": [full, later]}))
    told = results.speed(file).splitlines()[-1]
    assert told == "`pool`: d, 1 threads, bfloat16, torch 2, transformers 5"
