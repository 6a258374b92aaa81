"""Results of runs with something odd: failures, gaps, faults, several images."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from made_up_run import (
    ASKED,
    BATCH,
    BLIND,
    TASK,
    TOKENS,
    WHOLE,
    MadeUp,
    chance,
    failure,
    few,
    few_resamples,
    hits,
    line,
    right,
    row,
    write,
)

from vlmcompress.errors import VLMCompressError
from vlmcompress.eval.results.summary import read_run, summarise
from vlmcompress.eval.run.cases import FULL, TEXT_ONLY, Case
from vlmcompress.eval.run.store import ANSWERS, TIMES, Store

BUDGETS = ["50%", "25%"]


@pytest.fixture(scope="module", autouse=True)
def fast():
    with few_resamples():
        yield


def test_a_torn_line_is_passed_over_and_the_first_of_two_counts(tmp_path):
    case = Case("stride", "25%")
    lines = few(case)
    write(tmp_path, TASK, lines)
    again = line(case, ASKED[3], not right(lines, case)[3], 36)
    Store(tmp_path, 1).append(ANSWERS, [again])
    with (tmp_path / "answers-1.jsonl").open("a") as file:
        file.write('{"answer": "torn", "in')
    answers = read_run(tmp_path).answers["pictures", case]
    assert len(answers) == len(ASKED)
    assert answers[3].text == lines[case][3]["answer"] != again["answer"]


def test_a_warm_up_has_no_time(tmp_path):
    run = write(tmp_path, TASK, few(), {WHOLE: 0.5})
    times = run.times["pictures", WHOLE]
    assert list(times) == list(range(1, -(-len(ASKED) // BATCH)))
    assert max(times.values()) == pytest.approx(0.5 * 1.2)


def test_a_broken_run_is_told(tmp_path):
    with pytest.raises(VLMCompressError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"provenance": {}, "cases": {}}')
    with pytest.raises(VLMCompressError, match="damaged run: KeyError"):
        read_run(tmp_path)


def test_where_shrinking_cannot_run_pool_says_what_is_hard(tmp_path):
    lines = few(Case("pool", "25%"), Case("scope", "25%"))
    lost = Case("downsample", "25%")
    lines[lost] = [failure(lost, one, f"BudgetError: not {one.index % 2}") for one in ASKED]
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert row(found, "scope")["hard"]["by"] == "pool"
    assert row(found, "downsample") == {"method": "downsample", "budget": "25%", "cannot": "not 0"}


def test_speed_compares_batch_by_batch(tmp_path):
    """Medians of different batches would say that the slower one is as fast."""
    case = Case("scope", "25%")
    write(tmp_path, replace(TASK, size=4 * BATCH), few(case), {case: 0.5})
    for file in tmp_path.glob("times-*"):
        file.unlink()
    store = Store(tmp_path)
    for method, budget, times in ((FULL, None, (9, 1, 2, 6)), ("scope", "25%", (9, 2, 1, 3))):
        about = {"task": "pictures", "method": method, "budget": budget, "n": 1}
        store.append(
            TIMES,
            [{**about, "batch": b, "seconds": s, "warm_up": b == 0} for b, s in enumerate(times)],
        )
    found = summarise(read_run(tmp_path), [TASK])["tasks"]["pictures"]
    assert row(found, "scope")["speed"] == 2
    assert row(found, "scope")["seconds"]["median"] == 2


@pytest.mark.parametrize(
    ("budget", "kept", "over"),
    [
        ("25%", 37.8, False),
        ("25%", 38, True),
        ("9", 10, False),
        ("9", 10.1, True),
        ("25%", 9, False),
    ],
)
def test_what_keeps_more_than_the_budget_cannot_lead(tmp_path, budget, kept, over):
    good, fair = Case("greedy", budget), Case("stride", budget)
    lines = few()
    lines[fair] = [line(fair, one, chance(0.7, 10)(one), 9) for one in ASKED]
    lines[good] = [line(good, one, chance(0.94, 1)(one), kept) for one in ASKED]
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    (standing,) = found["budgets"]
    assert row(found, "greedy", budget)["over_budget"] is over
    assert standing["best"] == ("stride" if over else "greedy")
    assert standing["over_budget"] == (["greedy"] if over else [])
    assert ("best" in row(found, "greedy", budget)["against"]) is False


def test_a_question_that_fails_without_a_method_is_left_out_for_all(tmp_path):
    case = Case("stride", "25%")
    lines = few(case)
    lines[WHOLE][5] = failure(WHOLE, ASKED[5], "OSError: no file")
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert (found["asked"], found["scored"], found["failed"]) == (140, 139, 1)
    assert 5 not in found["questions"]["index"]
    assert hits(found, "stride").tolist() == np.delete(right(lines, case), 5).tolist()
    assert "1 of 140 questions failed" in found["warnings"][0]


def test_a_question_that_fails_only_under_a_method_is_wrong(tmp_path):
    case = Case("stride", "25%")
    lines = few(case)
    place = int(np.flatnonzero(right(lines, case))[0])
    lines[case][place] = failure(case, ASKED[place], "RuntimeError: oh")
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert found["scored"] == 140
    assert hits(found, "stride")[place] == 0
    assert row(found, "stride")["failed"] == 1
    assert row(found, "stride")["tokens"]["kept"] == 36
    assert any("failed on 1 of 140" in one for one in row(found, "stride")["warnings"])


def test_a_case_that_breaks_everywhere_by_a_fault_is_not_taken_for_impossible(tmp_path):
    case = Case("stride", "25%")
    lines = few() | {case: [failure(case, one, "RuntimeError: oh") for one in ASKED]}
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert row(found, "stride")["accuracy"] == 0
    assert row(found, "stride")["tokens"] is None


def test_a_run_under_way_compares_what_all_cases_have_answered(tmp_path):
    case, later = Case("stride", "25%"), Case("scope", "25%")
    lines = few(case, later)
    lines[case], lines[later] = lines[case][:96], lines[later][40:]
    lines[Case("var", "25%")] = []
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert found["questions"]["index"] == list(range(40, 96))
    assert found["scored"] == 56
    assert "84 of 140 questions are not answered" in found["warnings"][0]
    assert row(found, "var")["cannot"] == "it has not been run yet"


def test_what_cannot_be_summed_up_is_told(tmp_path):
    case = Case("stride", "25%")
    lines = few(case)
    run = write(tmp_path / "a", TASK, lines)
    with pytest.raises(VLMCompressError, match="version 2 now, the run asked version 1"):
        summarise(run, [replace(TASK, version=2)])
    with pytest.raises(VLMCompressError, match="'pictures' that is not given, only clips"):
        summarise(run, [replace(TASK, name="clips")])
    lines[case], lines[BLIND] = lines[case][:40], lines[BLIND][40:]
    with pytest.raises(VLMCompressError, match="none of its 140 questions"):
        summarise(write(tmp_path / "b", TASK, lines), [TASK])
    lines[WHOLE] = [failure(WHOLE, one, "MediaError: no") for one in ASKED]
    with pytest.raises(VLMCompressError, match="full could not run: no"):
        summarise(write(tmp_path / "c", TASK, lines), [TASK])


def test_a_method_that_does_nothing_and_shuffled_answers_are_told(tmp_path):
    idle, mixed = Case("idle", "25%"), Case("mixed", "25%")
    lines = few(idle, mixed, Case("stride", "25%"))
    lines[idle] = [
        {**one, "method": "idle", "budget": "25%", "tokens": [TOKENS, TOKENS]}
        for one in lines[WHOLE]
    ]
    order = np.random.default_rng(0).permutation(len(ASKED))
    answers = [lines[WHOLE][k]["answer"] for k in order]
    lines[mixed] = [
        {**one, "answer": answer} for one, answer in zip(lines[mixed], answers, strict=True)
    ]
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert any("did not engage" in one for one in row(found, "idle")["warnings"])
    assert any("shuffled" in one for one in row(found, "mixed")["warnings"])
    assert row(found, "stride")["warnings"] == []
    assert row(found, "text-only", None)["warnings"] == []


def test_a_task_that_needs_no_images_is_told(tmp_path):
    lines = few(Case("stride", "25%"))
    lines[BLIND] = [{**one, "method": TEXT_ONLY, "tokens": [TOKENS, 0]} for one in lines[WHOLE]]
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert "not significantly better than without" in found["warnings"][0]
    assert row(found, "stride")["retained"] is None


def test_what_depends_on_the_wording_has_a_low_p(tmp_path):
    picky = Case("picky", "25%")
    lines = few(picky, Case("stride", "25%"))
    lines[picky] = [line(picky, one, one.wording == 0, 36) for one in ASKED]
    found = summarise(write(tmp_path, TASK, lines), [TASK])["tasks"]["pictures"]
    assert row(found, "picky")["wording"]["holm"] < 0.05
    p = row(found, "stride")["wording"]["p"]
    assert p > 0.05
    assert row(found, "picky")["wording"]["holm"] == pytest.approx(
        2 * row(found, "picky")["wording"]["p"]
    )
    alone = replace(TASK, wordings=1)
    found = summarise(write(tmp_path / "one", alone, lines), [alone])["tasks"]["pictures"]
    assert row(found, "picky")["wording"] is None


@dataclass(frozen=True)
class Graded(MadeUp):
    """Half a point for any other answer."""

    def score(self, sample, answer):
        return 1.0 if answer in sample.answers else 0.5


def test_grades_stay_grades(tmp_path):
    task = Graded()
    found = summarise(write(tmp_path, task, few(Case("stride", "25%"))), [task])
    one = row(found["tasks"]["pictures"], "stride")
    assert isinstance(one["scores"], list)
    assert set(one["scores"]) == {0.5, 1.0}
    assert one["accuracy"] == pytest.approx(np.mean(one["scores"]), rel=1e-5)


def test_a_count_is_that_of_each_image(tmp_path):
    """Three images with 36 tokens each are what 36 asks for, and no more than that."""
    case = Case("scope", "36")
    lines = few(case)
    lines[case] = [{**one, "images": 3, "tokens": [3 * TOKENS, 3 * 36]} for one in lines[case]]
    write(tmp_path, TASK, lines)
    found = row(summarise(read_run(tmp_path), [TASK])["tasks"]["pictures"], "scope", "36")
    assert found["target"] == 108
    assert not found["over_budget"]
    assert not [text for text in found["warnings"] if "budget" in text]
    lines[case] = [{**one, "images": 1} for one in lines[case]]
    write(tmp_path / "one", TASK, lines)
    found = row(summarise(read_run(tmp_path / "one"), [TASK])["tasks"]["pictures"], "scope", "36")
    assert found["target"] == 36
    assert found["over_budget"]
