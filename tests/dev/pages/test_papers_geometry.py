"""docs/papers_geometry.md is what the committed results and the published figures say."""

import re

import numpy as np
import pytest

from dev.pages import committed_results as committed
from dev.pages import papers_agreement, papers_geometry, readme
from dev.pages.papers_agreement import MODEL, TASK, by_kind, measured, our_scores, pooled, verdict
from dev.pages.papers_published import (
    BUDGETS,
    MEASURED_AS,
    blocks,
    counted_otherwise,
    measured_as,
    sources,
)
from dev.pages.papers_ranking import Agreement, Interval
from dev.pages.pictures.papers_geometry import papers_geometry as picture
from vlmcompress.eval.report.text import methods_at, ran
from vlmcompress.methods.composition.spec import parse


@pytest.fixture(scope="module")
def task():
    return committed.results(MODEL)["tasks"][TASK]


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert papers_geometry.PAGE.read_text() == papers_geometry.page(), "run `make readme`"


def test_published_figures_are_of_methods_that_there_are():
    names = [one.paper for one in blocks()]
    assert len(set(names)) == len(names) >= 10
    for block in blocks():
        assert re.fullmatch(r"\d{4}\.\d{5}", block.arxiv)
        assert block.read in sources()
        for method, figures in block.rows.items():
            assert parse(measured_as(method)).methods[0].name == parse(method).methods[0].name
            assert figures
            assert all(50 < figure <= 101 for figure in figures.values())
            # More tokens are never published to be worse.
            assert list(figures.values()) == sorted(figures.values(), reverse=True)
    methods = {method for block in blocks() for method in block.rows}
    assert counted_otherwise().keys() | MEASURED_AS.keys() <= methods
    assert set(BUDGETS) == {b for one in blocks() for row in one.rows.values() for b in row}


def test_methods_whose_counts_differ_act_in_the_decoder():
    decoder = {
        method
        for block in blocks()
        for method in block.rows
        if parse(method).decoder is not None and parse(method).projector is None
    }
    assert decoder == counted_otherwise().keys()


def test_every_method_has_its_line(task):
    lines = papers_geometry.every_method(task).splitlines()[2:]
    shown = [re.match(r"\| `([^`]+)` \|", line)[1] for line in lines]
    rows = [row for row in ran(task) if row["budget"] in BUDGETS]
    assert set(shown) == {row["method"] for row in rows if "seed=" not in row["method"]}
    assert len(set(shown)) == len(shown)
    dashes = [line.count(" - ") for line in lines]
    assert dashes == sorted(dashes)


def test_a_cell_says_all_and_marks_what_is_significant(task):
    row = {"accuracy": 0.5, "interval": [0.25, 0.75], "tokens": {"kept": 64.2}, "target": 64.0}
    task = {"full": {"accuracy": 0.8}}

    def against(full, random):
        told = {"full": full, "random": random}
        return {name: {"holm": p, "difference": d} for name, (p, d) in told.items()}

    def cell(**more):
        return papers_geometry._cell({**row, **more}, task)

    assert papers_geometry._cell(None, task) == "-"
    assert cell() == "50.0 (25 to 75), 62 %"
    assert cell(against=against((0.01, -0.3), (0.01, 0.3))).endswith("62 % ▲ ↓")
    assert cell(against=against((0.2, -0.3), (0.01, -0.3))).endswith("62 % ▼")
    assert cell(tokens={"kept": 25.0}).endswith("62 % [25]")


def test_losers_and_what_could_not_run_are_named(task):
    text = papers_geometry._losers(task)
    losing = {name for one in task["budgets"] for name in one["worse_than_random"]}
    assert losing
    assert all(f"`{name}` (at " in text.splitlines()[1] for name in losing)
    below = papers_geometry._cannot(task)
    assert {row["method"] for row in task["cases"] if "cannot" in row} == {
        line[3:].split("` at ")[0] for line in below.splitlines() if line.startswith("- ")
    }
    floor = "fastv with its first cut before layer 2 cannot keep fewer than 2*576/6 = 192 visual"
    assert f"- `fastv` at 128, 64, 32: {floor} tokens on average.\n" in below


