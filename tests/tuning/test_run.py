"""A race of few candidates on few questions: who cannot win, what ends it, how it goes on."""

from dataclasses import replace

import pytest
import torch
from raced import Clock, drawn

from vlmcompress.errors import MediaError, VLMCompressError
from vlmcompress.eval.run.cases import Case
from vlmcompress.tuning import run
from vlmcompress.tuning.measurements import BLIND, WHOLE
from vlmcompress.tuning.profile import document
from vlmcompress.tuning.run import Plan, Race

HONEST = ("stride", "divprune")


class Kept:
    """Lines as a file would have them; full after so many."""

    def __init__(self, room=10**6):
        self.lines, self.room = {"answers": [], "times": []}, room

    def append(self, name, lines):
        if sum(map(len, self.lines.values())) >= self.room:
            raise KeyboardInterrupt
        self.lines[name] += [dict(line) for line in lines]


def race_of(loaded, candidates=HONEST, budgets=("25%",), questions=12, lines=None, **settings):
    plan = Plan(budgets, candidates, **{"batch": 4, "longest": 5, **settings})
    samples = drawn("pictures", questions) if isinstance(questions, int) else questions
    return Race(*loaded, samples, plan, lines)


def found_in(race):
    return document(race, {"name": "tiny"}, {})["budgets"]


def without_times(found):
    """Rows without what a second run measures anew."""
    if isinstance(found, dict):
        timed = {"ms", "ms_interval", "speed", "front"}
        return {k: without_times(v) for k, v in found.items() if k not in timed}
    return [without_times(one) for one in found] if isinstance(found, list) else found


@pytest.mark.usefixtures("cheats")
@pytest.mark.parametrize("objective", ["accuracy", "time", "pareto"])
def test_cheats_cannot_win(tiny_llava, objective):
    """Even where they stand first, so that they would win every tie."""
    cheats = ("everything", "nothing", "copier")
    race = race_of(tiny_llava, (*cheats, *HONEST), questions=16, objective=objective)
    race.run()
    found = found_in(race)["25%"]
    assert found["rows"][0]["method"] == "divprune"
    assert found["unfit"] == {
        "everything": "keeps 144 tokens, the budget leaves 36",
        "nothing": "keeps no visual token",
    }
    copier = next(row for row in found["rows"] if row["method"] == "copier")
    assert copier["agreement"] < found["rows"][0]["agreement"] - 0.3
    assert race.kept.measured(Case("everything", "25%"), 1).agrees.all(), "it would have won"


@pytest.mark.usefixtures("cheats")
def test_where_only_cheats_run_there_is_no_winner(tiny_llava):
    with pytest.raises(VLMCompressError, match="no candidate can run at budget 25%: keeps no vis"):
        race_of(tiny_llava, ("everything", "nothing")).run()


def test_what_needs_no_picture_is_said(tiny_llava):
    race = race_of(tiny_llava, questions=8)
    race.run()
    text = "no better than without any picture: these questions do not need their own"
    assert text not in found_in(race)["25%"]["warnings"]
    race.kept._known[BLIND] = race.kept._known[Case("divprune", "25%")]
    assert text in found_in(race)["25%"]["warnings"]


def test_the_same_race_twice(tiny_llava):
    found = []
    for _ in range(2):
        race = race_of(tiny_llava, budgets=("25%", "50%"))
        race.run()
        found.append(without_times(found_in(race)))
    assert found[0] == found[1]
    other = race_of(tiny_llava, budgets=("25%", "50%"), questions=drawn("pictures", 12, seed=4))
    other.run()
    assert without_times(found_in(other)) != found[0]


@pytest.mark.parametrize("room", [0, 7, 61])
def test_going_on_equals_never_having_stopped(tiny_llava, room, monkeypatch):
    monkeypatch.setattr(run, "FEWEST", 4)
    candidates = (*HONEST, "fastv", "random", "pool", "scope")
    whole = race_of(tiny_llava, candidates)
    whole.run()
    torn = Kept(room)
    with pytest.raises(KeyboardInterrupt):
        race_of(tiny_llava, candidates, lines=torn).run()
    more = Kept()
    race = race_of(tiny_llava, candidates, lines=more)
    race.kept.remember(torn.lines["answers"], torn.lines["times"])
    race.run()
    assert without_times(found_in(race)) == without_times(found_in(whole))
    assert race.left == whole.left
    assert race.left[Case("fastv", "25%")].unfit
    assert any(not left.unfit for left in race.left.values()), "somebody is behind"
    keys = [
        (line["method"], line["budget"], line["index"])
        for lines in (torn, more)
        for line in lines.lines["answers"]
    ]
    assert len(keys) == len(set(keys)), "nothing is measured twice"


