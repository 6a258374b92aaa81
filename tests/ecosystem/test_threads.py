"""Several threads, with a model each or with one for all."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from at_once import at_once
from transformers import StoppingCriteriaList


def in_step(count: int) -> Any:
    """A stopping criterion that lets threads go on only together, token by token."""
    meet = threading.Barrier(count, timeout=60)

    def wait(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        meet.wait()
        return torch.zeros(len(ids), dtype=torch.bool)

    return StoppingCriteriaList([wait])


def test_two_wrapped_models_in_two_threads_answer_as_they_do_alone(case):
    other = copy.deepcopy(case.model)
    selected, ranked = case.wanted("divprune")[1], case.wanted("fastv")[1]
    assert not torch.equal(selected, ranked)
    step = in_step(2)
    with case.compress("divprune") as a, case.compress("fastv", other) as b:
        found = at_once(
            lambda: case.ids(stopping_criteria=step),
            lambda: case.ids(other, stopping_criteria=step),
        )
        assert torch.equal(found[0], selected)
        assert torch.equal(found[1], ranked)
        assert (a.report().method, b.report().method) == ("divprune", "fastv")
        assert a.report().engaged
        assert b.report().engaged


def test_one_wrapped_model_serves_two_threads(case):
    other = copy.copy(case)
    other.inputs = dict(case.inputs)
    other.inputs["pixel_values"] = case.inputs["pixel_values"].flip(-1).roll(20, -2) * 0.7
    with case.compress():
        wanted = [case.ids(), other.ids()]
        assert not torch.equal(*wanted)
        step = in_step(2)
        found = at_once(*[lambda c=c: c.ids(stopping_criteria=step) for c in (case, other)])
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_a_thread_inside_generate_does_not_disturb_a_forward_of_another(case):
    results = []
    with case.compress():
        wanted, logits = case.ids(), case.logits()

        def look(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            results.extend(at_once(case.logits))
            return torch.zeros(len(ids), dtype=torch.bool)

        assert torch.equal(case.ids(stopping_criteria=StoppingCriteriaList([look])), wanted)
    assert len(results) == 6
    assert all(torch.equal(result, logits) for result in results)


def test_removing_waits_for_the_answer_of_another_thread(case):
    bare, short = case.wanted()
    entered, leave = threading.Event(), threading.Event()

    def hold(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        entered.set()
        assert leave.wait(60)
        return torch.zeros(len(ids), dtype=torch.bool)

    c = case.compress()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(case.ids, stopping_criteria=StoppingCriteriaList([hold]))
        assert entered.wait(60)
        removal = pool.submit(c.remove)
        assert not removal.done()
        threading.Event().wait(0.1)
        assert not removal.done()
        assert not answer.done()
        leave.set()
        assert torch.equal(answer.result(60), short)
        removal.result(60)
    assert torch.equal(case.ids(), bare)


def test_removing_inside_the_own_generate_does_not_wait_for_itself(case):
    bare = case.wanted()[0]
    c = case.compress()

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        c.remove()
        return torch.ones(len(ids), dtype=torch.bool)

    case.ids(stopping_criteria=StoppingCriteriaList([stop]))
    assert torch.equal(case.ids(), bare)
