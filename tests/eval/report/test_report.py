"""The report of a run: that it says what results.json says, loudly where it must, and safely."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_run import TOKENS, MadeUp, baselines, few_resamples, line, rates, write, wrong
from PIL import Image

import vlmcompress
from vlmcompress.eval.report import plots as report_plots
from vlmcompress.eval.report import tables as report_tables
from vlmcompress.eval.report import text as report_text
from vlmcompress.eval.report.examples import examples
from vlmcompress.eval.report.write import render, write_report
from vlmcompress.eval.results.summary import summarise
from vlmcompress.eval.run.cases import FULL, RANDOM, Case
from vlmcompress.eval.worlds.world import draw, make_scene

TASK = MadeUp(size=70)
BUDGETS = ["50%", "25%"]
EVIL = '<script>alert("x")</script> | `a` **b**'


def scene():
    return [draw(make_scene(1_000_000))]


@pytest.fixture(scope="module", autouse=True)
def fast():
    with few_resamples():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    lines = rates(TASK, {**baselines(), "divprune": 0.88, "tome": 0.32}, BUDGETS)
    asked = TASK.samples(None, 0)
    greedy, idle, off = Case("greedy", "25%"), Case("idle", "25%"), Case("evs", None)
    lines[greedy] = [line(greedy, one, True, 90) for one in asked]
    lines[idle] = [{**one, "method": "idle", "budget": "25%"} for one in lines[Case(FULL, None)]]
    lines[off] = [line(off, one, False, 70.5) for one in asked]
    return write(tmp_path_factory.mktemp("run"), TASK, lines)


@pytest.fixture(scope="module")
def results(run):
    return summarise(run, [TASK])


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    render(folder, results)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.md").read_text()


def table(text, heading):
    """Head and rows of the first table behind a heading of report.md."""
    part = text.split(f"### {heading}\n")[1]
    lines = part[part.index("| ") :].split("\n\n")[0].splitlines()
    found = [[cell.strip() for cell in one.strip("|").split(" | ")] for one in lines]
    return found[0], found[2:]


def rows_of(results, budget):
    return {
        row["method"]: row
        for row in results["tasks"]["pictures"]["cases"]
        if row["budget"] == budget
    }


def test_all_files_are_written_and_named(run, tmp_path):
    found = write_report(tmp_path, run, [TASK])
    names = ["results.json", "report.md", "report.html", "pictures_accuracy_tokens.png"]
    names += ["pictures_accuracy_time.png", "pictures_kinds.png"]
    assert [path.name for path in found] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert json.loads((tmp_path / "results.json").read_text()) == summarise(run, [TASK])


def test_a_committed_results_json_gives_the_same_report(results, folder, tmp_path):
    again = json.loads(json.dumps(results))
    for path in render(tmp_path, again):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_warnings_stand_first(text, page):
    assert "> [!WARNING]" in text
    assert text.index("did not engage") < text.index("## pictures")
    assert page.index("did not engage") < page.index('<h2 id="summary">')


def test_without_warnings_nothing_is_loud(results, tmp_path):
    calm = json.loads(json.dumps(results))
    for row in calm["tasks"]["pictures"]["cases"]:
        row["warnings"] = []
    render(tmp_path, calm)
    assert "WARNING" not in (tmp_path / "report.md").read_text()
    assert 'class="loud"' not in (tmp_path / "report.html").read_text()


def test_the_sentences_say_what_the_standings_say(results, text, page):
    for standing in results["tasks"]["pictures"]["budgets"]:
        part = text.split(f"**At {standing['budget']}: ")[1].split("\n\n**")[0].split("\n\n#")[0]
        rows = rows_of(results, standing["budget"])
        best = rows[standing["best"]]
        low, high = (100 * one for one in best["interval"])
        shown = f"{100 * best['accuracy']:.1f}% ({low:.1f} to {high:.1f})."
        assert f"- Best: {standing['best']} {shown}" in part
        for words, key in (("random", "worse_than_random"), ("stride", "worse_than_stride")):
            names = ", ".join(standing[key]) or "none"
            claim = f"Worse than {words} ({len(standing[key])} of {standing['methods']}): {names}."
            assert f"- {claim}" in part
            assert claim in page
    at = results["tasks"]["pictures"]["budgets"][1]
    assert at["over_budget"] == ["greedy", "idle"]
    assert "Above the budget, so not ranked (2 of 9): greedy, idle." in text
    assert at["worse_than_random"]


def test_random_among_the_leaders_is_said(results, text):
    task = json.loads(json.dumps(results["tasks"]["pictures"]))
    task["budgets"][1]["leaders"] = ["divprune", "random"]
    claims = dict(report_text.sentences(task))["At 25%: 36 of 144 tokens"]
    assert any("no method is shown to be better" in one for one in claims)
    task["budgets"][1]["leaders"] = ["divprune"]
    claims = dict(report_text.sentences(task))["At 25%: 36 of 144 tokens"]
    assert not any("no method is shown" in one for one in claims)
    assert "Not significantly worse: none." in claims


def test_the_table_of_costs_marks_what_the_corrected_p_allows(results, text):
    head, found = table(text, "What a budget costs")
    assert head == ["method", *BUDGETS]
    cells = {method: dict(zip(BUDGETS, values, strict=True)) for method, *values in found}
    assert not set(cells) & {FULL, *RANDOM}
    for standing in results["tasks"]["pictures"]["budgets"]:
        rows = rows_of(results, standing["budget"])
        for method, row in cells.items():
            cell = row[standing["budget"]]
            if method not in rows:
                assert cell == "-"
                continue
            assert cell.startswith(f"{100 * rows[method]['accuracy']:.1f}%")
            assert ("▲" in cell) == (method in standing["better_than_random"])
            assert ("▼" in cell) == (method in standing["worse_than_random"])
    assert cells["greedy"]["25%"].endswith("\\[90 tokens\\]")
    order = [rows_of(results, "25%")[method]["accuracy"] for method, *_ in found]
    assert order == sorted(order, reverse=True)


def test_kinds_and_the_hard_group_have_their_numbers(results, text):
    head, found = table(text, "By kind at 25%")
    rows = rows_of(results, "25%") | rows_of(results, None)
    assert head[2] == "color (10)"
    assert {"full", "text-only", "stride", "random", "fastv"} <= {line[0] for line in found}
    for method, *values in found:
        expected = [rows[method], *rows[method]["by_kind"].values()]
        assert values == [f"{100 * one['accuracy']:.1f}%" for one in expected]
    head, found = table(text, "Hard group")
    n = rows_of(results, "25%")["stride"]["hard"]["n"]
    assert head[2] == f"25% ({n} wrong under downsample)"
    cells = {method: values for method, *values in found}
    assert cells["stride"][1] == f"{100 * rows['stride']['hard']['accuracy']:.1f}%"
    assert "downsample" not in cells


def test_other_parts_are_there(results, text):
    _, found = table(text, "At a method's own setting")
    assert [row[0] for row in found] == ["evs"]
    assert found[0][1] == "70.5"
    assert found[0][3].startswith("worse (p ")
    _, found = table(text, "Yes or no at 25%")
    stride = rows_of(results, "25%")["stride"]["yes_no"]["presence"]
    (line_,) = [row for row in found if row[:2] == ["stride", "presence"]]
    assert line_[2] == f"{100 * stride['f1']:.1f}%"
    assert "```\nvlmcompress eval\n```" in text
    assert "- commit: 0123456789abcdef" in text
    for name in re.findall(r"\]\((.*?\.png)\)", text):
        assert name.startswith("pictures_")


def test_what_could_not_run_and_what_hangs_on_the_wording_is_listed(results, tmp_path):
    other = json.loads(json.dumps(results))
    cases = other["tasks"]["pictures"]["cases"]
    cases += [
        {"method": "evs", "budget": budget, "cannot": "needs a clip"} for budget in (*BUDGETS, None)
    ]
    (row,) = [one for one in cases if (one["method"], one["budget"]) == ("tome", "25%")]
    row["wording"] = {"p": 1e-4, "holm": 0.002}
    render(tmp_path, other)
    for name in ("report.md", "report.html"):
        shown = (tmp_path / name).read_text()
        assert "evs at 50%, 25%, its own setting: needs a clip" in shown
        assert "(corrected p 0.002)" in shown
    row["wording"]["holm"] = 0.05
    render(tmp_path, other)
    assert "corrected p 0.05)" not in (tmp_path / "report.md").read_text()


class Tags(HTMLParser):
    """Every tag with its attributes; fails on one that is closed and was not open."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file(page, folder):
    tags = Tags(page)
    assert tags.open == []
    shown = [attrs["src"] for tag, attrs in tags.found if tag == "img"]
    assert len(shown) == 3
    assert all(one.startswith("data:image/png;base64,") for one in shown)
    names = {tag for tag, _ in tags.found}
    assert not names & {"link", "iframe"}
    assert [attrs for tag, attrs in tags.found if tag == "script"] == [{}]  # sorts tables
    assert not re.search(r"https?://|@import|url\(", re.sub(r'src="data:.*?"', "", page))
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_begins_with_what_it_costs_and_has_the_whole_model_in_its_table(results, page):
    task = results["tasks"]["pictures"]
    assert page.index('id="summary"') < page.index("<nav") < page.index('id="task-1"')
    first = report_tables.summary("pictures", task)
    assert [row[1] for row in first] == [one["budget"] for one in task["budgets"]]
    by_name = {row["method"]: row for row in task["cases"] if row["budget"] is None}
    heads, (full, *others) = report_tables.costs_and_speed(task)
    plain_heads, plain = report_tables.costs(task)
    assert heads[1::2] == plain_heads[1:]
    assert full[:3] == ["full", report_text.percent(by_name["full"]["accuracy"]), "1.00x"]
    assert [[row[0], *row[1::2]] for row in others] == plain
    anchors = [attrs["href"] for tag, attrs in Tags(page).found if tag == "a"]
    places = {attrs.get("id") for _, attrs in Tags(page).found}
    assert anchors
    assert {anchor.lstrip("#") for anchor in anchors} <= places


