"""The run: every sample under every case, once, whatever happens in between."""

import json
from dataclasses import dataclass

import pytest

from vlmcompress.errors import BudgetError, MediaError, VLMCompressError
from vlmcompress.eval.run import runner
from vlmcompress.eval.run.answering import Outcome
from vlmcompress.eval.run.cases import Case, cases
from vlmcompress.eval.run.runner import Job, Share, pieces, run
from vlmcompress.eval.run.store import ANSWERS, TIMES, Store, begin, read_lines, read_run_json
from vlmcompress.eval.tasks.task import Sample
from vlmcompress.methods.registry import METHODS

FULL, SOME, NONE = Case("full", None), Case("divprune", "25%"), Case("fastv", "5%")


@dataclass(frozen=True)
class Questions:
    name: str = "numbers"
    max_new_tokens: int = 4


def samples(count=10, bad=(), task="numbers"):
    def load(index):
        if index in bad:
            raise MediaError(f"image {index} is damaged")
        return [index]

    return [
        Sample(task, index, "k", 0, f"{index} ?", (str(index),), lambda index=index: load(index))
        for index in range(count)
    ]


class Model:
    """In place of `Batch` and `answer`: says which numbers it saw, and remembers the batches."""

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr(runner, "Batch", lambda model, processor, part, memory: Fake(part))
        monkeypatch.setattr(runner, "answer", self.answer)
        self.stop_after = None

    def answer(self, model, processor, inputs, case, max_memory=None, *, max_new_tokens):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        if case == NONE:
            raise BudgetError("5 % is too little")
        assert max_new_tokens == 4
        self.asked.append((case, tuple(inputs)))
        count = len(inputs)
        answers = [f"{case.method} {number}" for number in inputs]
        return Outcome(
            answers, [144] * count, [36.5] * count, [1] * count, [2] * count, 0.5, {"prefill": 9.0}
        )


class Fake:
    max_memory = None

    def __init__(self, part):
        self.samples = part

    def inputs(self, case):
        return [sample.load()[0] for sample in self.samples]


@pytest.fixture
def model(monkeypatch):
    return Model(monkeypatch)


def carry_out(folder, jobs, share=None, size=4):
    folder.mkdir(exist_ok=True)
    share = share or Share()
    store = Store(folder, share.rank)
    seen = []
    run(None, None, pieces(jobs, size, share, store.done()), store, lambda n, _: seen.append(n))
    return seen


def job(listed=(FULL, SOME), **kwargs):
    return Job(Questions(), samples(**kwargs), list(listed))


def sorted_lines(folder):
    return sorted(
        line
        for path in folder.glob("answers-*.jsonl")
        for line in path.read_text().splitlines(keepends=True)
    )


def test_lines(model, tmp_path):
    seen = carry_out(tmp_path, [job(count=5)])
    first, *_ = read_lines(tmp_path, ANSWERS)
    about = {"task": "numbers", "method": "full", "budget": None}
    said = {"index": 0, "answer": "full 0", "images": 1, "tokens": [144, 36.5]}
    assert first == about | said
    times = list(read_lines(tmp_path, TIMES))
    assert times[0] == about | {
        "batch": 0,
        "warm_up": True,
        "n": 4,
        "seconds": 0.5,
        "milliseconds": {"prefill": 9.0},
    }
    assert [line["batch"] for line in times] == [0, 0, 1, 1]
    assert [line["warm_up"] for line in times] == [True, True, False, False]
    assert seen == [4, 4, 1, 1]


def test_all_cases_answer_a_batch_before_the_next(model, tmp_path):
    carry_out(tmp_path, [job(count=6)])
    expected = [(FULL, (0, 1, 2, 3)), (SOME, (0, 1, 2, 3)), (FULL, (4, 5)), (SOME, (4, 5))]
    assert model.asked == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_find_the_same(model, tmp_path, processes):
    jobs = [job(), Job(Questions("others"), samples(5, task="others"), [FULL])]
    carry_out(tmp_path / "one", jobs)
    together = list(model.asked)
    model.asked.clear()
    for rank in range(processes):
        before = len(model.asked)
        carry_out(tmp_path / "several", jobs, Share(rank, processes))
        assert len(model.asked) > before
    assert sorted(model.asked, key=str) == sorted(together, key=str)  # the same batches
    assert sorted_lines(tmp_path / "several") == sorted_lines(tmp_path / "one")


