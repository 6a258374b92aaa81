"""Results of a run: what is counted, what is compared, and which claims are made."""

import json

import numpy as np
import pytest
from made_up_run import (
    ASKED,
    BLIND,
    TASK,
    TOKENS,
    WHOLE,
    baselines,
    few,
    few_resamples,
    hits,
    picture,
    rates,
    right,
    row,
    write,
    wrong,
)

from vlmcompress.eval.metrics import metrics
from vlmcompress.eval.results import statistics
from vlmcompress.eval.results.scores import Scored
from vlmcompress.eval.results.standings import claim, standings
from vlmcompress.eval.results.summary import read_run, summarise
from vlmcompress.eval.run.cases import RANDOM, Case

BUDGETS = ["50%", "25%"]
METHODS = {**baselines(), "scope": 0.88, "var": 0.87, "tome": 0.35}


@pytest.fixture(scope="module", autouse=True)
def fast():
    with few_resamples():
        yield


@pytest.fixture(scope="module")
def lines():
    return rates(TASK, METHODS, BUDGETS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, lines):
    seconds = {case: 0.4 for case in lines if case.method == "scope"}
    return write(tmp_path_factory.mktemp("run"), TASK, lines, seconds)


@pytest.fixture(scope="module")
def found(run):
    return summarise(run, [TASK])["tasks"]["pictures"]


def test_counts_and_bounds(found, lines):
    assert (found["asked"], found["scored"], found["failed"]) == (140, 140, 0)
    assert found["tokens"] == TOKENS
    assert found["kinds"] == dict.fromkeys(TASK.kinds, 20)
    for name, case in (("full", WHOLE), ("blind", BLIND)):
        assert found[name]["accuracy"] == pytest.approx(right(lines, case).mean(), rel=1e-5)
    assert found["questions"]["kind"] == [one.kind for one in ASKED]
    assert found["questions"]["wording"] == [one.wording for one in ASKED]


def test_a_row_has_the_figures_of_its_answers(found, lines):
    scores = right(lines, Case("scope", "25%"))
    one = row(found, "scope")
    interval = statistics.proportion(scores)
    assert one["scores"] == "".join(str(int(score)) for score in scores)
    assert one["accuracy"] == pytest.approx(scores.mean(), rel=1e-5)
    assert one["interval"] == pytest.approx([interval.low, interval.high], rel=1e-5)
    assert one["tokens"] == {"before": TOKENS, "kept": TOKENS / 4, "images": 1}
    for kind, part in one["by_kind"].items():
        own = scores[[sample.kind == kind for sample in ASKED]]
        assert part["accuracy"] == pytest.approx(own.mean(), rel=1e-5)
        assert part["n"] == len(own)
    for wording, accuracy in one["by_wording"].items():
        own = scores[[sample.wording == int(wording) for sample in ASKED]]
        assert accuracy == pytest.approx(own.mean(), rel=1e-5)
    value, bounds = statistics.retained(scores, right(lines, BLIND), right(lines, WHOLE))
    assert one["retained"]["value"] == pytest.approx(value, rel=1e-5)
    assert one["retained"]["interval"] == pytest.approx([bounds.low, bounds.high], rel=1e-5)
    full = [one["answer"] for one in lines[WHOLE]]
    own = [one["answer"] for one in lines[Case("scope", "25%")]]
    changed = np.mean([a != b for a, b in zip(own, full, strict=True)])
    assert one["changed"] == pytest.approx(changed, rel=1e-5)
    assert 0 < changed < 1


def test_yes_and_no_have_f1_by_kind(found, lines):
    one = row(found, "scope")
    assert list(one["yes_no"]) == ["presence", "relation"]
    pairs = [
        (given["answer"], sample.answers[0])
        for given, sample in zip(lines[Case("scope", "25%")], ASKED, strict=True)
        if sample.kind == "presence"
    ]
    expected = metrics.f1(*zip(*pairs, strict=True))
    assert one["yes_no"]["presence"] == pytest.approx(expected, rel=1e-5)


def test_random_is_the_mean_of_its_seeds(found, lines):
    seeds = [right(lines, Case(seed, "25%")) for seed in RANDOM]
    assert hits(found, "random") == pytest.approx(np.mean(seeds, axis=0), abs=1e-4)
    assert "against" not in row(found, RANDOM[0])
    own = statistics.mean_difference(right(lines, Case("tome", "25%")), np.mean(seeds, axis=0))
    assert row(found, "tome")["against"]["random"]["interval"] == pytest.approx(
        [own.low, own.high], rel=1e-4
    )


def test_methods_are_compared_question_by_question_and_corrected_over_a_budget(found, lines):
    methods = ["stride", "pool", "downsample", "fastv", "scope", "var", "tome", "random"]
    for name in ("full", "stride"):
        other = right(lines, Case(name, None if name == "full" else "25%"))
        own = {method: hits(found, method) for method in methods if method != name}
        own["random"] = np.mean([right(lines, Case(seed, "25%")) for seed in RANDOM], axis=0)
        p = {method: statistics.paired_test(scores, other) for method, scores in own.items()}
        holm = dict(zip(p, statistics.holm(list(p.values())), strict=True))
        for method in own:
            against = row(found, method)["against"][name]
            assert against["p"] == pytest.approx(p[method], rel=1e-5)
            assert against["holm"] == pytest.approx(holm[method], rel=1e-5)
            assert against["difference"] == pytest.approx((own[method] - other).mean(), abs=1e-6)
    assert "stride" not in row(found, "stride")["against"]


