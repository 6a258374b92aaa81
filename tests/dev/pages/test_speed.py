"""docs/speed.md is what the committed figures say."""

import json

import pytest

from dev.pages import speed as speed_page
from dev.pages.speed_selection import costs, named
from dev.pages.speed_tower import towers


def test_the_page_is_up_to_date():
    assert speed_page.PAGE.read_text() == speed_page.page()


def test_kernels_get_a_table_once_a_gpu_has_run_them(monkeypatch, tmp_path):
    monkeypatch.setattr(speed_page, "RESULTS", tmp_path)
    assert "no figure of one exists" in speed_page.gpu()
    made_on = {"device": "H100", "threads": 16, "date": "d", "command": "c"}
    made_on["versions"] = {"torch": "2", "transformers": "5"}
    row = {"op": "take", "shape": "s", "torch": {"ms": 2.0}, "triton": {"ms": 0.5}}
    row |= {"floor_ms": None, "times_as_fast": 4.0}
    content = {"provenance": made_on, "rows": [row]}
    (tmp_path / "kernels_gpu.json").write_text(json.dumps(content))
    assert "| `take` | s | 2 | 0.5 | - | 4.00 |" in speed_page.gpu()


def row(method, share, model="m", limit=0.01):
    made = {"model": model, "picture": "tiles", "method": method, "stage": "projector", "keep": 64}
    made |= {"ms": 1.0, "prefill_ms": 9.0, "share": share, "limit": limit}
    return made | {"above": share > limit}


def test_a_method_above_the_limit_is_named_with_its_reason(tmp_path):
    made_on = {"device": "CPU", "threads": 2, "date": "d", "command": "c", "prefill": "p"}
    made_on["versions"] = {"torch": "2", "transformers": "5"}

    def page(*rows):
        content = {"provenance": made_on, "rows": rows}
        (tmp_path / "selection_cost.json").write_text(json.dumps(content))
        return costs(tmp_path)

    shown = page(row("zoo-prune", 0.3), row("zoo-prune", 0.015, "small", 0.02), row("scope", 0.01))
    assert "the limit: 1 % of m, 2 % of small" in shown
    assert "- `zoo-prune` (30.0 % of m) runs the last layer" in shown
    assert "**30.00 %**" in shown
    assert "| 1.50 % |" in shown
    assert "Above it" not in page(row("scope", 0.01))
    with pytest.raises(KeyError, match="scope"):
        page(row("scope", 0.02))


def test_a_row_of_another_run_says_on_what_it_was_measured(tmp_path):
    made_on = {"device": "CPU", "threads": 2, "date": "d", "command": "c", "prefill": "p"}
    made_on["versions"] = {"torch": "2", "transformers": "5"}
    rows = [row("scope", 0.01), row("clse", 0.01) | {"measured": {"date": "e", "command": "x"}}]
    rows += [row("pool", 0.0) | {"measured": {"commit": "what the page does not tell"}}]
    (tmp_path / "selection_cost.json").write_text(json.dumps({"provenance": made_on, "rows": rows}))
    shown = costs(tmp_path)
    assert "CPU, 2 threads, torch 2, transformers 5, d; `c`.\n\n`clse`: CPU, 2 threads" in shown
    assert "transformers 5, e; `x`.\n\n| model" in shown
    assert shown.count("CPU, 2 threads") == 2


def test_towers_with_and_without_mergers(tmp_path):
    content = json.loads((speed_page.RESULTS / "encoder_stage.json").read_text())

    def page(*more):
        shown = content | {"timed": [*content["timed"][:1], *more]}
        (tmp_path / "encoder_stage.json").write_text(json.dumps(shown))
        return towers(tmp_path)

    assert "merge in the layers" not in page()
    merged = content["timed"][0] | {"method": "tome(stage='encoder')"}
    shown = page(merged | {"measured": {"date": "tomorrow"}})
    assert "\n\n`tome(stage='encoder')` merge in the layers of the tower." in shown
    assert "\n\n`tome(stage='encoder')`: CPU AMD EPYC, 2 threads, tomorrow.\n\n| model" in shown


def test_a_choice_that_takes_long_inside_a_model_is_named_with_its_reason():
    rows = [{"method": "hiprune", "selector_overhead": share} for share in (0.01, 0.021, 0.03)]
    rows.append({"method": "scope", "skipped": "it cannot"})
    assert "- `hiprune` (up to 3.0 %) works out what every token receives" in named(rows)
    assert named(rows[:1]) == ""
    with pytest.raises(KeyError, match="pool"):
        named([{"method": "pool", "selector_overhead": 0.5}])