def test_nothing_is_asked_twice(model, tmp_path):
    carry_out(tmp_path, [job([FULL])])
    model.asked.clear()
    assert carry_out(tmp_path, [job([FULL])]) == []
    assert model.asked == []
    carry_out(tmp_path, [job([FULL, SOME])])
    assert {case for case, _ in model.asked} == {SOME}


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_a_run_that_was_stopped_goes_on(model, tmp_path, stop_after):
    carry_out(tmp_path / "whole", [job()])
    model.asked.clear()
    model.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "stopped", [job()])
    assert 0 < len(sorted_lines(tmp_path / "stopped")) < 20
    model.stop_after = None
    carry_out(tmp_path / "stopped", [job()], Share(0, 2))
    carry_out(tmp_path / "stopped", [job()], Share(1, 2))
    assert sorted_lines(tmp_path / "stopped") == sorted_lines(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 20, 90])
def test_a_torn_line_is_written_again(model, tmp_path, cut):
    carry_out(tmp_path, [job(count=8)])
    whole = sorted_lines(tmp_path)
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(list(read_lines(tmp_path, ANSWERS))) == 15
    Store(tmp_path).repair()
    carry_out(tmp_path, [job(count=8)])
    assert sorted_lines(tmp_path) == whole


def test_a_damaged_line_is_named(model, tmp_path):
    carry_out(tmp_path, [job(count=2)])
    path = tmp_path / "answers-0.jsonl"
    path.write_text("{\n" + path.read_text())
    with pytest.raises(VLMCompressError, match=r"answers-0\.jsonl' is damaged at line 1"):
        list(read_lines(tmp_path, ANSWERS))


def test_a_case_that_cannot_run(model, tmp_path):
    carry_out(tmp_path, [job([FULL, NONE], count=5)])
    failed = [line for line in read_lines(tmp_path, ANSWERS) if "error" in line]
    assert [line["index"] for line in failed] == [0, 1, 2, 3, 4]
    assert {line["error"] for line in failed} == {"BudgetError: 5 % is too little"}
    assert len(list(read_lines(tmp_path, TIMES))) == 2


@pytest.mark.parametrize("bad", [[0], [2], [1, 3]])
def test_a_bad_file_does_not_cost_its_neighbors(model, tmp_path, bad):
    carry_out(tmp_path, [job(count=6, bad=bad)])
    lines = list(read_lines(tmp_path, ANSWERS))
    failed = [line for line in lines if "error" in line]
    assert sorted({line["index"] for line in failed}) == bad
    assert failed[0]["error"] == f"MediaError: image {bad[0]} is damaged"
    assert len(lines) == 12
    assert len({(line["method"], line["index"]) for line in lines}) == 12


def test_what_fails_in_a_batch_only_is_asked_alone(model, tmp_path):
    answer = model.answer

    def out_of_memory(model, processor, inputs, case, max_memory, max_new_tokens):
        if len(inputs) > 1:
            raise RuntimeError("out of\nmemory")
        return answer(model, processor, inputs, case, max_new_tokens=max_new_tokens)

    runner.answer = out_of_memory
    carry_out(tmp_path, [job([FULL], count=4)])
    assert [line["answer"] for line in read_lines(tmp_path, ANSWERS)] == [
        f"full {number}" for number in range(4)
    ]


DESCRIPTION = {
    "provenance": {"model": "m", "weights_sha256": "1", "batch": 32, "seed": 0},
    "tasks": [{"name": "a", "version": 1, "limit": None}],
}