def test_the_full_table_has_every_case(results, page):
    names, found = report_tables.everything(results["tasks"]["pictures"])
    ran = [row for row in results["tasks"]["pictures"]["cases"] if "cannot" not in row]
    assert len(found) == len(ran)
    assert all(len(row) == len(names) for row in found)
    (line_,) = [row for row in found if row[:2] == ["tome", "25%"]]
    against = rows_of(results, "25%")["tome"]["against"]["random"]
    assert line_[names.index("- random")].startswith(f"{100 * against['difference']:+.1f} (")
    assert line_[names.index("- random") + 1] == f"{against['holm']:.2g}"


def test_text_of_others_is_no_markup(results, tmp_path):
    other = json.loads(json.dumps(results))
    task = other["tasks"].pop("pictures")
    for row in task["cases"]:
        row["by_kind"] = {EVIL: row["by_kind"]["color"]}
    task["kinds"] = {EVIL: 10}
    task["warnings"] = [EVIL]
    other["tasks"][EVIL] = task
    other["provenance"]["model"] = EVIL
    picture = report_plots.Picture(EVIL, "x.png", EVIL, b"")
    example = report_examples_example(picture)
    render(tmp_path, other, [example])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1  # ours, at the end
    assert Tags(page).open == []
    assert "&lt;script&gt;" in page
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in text.replace("\\<script", "")
    head, rows = table(text, "By kind at 25%")
    assert all(len(row) == len(head) == 3 for row in rows)
    assert all(path.parent == tmp_path for path in tmp_path.iterdir())


