"""One model in many threads: generate, forward, report, and somebody who compresses and removes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import StoppingCriteriaList

import vlmcompress
from vlmcompress.api import Compression
from vlmcompress.errors import CompositionError, VLMCompressError

METHOD, BUDGET = "divprune+fastv(k=1)", 6


class Asker:
    """A thread's own prompt, with its own number of images, and the answers to it."""

    def __init__(self, model: Any, images: int) -> None:
        self.model, self.images = model, images
        ids = torch.tensor([[5, 6, *([39] * 16 + [7]) * images, 8, 9, 10]])
        generator = torch.Generator().manual_seed(images)
        pixels = torch.randn(images, 3, 16, 16, generator=generator)
        self.inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
        }
        self.known = [(self.ids(), self.logits())]
        with vlmcompress.compress(model, METHOD, BUDGET):
            self.known.append((self.ids(), self.logits()))
        assert not torch.equal(self.known[0][1], self.known[1][1])

    def ids(self, **options: Any) -> Any:
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, **options}
        return self.model.generate(**self.inputs, **options)

    @torch.no_grad()
    def logits(self) -> Any:
        return self.model(**self.inputs).logits[:, -1]

    def check(self, generate: bool) -> None:
        """What is found is what the bare model gives, or the compressed one; nothing between."""
        found = self.ids() if generate else self.logits()
        assert any(torch.equal(found, known[not generate]) for known in self.known)


def together(seconds: float, *jobs: Callable[[], None]) -> list[int]:
    """How often each job ran, one thread each; raises what any of them raised."""
    end, counts, errors = time.monotonic() + seconds, [0] * len(jobs), []

    def run(number: int) -> None:
        try:
            while time.monotonic() < end and not errors:
                jobs[number]()
                counts[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not any(thread.is_alive() for thread in threads), "they wait for one another"
    if errors:
        raise errors[0]
    return counts


def ask(asker: Asker) -> Callable[[], None]:
    def job() -> None:
        asker.check(generate=True)
        with suppress(VLMCompressError):  # nobody compresses it just now
            Compression.of(asker.model).report()
        asker.check(generate=False)

    return job


def compress_and_remove(asker: Asker) -> None:
    with vlmcompress.compress(asker.model, METHOD, BUDGET) as c:
        assert torch.equal(asker.ids(), asker.known[1][0])
        assert len(c.report().images) == asker.images
    with pytest.raises(CompositionError, match="was removed"):
        c.__enter__()


def soak(model: Any, seconds: float) -> list[int]:
    askers = [Asker(model, images) for images in (1, 2, 3, 4)]
    jobs = [ask(asker) for asker in askers[:3]]
    return together(seconds, *jobs, lambda: compress_and_remove(askers[3]))


def test_four_threads_for_some_seconds(small):
    assert soak(small.model, 4)[-1] >= 4


@pytest.mark.slow
def test_four_threads_for_a_minute(small):
    assert soak(small.model, 60)[-1] >= 60


def test_a_report_right_after_the_own_call_is_of_the_own_call(small):
    askers = [Asker(small.model, images) for images in (1, 2, 3)]
    with vlmcompress.compress(small.model, METHOD, BUDGET) as c:

        def own(asker: Asker) -> Callable[[], None]:
            def job() -> None:
                asker.ids()
                assert len(c.report().images) == asker.images
                asker.logits()
                assert len(c.report().images) == asker.images

            return job

        assert min(together(2, *map(own, askers))) > 0


@pytest.mark.parametrize("method", ["divprune", "hiprune", "tome", "fastv(k=1)"])
@pytest.mark.parametrize("where", ["vision_tower", "language_model", "between tokens"])
def test_a_call_that_began_before_compress_goes_on_as_it_began(small, method, where):
    asker = Asker(small.model, 2)
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: Any, **__: Any) -> Any:
        inside.set()
        assert leave.wait(60)

    def wait(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        hold()
        return torch.zeros(len(ids), dtype=torch.bool)

    found: list[Any] = []
    criteria = {}
    if where == "between tokens":
        criteria = {"stopping_criteria": StoppingCriteriaList([wait])}
    else:
        handle = getattr(small.model.model, where).register_forward_pre_hook(hold)
    calls = [lambda: found.append(asker.ids(**criteria))]
    if where != "between tokens":
        calls.append(lambda: found.append(asker.logits()))
    for call in calls:
        inside.clear()
        leave.clear()
        thread = threading.Thread(target=call)
        thread.start()
        assert inside.wait(60)
        with vlmcompress.compress(small.model, method, "50%") as c:
            leave.set()
            thread.join(60)
            assert not c.report().images
            asker.ids()
            assert c.report().engaged
    if where != "between tokens":
        handle.remove()
        assert torch.equal(found.pop(), asker.known[0][1])
    assert torch.equal(found.pop(), asker.known[0][0])
    assert torch.equal(asker.ids(), asker.known[0][0])


def test_forwards_are_waited_for_and_new_calls_wait(small):
    asker = Asker(small.model, 1)
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        inside.set()
        assert leave.wait(60)

    c = vlmcompress.compress(small.model, METHOD, BUDGET)
    handle = small.model.model.vision_tower.register_forward_pre_hook(hold)
    found: dict[str, Any] = {}
    first = threading.Thread(target=lambda: found.update(first=asker.logits()))
    first.start()
    assert inside.wait(60)
    handle.remove()
    removal = threading.Thread(target=c.remove)
    removal.start()
    while not c._engine.shared._shutting:
        time.sleep(0.01)
    second = threading.Thread(target=lambda: found.update(second=asker.logits()))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert removal.is_alive()
    leave.set()
    for thread in (first, removal, second):
        thread.join(60)
    assert torch.equal(found["first"], asker.known[1][1])
    assert torch.equal(found["second"], asker.known[0][1])


def test_two_threads_that_remove_inside_their_own_calls_do_not_wait_for_one_another(small):
    asker = Asker(small.model, 1)
    c = vlmcompress.compress(small.model, METHOD, BUDGET)
    meet = threading.Barrier(2, timeout=60)

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        meet.wait()
        c.remove()
        return torch.ones(len(ids), dtype=torch.bool)

    criteria = StoppingCriteriaList([stop])
    threads = [
        threading.Thread(
            target=asker.ids, kwargs={"stopping_criteria": criteria, "min_new_tokens": 1}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert torch.equal(asker.ids(), asker.known[0][0])