def test_a_folder_is_taken_once(tmp_path):
    folder = tmp_path / "new" / "run"
    begin(folder, DESCRIPTION, resume=False)
    assert read_run_json(folder) == DESCRIPTION
    with pytest.raises(VLMCompressError, match="holds a run: go on with --resume"):
        begin(folder, DESCRIPTION, resume=False)
    more = DESCRIPTION | {"tasks": [*DESCRIPTION["tasks"], {"name": "b", "version": 1}]}
    begin(folder, more, resume=True)
    assert read_run_json(folder) == more


@pytest.mark.parametrize("key", ["model", "weights_sha256", "batch", "seed"])
def test_another_run_is_not_gone_on_with(tmp_path, key):
    begin(tmp_path, DESCRIPTION, resume=False)
    other = {"provenance": DESCRIPTION["provenance"] | {key: 7}}
    with pytest.raises(VLMCompressError, match=f"another run: {key} .* there, 7 now"):
        begin(tmp_path, DESCRIPTION | other, resume=True)
    assert read_run_json(tmp_path) == DESCRIPTION


def test_another_version_of_a_task_is_not_gone_on_with(tmp_path):
    begin(tmp_path, DESCRIPTION, resume=False)
    for change in ({"version": 2}, {"limit": 9}):
        other = {"tasks": [DESCRIPTION["tasks"][0] | change]}
        with pytest.raises(VLMCompressError, match="task a or its limit has changed"):
            begin(tmp_path, DESCRIPTION | other, resume=True)


def test_no_run(tmp_path):
    with pytest.raises(VLMCompressError, match=r"holds no run: no run\.json"):
        read_run_json(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VLMCompressError, match="cannot make"):
        begin(tmp_path / "file" / "run", DESCRIPTION, resume=False)


BUDGETS = ["50%", "25%"]


@pytest.mark.parametrize("video", [False, True])
def test_baselines_are_always_there(video):
    listed = cases(["divprune"], BUDGETS, video)
    assert (Case("one frame", None) in listed) is video
    assert listed[0] == Case("full", None)
    assert Case("text-only", None) in listed
    for budget in BUDGETS:
        seeds = [f"random(seed={seed})" for seed in range(3)]
        for name in [*seeds, "stride", "pool", "downsample", "fastv", "divprune"]:
            assert listed.count(Case(name, budget)) == 1


def test_all_are_all():
    listed = cases(["all"], BUDGETS, False)
    assert len(set(listed)) == len(listed)
    for name in set(METHODS.names()) - {"full", "text-only", "random"}:
        method = METHODS.get(name)
        budgets = [case.budget for case in listed if case.method == name]
        own = [None] if method.adaptive or not method.takes_budget else []
        assert budgets == [*(BUDGETS if method.takes_budget else []), *own]


def test_what_is_asked_twice_is_run_once():
    listed = cases(
        ["fastv", "random", "full", "text-only", "divprune+fastv", "auto"], ["64"], False
    )
    assert len(set(listed)) == len(listed)
    assert [case.budget for case in listed if case.method in ("full", "text-only")] == [None, None]
    assert Case("auto", "64") in listed
    assert Case("auto", None) not in listed


def test_a_threshold_is_no_matter_of_budgets():
    listed = cases(["divprune(threshold=0.1)", "divprune"], ["64", "25%"], False)
    assert [case.budget for case in listed if "threshold" in case.method] == [None]
    assert [case.budget for case in listed if case.method == "divprune"] == ["64", "25%"]


@pytest.mark.parametrize(
    ("methods", "budgets", "words"),
    [
        (["divprume"], ["25%"], "divprune"),
        (["divprune"], ["25 percent"], "25 percent"),
        (["divprune"], [], "no budget"),
    ],
)
def test_wrong_cases(methods, budgets, words):
    with pytest.raises(VLMCompressError, match=words):
        cases(methods, budgets, False)


def test_times_are_of_no_answers_file(model, tmp_path):
    """Two runs give the same answers, byte for byte, but never the same times."""
    carry_out(tmp_path, [job(count=1)])
    assert json.loads((tmp_path / "answers-0.jsonl").read_text().splitlines()[0]).keys() == {
        *("answer", "budget", "images", "index", "method", "task", "tokens")
    }