@pytest.mark.parametrize(
    ("batches", "asked", "rung"),
    [(1, 16, True), (2, 16, True), (3, 99, False), (4, 99, True), (1, 15, False), (8, 99, False)],
)
def test_rungs(tiny_llava, monkeypatch, batches, asked, rung):
    """Of 8 batches; after the last nobody leaves any more."""
    race = race_of(tiny_llava, questions=8, batch=1)
    race.done = batches
    monkeypatch.setattr(race.kept, "asked", lambda done: list(range(asked)))
    assert race._is_rung() is rung


def test_time_is_up(tiny_llava):
    """A minute a look: the race ends within a batch, and counts whole batches only."""
    race = race_of(tiny_llava, questions=20, minutes=7.5)
    race.run(clock=Clock())
    assert race.done == 1
    assert len(race.measured(Case("divprune", "25%")).kl) == 4
    with pytest.raises(VLMCompressError, match="3 minutes are too short for 4 measurements of a b"):
        race_of(tiny_llava, questions=20, minutes=3).run(clock=Clock())
    unbound = race_of(tiny_llava, questions=20)
    unbound.run(clock=Clock())
    assert unbound.done == 5


def test_progress_comes_to_all_steps(tiny_llava):
    race = race_of(tiny_llava, (*HONEST, "fastv", "random", "pool"))
    steps = []
    race.run(lambda done, what: steps.append(done))
    assert sum(steps) == race.steps == 3 * 7


def broken():
    raise MediaError("not an image")


def test_what_cannot_be_read_is_passed_over(tiny_llava):
    samples = drawn("pictures", 8)
    samples[:2] = [replace(one, load=broken, extra="bad.png") for one in samples[:2]]
    race = race_of(tiny_llava, questions=samples)
    race.run()
    assert race.kept.passed_over() == ["bad.png: not an image"]  # of two questions
    assert len(race.measured(Case("divprune", "25%")).kl) == 6
    whole = race_of(tiny_llava, questions=8)
    whole.run()
    ours, all_of_them = (one.measured(Case("divprune", "25%")).kl for one in (race, whole))
    assert ours == pytest.approx(all_of_them[2:], abs=1e-4)
    with pytest.raises(VLMCompressError, match="nothing can be asked: bad"):
        race_of(tiny_llava, questions=samples[:1]).run()


def test_one_refused_prompt_does_not_cost_its_neighbors(tiny_llava):
    samples = drawn("pictures", 4)
    samples[1] = replace(samples[1], question="<image> what ?", extra="asked.jsonl, line 2")
    race = race_of(tiny_llava, questions=samples)
    race.run()
    (refused,) = race.kept.passed_over()
    assert refused.startswith("asked.jsonl, line 2: the model's processor refuses the input")
    assert len(race.measured(Case("divprune", "25%")).kl) == 3


def test_one_question(tiny_llava):
    race = race_of(tiny_llava, questions=1)
    race.run()
    (found,) = found_in(race).values()
    assert found["rows"][0]["n"] == 1
    assert found["rows"][0]["kl_interval"] is None
    assert found["warnings"][0].startswith("only 1 questions")


def test_the_whole_model_takes_part(tiny_llava):
    race = race_of(tiny_llava)
    race.run()
    assert not race.measured(WHOLE).kl.any()
    assert race.measured(WHOLE).agrees.all()
    assert race.measured(WHOLE).fast == 1
    assert found_in(race)["25%"]["blind"]["agreement"] < 0.5


def test_who_fails_in_an_unknown_way_leaves(tiny_llava, monkeypatch):
    from vlmcompress.methods.stride import Stride

    monkeypatch.setattr(Stride, "select", lambda *given: 1 / 0)
    race = race_of(tiny_llava)
    race.run()
    assert race.left[Case("stride", "25%")].reason == "ZeroDivisionError: division by zero"
    assert [row["method"] for row in found_in(race)["25%"]["rows"]] == ["divprune"]


def test_a_full_disk_is_no_fault_of_a_candidate(tiny_llava):
    class Full:
        def append(self, name, lines):
            raise VLMCompressError("cannot write 'answers-0.jsonl': No space left on device")

    with pytest.raises(VLMCompressError, match="No space left"):
        race_of(tiny_llava, lines=Full()).run()


def test_no_memory_for_the_whole_model(tiny_llava, monkeypatch):
    def no_memory(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "reference", no_memory)
    with pytest.raises(VLMCompressError, match="on 4 questions at once: give a smaller --batch"):
        race_of(tiny_llava).run()