def test_the_hard_group_is_what_full_knows_and_shrinking_loses(found, lines):
    shrunk = right(lines, Case("downsample", "25%"))
    mask = (right(lines, WHOLE) == 1) & (shrunk == 0)
    hard = row(found, "scope")["hard"]
    assert hard == {
        "n": mask.sum(),
        "accuracy": pytest.approx(right(lines, Case("scope", "25%"))[mask].mean(), rel=1e-5),
        "by": "downsample",
    }
    assert row(found, "downsample")["hard"] is None
    assert row(found, "full", None)["hard"] is None


def test_times_are_medians_and_speed_is_of_the_same_batch(found):
    batches = np.array([1 + 0.05 * (batch % 5) for batch in range(1, 18)])
    seconds = row(found, "scope")["seconds"]
    low, median, high = 0.4 * np.quantile(batches, [0.25, 0.5, 0.75])
    assert seconds == pytest.approx({"median": median, "low": low, "high": high, "batches": 17})
    assert row(found, "scope")["speed"] == pytest.approx(2.5)
    assert row(found, "full", None)["speed"] == 1


def test_leaders_are_the_best_and_what_is_not_significantly_worse(found):
    for standing in found["budgets"]:
        budget = standing["budget"]
        fair = [r for r in found["cases"] if r["budget"] == budget and r["method"] not in RANDOM]
        best = max(fair, key=lambda r: r["accuracy"])
        assert standing["best"] == standing["leaders"][0] == best["method"]
        others = [r for r in fair if r is not best]
        p = [
            statistics.paired_test(
                hits(found, r["method"], budget), hits(found, best["method"], budget)
            )
            for r in others
            if r["method"] != "random"
        ]
        assert [
            r["against"]["best"]["p"] for r in others if r["method"] != "random"
        ] == pytest.approx(p, rel=1e-5)
        pairs = len(fair) * (len(fair) - 1) // 2
        unasked = [1.0] * (pairs - len(others))
        holm = statistics.holm([r["against"]["best"]["p"] for r in others] + unasked)
        keep = {r["method"] for r, p in zip(others, holm, strict=False) if p >= 0.05}
        assert set(standing["leaders"]) == keep | {best["method"]}
    at = found["budgets"][1]
    assert {"scope", "var"} <= set(at["leaders"])
    assert "tome" not in at["leaders"]
    assert at["worse_than_random"] == ["fastv", "tome"]
    assert "scope" in at["better_than_random"]
    assert "tome" in at["worse_than_full"]
    assert "tome" not in at["not_different_from_full"]
    assert at["target"] == 36


def test_equal_methods_are_seldom_ranked():
    """The best of many equal ones is lucky; nothing is to be said of the others for that."""
    rng = np.random.default_rng(0)
    ranked = 0
    for _ in range(40):
        rows = []
        for k in range(20):
            scores = (rng.random(150) < 0.8).astype(float)
            figures = {"method": f"m{k:02}", "accuracy": scores.mean(), "over_budget": False}
            case = Case(f"m{k:02}", "25%")
            rows.append((Scored(case, [], scores, {}), figures | {"target": 9.0, "against": {}}))
        ranked += len(standings("25%", rows)["leaders"]) < 20
    assert ranked <= 4  # P(more than 4 of 40) is 0.05 where each errs with 0.05


def test_no_claim_is_made_without_a_low_corrected_p():
    against = {"random": {"difference": -0.2, "p": 0.001, "holm": 0.05}}
    assert claim({"against": against}, "random") is None
    against["random"]["holm"] = 0.049
    assert claim({"against": against}, "random") == "worse"
    against["random"]["difference"] = 0.2
    assert claim({"against": against}, "random") == "better"
    assert claim({"against": against}, "stride") is None


def test_a_run_gives_the_same_bytes_twice(tmp_path):
    lines = few(*(Case(method, "25%") for method in (*RANDOM, "stride")))
    first = summarise(write(tmp_path, TASK, lines), [TASK])
    file = tmp_path / "answers-0.jsonl"
    file.write_text("".join(sorted(file.read_text().splitlines(True))))
    assert json.dumps(summarise(read_run(tmp_path), [TASK])) == json.dumps(first)


def test_made_up_answers_are_right_or_wrong():
    assert all(TASK.score(one, wrong(one)) == 0 for one in ASKED)
    assert picture()[0].size == (96, 96)


def test_the_commonest_answer_of_a_kind(found):
    """What the answers alone give away, without a question or a picture."""
    right = 0
    for kind in {sample.kind for sample in ASKED}:
        words = [sample.answers[0] for sample in ASKED if sample.kind == kind]
        right += max(words.count(word) for word in set(words))
    assert found["commonest"] == pytest.approx(right / len(ASKED), abs=1e-6)
