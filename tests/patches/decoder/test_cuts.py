"""What decoder methods answer when they are asked what to keep, right or wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from bare import last_logits
from subject_models import SUBJECTS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlmcompress.api import compress
from vlmcompress.budget.planner import Planner
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.composition.plan import ImagePlan
from vlmcompress.methods.contracts.decoder import DecoderMethod
from vlmcompress.patches.decoder.between_layers import BetweenLayers


@dataclass(frozen=True)
class Keeping(DecoderMethod):
    """Gives what a test says; ranks nothing."""

    name: ClassVar[str] = "keeping"
    summary: ClassVar[str] = "keeps"

    given: Any = None
    counts: tuple[tuple[int, int], ...] = ((2, 3), (4, 2))
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def schedule(self, layers: int, tokens: int, budget: float | None) -> dict[int, int]:
        return dict(self.counts)

    def score(self, view: Any) -> Tensor:
        raise AssertionError

    def keep(self, view: Any, count: int) -> Any:
        self.asked.append((view.layer, count, len(view.visual)))
        return torch.arange(count) if self.given is None else self.given


@dataclass(frozen=True)
class KeepingAny(Keeping):
    adaptive: ClassVar[bool] = True


def run(method: Any) -> Any:
    subject = SUBJECTS["random llava"]()
    with compress(subject.model, method) as c:
        last_logits(subject, subject.batch(subject.prompt(1, 3)))
    return c.report().images[0]


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([2, 1, 0]),
        torch.tensor([1, 1, 2]),
        torch.tensor([0, 1, 36]),
        torch.tensor([-1, 1, 2]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([[0], [1], [2]]),
        [0, 1, 2],
    ],
    ids=str,
)
def test_wrong_places_are_one_clear_error(given):
    with pytest.raises(
        VLMCompressError, match=r"keeping: keep must give 3 .* 0 to 35 .* before layer 2, got"
    ) as error:
        run(Keeping(given))
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Slipping(Keeping):
    """Gives wrong places first, then something that is none at all."""

    def keep(self, view: Any, count: int) -> Any:
        self.asked.append((view.layer, count, len(view.visual)))
        return torch.tensor([0, 2, 99]) if len(self.asked) == 1 else [0]


def test_the_first_mistake_is_told_and_leaves_nothing_behind():
    """What only the device knows comes to light after the last layer, or at the next mistake."""
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 3))
    expected = last_logits(subject, inputs)
    for method, cuts in (
        (Keeping(torch.tensor([0, 2, 99]), counts=((2, 3),)), 1),
        (Slipping(), 2),
    ):
        with compress(subject.model, method) as c:
            with pytest.raises(VLMCompressError, match=r"before layer 2, got \[0, 2, 99\]$"):
                last_logits(subject, inputs)
            assert len(method.asked) == cuts
            assert c._engine.now.stages is c._engine.now.call is None
        assert torch.equal(last_logits(subject, inputs), expected)


class Waiting(TorchDispatchMode):
    """Raises where a program would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        flags = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if flags or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique"):
            raise AssertionError(f"{name} waits")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Glancing(Keeping):
    """Ranks by attention without asking whether it is finite."""

    def keep(self, view: Any, count: int) -> Any:
        rows = [
            view.attention(rows=rows, keys=keys)[..., view.visual if keys == "all" else slice(None)]
            for rows in ("last", "text")
            for keys in ("all", "visual")
        ]
        scores = sum(weights.mean((0, 1)) for weights in rows)
        return scores.topk(min(count, len(scores))).indices.sort().values


@pytest.mark.parametrize(
    "name", ["random llava", "random qwen2.5-vl", "random qwen3-vl", "random gemma3"]
)
def test_a_cut_does_not_wait_for_the_device(name, monkeypatch):
    shown = SUBJECTS[name]()
    inputs = shown.batch(shown.prompt(1, 3, text=4), shown.prompt(2, 4, text=9))
    cut, done = BetweenLayers._cut, []

    def watched(self: Any, number: int, hidden: Tensor, given: Any) -> Tensor:
        done.append(number)
        with Waiting(), monkeypatch.context() as patch:
            patch.setattr(Tensor, "tolist", None)
            return cut(self, number, hidden, given)

    monkeypatch.setattr(BetweenLayers, "_cut", watched)
    with compress(shown.model, Glancing(counts=((2, 30), (4, 3)))):
        last_logits(shown, inputs)
    assert done == [2, 4]
    with Waiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(1).all())


def test_keep_is_called_at_every_layer_of_the_schedule():
    method = Keeping(counts=((1, 36), (2, 3), (4, 3), (5, 0)))
    assert run(method).per_layer == [36, 36, 3, 3, 3, 0]
    assert method.asked == [(1, 36, 36), (2, 3, 36), (4, 3, 3), (5, 0, 3)]


def test_adaptive_methods_may_keep_other_counts():
    method = KeepingAny(torch.tensor([0, 5]), counts=((2, 36), (4, 20)))
    with pytest.raises(VLMCompressError, match=r"must give ascending places of 0 to 1 "):
        run(method)
    assert method.asked == [(2, 36, 36), (4, 2, 2)]
    image = run(KeepingAny(torch.tensor([0, 5]), counts=((2, 36),)))
    assert image.per_layer == [36, 36, 2, 2, 2, 2]
    assert image.cuts == {2: [0, 5]}


def test_images_without_a_cut_at_a_layer_stay_whole(monkeypatch):
    planned = Planner.plan

    def plan(self: Planner, *given: Any) -> list[ImagePlan]:
        pairs = zip(planned(self, *given), [{2: 3}, {4: 5}], strict=False)
        return [replace(one, schedule=schedule) for one, schedule in pairs]

    monkeypatch.setattr(Planner, "plan", plan)
    subject = SUBJECTS["random llava"]()
    with compress(subject.model, method := Keeping()) as c:
        last_logits(subject, subject.batch(subject.prompt(2, 3)))
    lines = sorted(image.per_layer for image in c.report().images)
    assert lines == [[36, 36, 3, 3, 3, 3], [36, 36, 36, 36, 5, 5]]
    assert sorted(set(method.asked)) == [(2, 3, 36), (4, 5, 36)]


@pytest.mark.parametrize("weights", ["equal", "similar"])
def test_merging_does_not_wait_for_the_device(weights, monkeypatch):
    subject = SUBJECTS["random llava"]()
    inputs = subject.batch(subject.prompt(1, 3, text=4), subject.prompt(2, 4, text=9))
    cut, done = BetweenLayers._cut, []

    def watched(self: Any, number: int, hidden: Tensor, given: Any) -> Tensor:
        done.append(number)
        with Waiting():
            return cut(self, number, hidden, given)

    monkeypatch.setattr(BetweenLayers, "_cut", watched)
    with compress(subject.model, f"pool(stage='decoder', weights={weights!r})"):
        last_logits(subject, inputs)
    assert done == [1, 3, 4]