def report_examples_example(picture):
    from vlmcompress.eval.report.examples import Example

    return Example(3, EVIL, EVIL, EVIL, [(EVIL, EVIL, False)], picture)


def test_labels_are_moved_apart_and_no_further():
    values = [10.0, 10.5, 11.0, 40.0]
    found = np.array(report_plots.spread(values, 2.0))
    assert found == pytest.approx([8.5, 10.5, 12.5, 40.0])
    assert report_plots.spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert report_plots.spread([], 2.0) == []


def test_baselines_and_the_best_are_in_color(results):
    lines = report_plots._lines(results["tasks"]["pictures"])
    colors = report_plots.colors(lines)
    assert set(report_text.COMPARED) <= set(colors)
    assert "divprune" in colors
    assert len(set(colors.values())) == len(colors)


def test_pictures_are_pictures(folder):
    for name in ("accuracy_tokens", "accuracy_time", "kinds"):
        with Image.open(folder / f"pictures_{name}.png") as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_a_task_name_makes_a_plain_file_name():
    assert report_plots.file_name("my/task ../x", "kinds") == "my-task-x_kinds.png"


def test_no_times_no_picture_of_times(results):
    other = json.loads(json.dumps(results))
    for row in other["tasks"]["pictures"]["cases"]:
        row["seconds"] = None
    names = [picture.name for picture in report_plots.draw(other)]
    assert names == ["pictures_accuracy_tokens.png", "pictures_kinds.png"]