def test_published_figures_stand_beside_ours(task):
    text = papers_geometry.beside(task)
    row = measured(task, "64")["divprune"]
    ours = 100 * row["accuracy"] / task["full"]["accuracy"]
    published = next(one for one in blocks() if one.paper == "MMTok").rows["divprune"]["64"]
    assert f" {published:.1f} / {ours:.1f} |" in text
    assert "| `fastv` † | - | - | 74.9 / - | - |" in text, "it cannot keep 64 here"
    assert text.count("](https://arxiv.org/abs/") == len(blocks())
    assert all(f"- † {meaning}." in text for meaning in counted_otherwise().values())


def test_ours_are_the_scores_of_what_kept_to_the_budget(task):
    scores = our_scores(task)
    assert list(scores) == list(BUDGETS)
    for budget, rows in scores.items():
        fair = [row for row in methods_at(task, budget) if not row["over_budget"]]
        assert {name: one.mean() for name, one in rows.items()} == pytest.approx(
            {row["method"]: row["accuracy"] for row in fair}, abs=1e-4
        )
    whole = scores["64"]["divprune"]
    kinds = [our_scores(task, kind)["64"]["divprune"] for kind in task["kinds"]]
    assert sum(len(one) for one in kinds) == len(whole)
    assert np.concatenate(kinds).sum() == whole.sum()


def test_the_published_order_itself_is_in_full_agreement(task):
    """Scores that are the published figures of one block; the others agree with it less."""
    block = next(one for one in blocks() if one.paper == "PIO-FVLM")
    made = {
        budget: {
            measured_as(method): (np.arange(1000) < 10 * figures[budget]).astype(float)
            for method, figures in block.rows.items()
            if budget in figures
        }
        for budget in BUDGETS
    }
    every = pooled(made)
    alone = papers_agreement.agreement(papers_agreement.cells([block], made), made)
    assert alone.tau == 1
    assert 0 < every.tau < 1
    assert every.pairs > alone.pairs
    assert pooled(made, without=["fastv"]).pairs < every.pairs
    assert pooled(made, apart=1.5).pairs < every.pairs


def agreed(p):
    return Agreement(0.5, Interval(0.25, 0.75), 3, 4, p)


@pytest.mark.parametrize(("p", "words"), [(0.01, "goes with"), (0.2, "is not shown to go with")])
def test_the_verdict_says_no_more_than_is_shown(p, words):
    kinds = {"color": (agreed(0.01), 0.02), "chart": (agreed(0.03), 0.06)}
    assert verdict(agreed(p), kinds) == (
        f"Our ranking {words} the published ones: 3 of 4 pairs are in the same order, tau 0.50 "
        f"(0.25 to 0.75), p {p:.2g}. By single kinds of question this is shown for `color`, and "
        "not for `chart`."
    )
    nothing = Agreement(None, None, 0, 1, None)
    assert verdict(nothing, kinds).startswith("Nothing can be said")


def test_kinds_are_corrected_for_their_number(task):
    found = by_kind(task)
    assert list(found) == list(task["kinds"])
    assert all(p >= one.p for one, p in found.values())
    least, p = min(found.values(), key=lambda one: one[0].p)
    assert p == pytest.approx(len(found) * least.p)


def test_readme_has_the_figures_of_the_page(task):
    line = papers_agreement.headline(task)
    assert line in readme.README.read_text()
    assert papers_agreement._brief(pooled(our_scores(task))) in papers_geometry.PAGE.read_text()


def test_the_picture_has_a_panel_for_each_cell_that_stands_alone(task):
    found = papers_agreement.cells(blocks(), our_scores(task))
    shown = [one for one in found if len(one.specs) >= papers_agreement.FEWEST]
    panels = [axes for axes in picture(task).axes if axes.lines]
    assert [len(axes.lines) for axes in panels] == [len(one.specs) for one in shown]
    assert len(shown) < len(found)


def test_what_keeps_more_than_the_budget_is_not_ranked(task):
    rows = [{**row, "over_budget": row["method"] == "divprune"} for row in ran(task)]
    found = measured({**task, "cases": rows}, "64")
    assert "divprune" not in found
    assert found.keys() | {"divprune"} == measured(task, "64").keys()
