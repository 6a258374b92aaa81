"""Which method when, by results of which every answer is known."""

import sys

import pytest
from made_up_results import content, make_task
from made_up_run import MadeUp

from dev.pages import committed_results as committed
from dev.pages import which
from dev.pages.which_composed import dominating, is_composition
from dev.pages.which_kind import narrowed
from vlmcompress.methods.composition.spec import parse

SINGLE = {
    "cdpruner(negate=False)": 0,  # reads the question
    "fastv": 1,  # in the decoder
    "scope": 2,
    "divprune": {"25%": 3, "12.5%": 20},
    "stride": {"25%": 25, "12.5%": 21},
    "vispruner": 0,  # keeps too much
}
SECONDS = {"scope": 0.5, "divprune": 0.25, "stride": 0.1, "vispruner": 0.1}
COMPOSED = {
    "divprune+fastv": 0,  # significantly better than the best single one, which has 8
    "scope+fastv": 9,
    "divprune+pyramiddrop": 14,  # p = 0.03 before the correction
    "scope+adaptinfer": 28,
    "vispruner+fastv": 0,  # keeps too much
}
KEPT = {"vispruner": 60.0, "vispruner+fastv": 60.0}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("one"), SINGLE, None, SECONDS, KEPT)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Compositions and two methods; one composition was measured on one model only."""
    made = {}
    for model, more in (("tiny-llava", {"pitome+divprune": 0}), ("tiny-qwen", {})):
        wrong = {"scope": 8, "hiprune": 10, **COMPOSED, **more}
        task = make_task(tmp_path_factory.mktemp(model), wrong, kept=KEPT)
        made[model] = content(model, pictures=task)
    return made


def test_a_page_says_what_to_use(single):
    text = which.page({"tiny-llava": content("tiny-llava", pictures=single)})
    assert "## A model like `llava`, measured on `tiny-llava`" in text
    rows = [line for line in text.splitlines() if line.startswith(("| 25% (", "| 12.5% ("))]
    assert rows[:2] == [
        "| 25% (36) | `cdpruner(negate=False)` 100.0 (94.8 to 100.0) "
        "| `divprune` 95.7 (88.1 to 98.5), 4.00x | `scope` 97.1 (90.2 to 99.2) "
        "| 57.1 | 64.3 | 50.0 |",
        "| 12.5% (18) | `divprune` 71.4 (59.9 to 80.7) ↓ | `stride` 70.0 (58.5 to 79.5) ↓, 10.00x "
        "| the same | - | **70.0** | - |",
    ]
    # Of ten questions that ask for a letter: all are right but for the baselines.
    assert "### Documents: the 10 questions of `pictures/reading` only" in text
    assert rows[2].startswith("| 25% (36) | `cdpruner(negate=False)` 100.0 (72.2 to 100.0) |")
    assert rows[2].endswith("| **60.0** | **70.0** | **50.0** |")
    assert "The whole model: 100.0 (72.2 to 100.0)." in text
    assert "No document was read" in text
    assert "Videos" not in text


def test_what_is_measured_at_counts_has_its_tables_and_is_not_for_auto(single):
    made = {m: content(m, pictures=single) for m in ("tiny-llava", "small-llava")}
    text = which.page(made)
    assert "## A model like `llava`, measured on `small-llava`" in text
    assert "(eval/small-llava/report.md)" in text
    assert "| keep | takes | right | tiny-llava pictures |\n" in text


def test_every_medium_has_its_table(single):
    clips = {**single, "medium": "video", "kinds": {"motion": 70}}
    text = which.page({"tiny-qwen": content("tiny-qwen", clips=clips)})
    assert "### Videos: all 70 questions of `clips`" in text
    assert "Documents" not in text


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ("divprune", False),
        ("scope", False),
        ("pitome+divprune", False),
        ("cdpruner", True),
        ("cdpruner(negate=False)", True),
        ("hiprune-pp", True),
        ("fastv", True),
        ("divprune+fastv", True),
    ],
)
def test_what_depends_on_the_question(spec, reads):
    assert parse(spec).reads_question is reads


def test_the_cheapest_is_the_fastest_that_was_timed():
    rows = [{"speed": speed, "name": speed} for speed in (1.5, None, 2.5, 0.5)]
    assert which.cheapest(rows)["name"] == 2.5
    assert which.cheapest([{"speed": None}]) is None


def test_what_nobody_can_do_is_a_dash(single):
    row = {"method": "m", "budget": "25%", "over_budget": True, "accuracy": 1.0}
    standing = {"budget": "25%", "target": 36.0, "leaders": []}
    part = which._part("T", {**single, "cases": [row], "budgets": [standing]})
    assert part.splitlines()[-1] == "| 25% (36) | - | - | - | - | - | - |"


@pytest.mark.slow
def test_one_kind_alone_is_what_a_task_of_that_kind_is(tmp_path):
    wrong = {"scope": 0, "divprune": 3, "hiprune": 12, "vispruner": 20}
    task = make_task(tmp_path, wrong, MadeUp(kinds=("reading",), size=40), {"scope": 0.5})
    found = narrowed(task, "reading")
    named = {(row["method"], row["budget"]): row for row in task["cases"]}
    for row in found["cases"]:
        whole = named[row["method"], row["budget"]]
        for key in ("accuracy", "interval", "speed", "target", "over_budget"):
            assert row[key] == whole[key]
        for other in {"full", "best"} & row["against"].keys():
            told = {k: v for k, v in whole["against"][other].items() if k in row["against"][other]}
            assert row["against"][other] == pytest.approx(told, rel=1e-4)
    for key in ("best", "leaders", "worse_than_full", "not_different_from_full", "target"):
        assert found["budgets"][0][key] == task["budgets"][0][key]
    assert found["budgets"][0]["worse_than_full"]
    assert len(found["budgets"][0]["leaders"]) == 2
    assert found["full"]["n"] == found["scored"] == 40


def test_one_kind_of_several(single):
    found = narrowed(single, "color")  # the first of seven
    rows = {row["method"]: row for row in found["cases"] if row["budget"] in ("25%", None)}
    assert found["scored"] == 10
    assert rows["stride"]["scores"] == [0.0] * 4 + [1.0] * 6
    assert rows["stride"]["accuracy"] == pytest.approx(0.6)
    assert rows["stride"]["against"]["full"]["difference"] == pytest.approx(-0.4)
    assert rows["fastv"]["accuracy"] == pytest.approx(0.9)
    assert "vispruner" not in found["budgets"][0]["leaders"]
    for part, whole in zip(found["budgets"], single["budgets"], strict=True):
        assert (part["budget"], part["methods"]) == (whole["budget"], whole["methods"])


@pytest.mark.slow
def test_compositions_beside_the_best_single_method(results):
    found = {one.method: one for one in dominating(results)}
    everywhere = [f"{model} pictures at 25%" for model in results]
    assert set(found) == {*COMPOSED, "pitome+divprune"}
    assert found["divprune+fastv"].cells == pytest.approx(dict.fromkeys(everywhere, 8 / 70))
    assert found["divprune+fastv"].worse == []
    assert found["scope+fastv"].cells == pytest.approx(dict.fromkeys(everywhere, -1 / 70))
    assert found["scope+fastv"].lower == everywhere
    assert found["scope+adaptinfer"].worse == everywhere
    assert found["pitome+divprune"].missing == everywhere[1:]
    assert found["vispruner+fastv"].missing == everywhere
    assert [name for name, one in found.items() if one.never_lower] == ["divprune+fastv"]
    never_worse = [name for name, one in found.items() if one.never_worse]
    assert never_worse == ["divprune+fastv", "scope+fastv", "divprune+pyramiddrop"]
    # Nearest to the best everywhere first.
    order = ["scope+adaptinfer", "pitome+divprune", "vispruner+fastv"]
    assert list(found) == [*never_worse, *order]


@pytest.mark.slow
def test_the_page_says_plainly_whether_one_composition_is_enough(results):
    text = which.page(results)
    assert "- Never a lower accuracy: `divprune+fastv`." in text
    assert "| `scope+fastv` | 2 of 2 | nowhere | 2 | -1.4 (tiny-llava pictures at 25%) |" in text
    assert "| `vispruner+fastv` | 0 of 2 | nowhere | 0 | - |" in text
    bad = {m: content(m, pictures=_without(results, m, "divprune+fastv")) for m in results}
    text = which.page(bad)
    assert "- Never a lower accuracy: **none**." in text
    assert "- Never significantly worse: `scope+fastv`, `divprune+pyramiddrop`." in text


def _without(results, model, method):
    task = results[model]["tasks"]["pictures"]
    return {**task, "cases": [row for row in task["cases"] if row["method"] != method]}


@pytest.mark.slow
def test_the_page_says_what_auto_takes_and_what_that_costs(results):
    text = which.page(results)
    section = text.split('## What `method="auto"` takes')[1].split("##")[0]
    assert "| 25% | `divprune+fastv` | 100.0 (97.3 to 100.0) | 100.0 (100.0) |" in section
    fewer = {}
    for model, made in results.items():
        # All that is better than stride is gone, or reads the question.
        rows = [
            {**row, "method": "cdpruner"} if row["method"] == "hiprune" else row
            for row in made["tasks"]["pictures"]["cases"]
            if row["method"] in ("full", "stride", "random", "hiprune")
        ]
        task = {**made["tasks"]["pictures"], "cases": rows}
        fewer[model] = content(model, pictures=task)
    section = which.page(fewer).split("takes\n")[1].split("##")[0]
    assert "| 25% | `stride` | 64.3 (56.1 to 71.7) | 64.3 (85.7) ↓ | 64.3 (85.7) ↓ |" in section


def test_names_of_papers_are_compositions():
    assert [is_composition(spec) for spec in ("aim", "todre", "divprune+fastv")] == [True] * 3
    assert [is_composition(spec) for spec in ("divprune", "auto", "one frame")] == [False] * 3


@pytest.mark.slow
def test_the_command(monkeypatch, tmp_path, single):
    made = {"tiny-llava": content("tiny-llava", pictures=single)}
    monkeypatch.setattr(committed, "all_results", lambda: made)
    monkeypatch.setattr(which, "PAGE", tmp_path / "which.md")
    monkeypatch.setattr(sys, "argv", ["which", "--check"])
    with pytest.raises(SystemExit, match=r"which\.md is out of date"):
        which.main()
    monkeypatch.setattr(sys, "argv", ["which"])
    which.main()
    assert (tmp_path / "which.md").read_text().startswith("# Which method when")
    monkeypatch.setattr(sys, "argv", ["which", "--check"])
    which.main()