def test_examples_divide_the_methods_and_show_what_is_kept(tmp_path):
    task = replace(TASK, size=28, kinds=("color", "shape"), load=scene)
    asked = task.samples(None, 0)
    good, poor, whole = Case("divprune", "25%"), Case("stride", "25%"), Case(FULL, None)
    lost = [Case(seed, "25%") for seed in RANDOM]
    rules = {whole: 0, good: 0, poor: 14, **dict.fromkeys(lost, 9)}
    lines = {
        case: [line(case, one, one.index >= start, 36) for one in asked]
        for case, start in rules.items()
    }
    lines[whole] = [line(whole, one, one.index != 0, TOKENS) for one in asked]
    lines[good] = [line(good, one, one.index != 1, 36) for one in asked]
    run = write(tmp_path, task, lines)
    model, processor = vlmcompress.load("tiny-llava", device="cpu", dtype="float32")
    results = summarise(run, [task])
    assert results["tasks"]["pictures"]["budgets"][0]["best"] == "divprune"
    found = examples(run, results, [task], model, processor)
    # The whole model has 0 wrong and the best method 1; then come the first that most have wrong.
    assert [one.index for one in found] == [2, 3]
    first = found[0]
    expected = [(FULL, True), ("divprune", True), (RANDOM[0], False), ("stride", False)]
    assert [(method, right) for method, _, right in first.answers] == expected
    assert first.answers[2][1] == wrong(asked[2])
    assert first.target == asked[2].answers[0]
    with Image.open(io.BytesIO(first.picture.content)) as image:
        assert image.width > 2.5 * image.height
    assert first.picture.title == f"what divprune, {RANDOM[0]}, stride keep at 25%"
    names = [path.name for path in write_report(tmp_path, run, [task], model, processor)]
    assert names[-2:] == ["pictures_example1.png", "pictures_example2.png"]
    assert "pictures_example1.png" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 5


@pytest.mark.parametrize(("model", "name"), [("tiny-llava", "pictures"), ("tiny-qwen", "clips")])
def test_a_line_that_ends_early_is_named_where_it_ends(model, name):
    """A leader across the picture would look as if the curve rose to the top."""
    file = Path(__file__).parents[3] / "docs" / "eval" / model / "results.json"
    task = json.loads(file.read_text())["tasks"][name]
    figure = report_plots._against_tokens(name, task, report_plots._lines(task))
    (axes,) = figure.axes
    leaders = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    last = min(text.xy[0] for text in leaders)
    assert "fastv" not in [text.get_text() for text in leaders]
    assert all(text.xy[0] < 1.6 * last for text in leaders)
    (early,) = (text for text in axes.texts if text.get_text() == "fastv ends here")
    assert early.xy[0] > 1.6 * last
    assert early.arrow_patch is None


def test_pool_is_seen_below_downsample():
    file = Path(__file__).parents[3] / "docs" / "eval" / "tiny-llava" / "results.json"
    task = json.loads(file.read_text())["tasks"]["pictures"]
    lines = report_plots._lines(task)
    color = report_plots.colors(lines)
    (axes,) = report_plots._against_tokens("pictures", task, lines).axes
    drawn = {line.get_color(): line for line in axes.lines}
    pool, downsample = (drawn[color[method]] for method in ("pool", "downsample"))
    assert pool.get_linewidth() > 2 * downsample.get_linewidth()
    assert pool.get_markersize() > downsample.get_markersize()
    assert axes.lines.index(pool) < axes.lines.index(downsample)
