"""Every family on a pretended GPU, and on two: no operand on another device, few waits.

See `pretended`. Needs no GPU.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from pretended import Pretended
from spread import spread
from subject_models import SUBJECTS
from subjects import Subject
from upstream_methods import Bright, Huddle

from vlmcompress.api import compress

_known: dict[Any, Any] = {}


def prompts(subject: Subject) -> dict[str, torch.Tensor]:
    return subject.batch(subject.prompt(1, 1), subject.prompt(2, 2))


def answer(subject: Subject, inputs: Any, method: Any, budget: str) -> tuple[Any, Any]:
    with compress(subject.model, method, budget) as c:
        ids = subject.generate(inputs, max_new_tokens=2)
        return ids.cpu(), c.report().images


def on_cpu(name: str, method: Any, budget: str) -> tuple[Any, Any, Any]:
    """A fresh subject with what it answers."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    subject.model = copy.deepcopy(subject.model)
    return subject, *answer(subject, prompts(subject), method, budget)


def moved(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.to("cuda:0") for key, value in inputs.items()}


NOT_INSIDE = ("next-video with", "onevision with")


def methods(name: str) -> list[tuple[Any, str]]:
    """One at each stage, one for signals, one of all stages."""
    found: list[tuple[Any, str]] = [("divprune", "50%"), ("fastv", "60%")]
    if "mistral" in name:
        return [*found, ("divprune+fastv", "40%")]
    found.append(("scope", "50%"))
    if "qwen" in name:
        found += [(Bright(), "50%"), ("pixelprune+divprune+pyramiddrop", "40%")]
    if any(word in name for word in NOT_INSIDE):
        return [*found, ("hiprune+pyramiddrop", "40%")]
    return [*found, (Huddle(), "50%"), ("tome+divprune+pyramiddrop", "40%")]


def thinned(cases: list[Any], step: int) -> list[Any]:
    """All cases, of which every `step`th is not slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(*case, marks=() if number % step == 0 else slow)
        for number, case in enumerate(cases)
    ]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else str(getattr(value, "name", value))


ONE = [(name, *method) for name in SUBJECTS for method in methods(name)]


@pytest.mark.parametrize(("name", "method", "budget"), thinned(ONE, 23), ids=name_of)
def test_one_device(name, method, budget):
    subject, ids, images = on_cpu(name, method, budget)
    with Pretended() as gpu:
        gpu.put(subject.model, "cuda:0")
        found = answer(subject, moved(prompts(subject)), method, budget)
    assert torch.equal(found[0], ids)
    assert found[1] == images


def halves(subject: Subject, split: str) -> dict[str, str]:
    """What lies on the second device."""
    model, lm = subject.model, f"model.{subject.lm_name}"
    names = [name for name, _ in model.model.named_children()]
    towers = [f"model.{name}" for name in names if name != subject.lm_name]
    if split == "tower":
        return dict.fromkeys(towers, "cuda:1")
    if split == "projector":
        return dict.fromkeys([name for name in towers if "vision" not in name], "cuda:1")
    half = [f"{lm}.layers.{n}" for n in range(int(split), subject.layers)]
    return dict.fromkeys([*half, f"{lm}.norm", "lm_head"], "cuda:1")


TWO = [
    (name, *method, split)
    for name in SUBJECTS
    for method in methods(name)
    for split in ("tower", "projector", "3")
]


@pytest.mark.parametrize(("name", "method", "budget", "split"), thinned(TWO, 73), ids=name_of)
def test_two_devices(name, method, budget, split):
    check_halves(name, method, budget, split)


CUTTING = ["fastv", "pyramiddrop", "sparsevlm", "dart", "psigmoid", "aim-prune", "corematching"]
BORDERS = [("random llava", m, "60%", str(n)) for n in (2, 3, 4) for m in [*CUTTING, "feather"]]
BORDERS += [("random gemma3", "fastv", "60%", "2"), ("random qwen3-vl", "pyramiddrop", "60%", "1")]


@pytest.mark.parametrize(("name", "method", "budget", "split"), thinned(BORDERS, 7), ids=name_of)
def test_a_cut_before_the_first_layer_of_the_next_device(name, method, budget, split):
    check_halves(name, method, budget, split)


def check_halves(name: str, method: Any, budget: str, split: str) -> None:
    subject, ids, images = on_cpu(name, method, budget)
    with Pretended() as gpu:
        spread(gpu, subject.model, halves(subject, split))
        found = answer(subject, moved(prompts(subject)), method, budget)
    assert torch.equal(found[0], ids)
    assert found[1] == images


MOST = 3
"""Times that we wait in a prefill: for the prompt's ids and mask, for what methods must know of the
pictures, and for the checks at the end."""
SIZES = 1
"""One more where only the encoder's arguments, or its newlines, tell the shape of a picture."""
SEGMENTS = 1
"""One more where a tower is told by a tensor which patches attend to one another."""
SHORTENING = MOST + SIZES + SEGMENTS + 3
"""One more behind each of its layers where such a sequence gets shorter: segments end elsewhere."""
BY_CONTENT = ["visionzip", "holov", "expedit", "token-correlation", "fastvid", "vidcom2"]
"""How many tokens a group, a crop or a frame keeps depends on what is in it."""
READING = ["mmtok", "cdpruner"]
FREE = [
    *("divprune", "hiprune", "todre-select", "zoo-prune", "vispruner", "scope", "aim-merge"),
    *("pllava", "m3", "stride", "pool", "random", "divprune+fastv", *CUTTING, "feather"),
]
INSIDE = ["tome", "pitome", "mctf", "tome+divprune+pyramiddrop"]


def waits(name: str, method: str, images: int) -> Counter[tuple[str, str]]:
    subject = SUBJECTS[name]()
    with Pretended() as gpu:
        gpu.put(subject.model, "cuda:0")
        inputs = moved(subject.batch(subject.prompt(images, 1)))
        with compress(subject.model, method, "50%"), gpu.watched(), torch.no_grad():
            subject.model(**inputs)
    return gpu.own_waits()


WAITING = [("random llava", m, MOST) for m in (*FREE, *BY_CONTENT, *READING, *INSIDE)]
WAITING += [("random qwen2.5-vl", m, MOST + SIZES) for m in ("divprune", "fastv", "vidcom2")]
WAITING += [("random qwen2.5-vl", m, MOST + SIZES + SEGMENTS) for m in ("hiprune", "holov")]
WAITING += [("random qwen2.5-vl", "pixelprune+divprune+fastv", MOST + SIZES + 3)]
WAITING += [("random qwen2.5-vl", m, SHORTENING) for m in ("tome", "pitome")]
WAITING += [("random qwen3-vl", "mctf", SHORTENING)]
WAITING += [("random qwen3-vl", "pyramiddrop", MOST + SIZES)]
WAITING += [("random internvl", m, MOST) for m in ("tome", "pitome", "mctf(floor=1)")]
WAITING += [("random smolvlm", "tome", MOST + SIZES)]
WAITING += [
    (name, method, MOST + SIZES)
    for name in ("random llava-next", "random llava-onevision")
    for method in ("divprune", "fastv", "mmtok", "holov")
]
WAITING += [("random llava-onevision with clips", m, MOST) for m in ("pyramiddrop", "fastvid")]
WAITING += [("random video-llava with clips", "pyramiddrop", MOST)]


@pytest.mark.parametrize(("name", "method", "most"), thinned(WAITING, 9))
def test_waits_do_not_grow_with_images_layers_and_cuts(name, method, most):
    found = waits(name, method, 1)
    assert found.total() <= most, found
    assert waits(name, method, 3) == found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "cuts"), [("divprune", 1), ("fastv", 1), ("pyramiddrop", 3)])
def test_newlines_of_rows_are_waited_for_once_a_cut(method, cuts):
    """How many rows lose all their tokens, and with them their newlines, is only known by then."""
    for images in (1, 3):
        assert waits("random llava-next", method, images).total() == SIZES + 1 + cuts


def test_a_decode_step_waits_for_nothing():
    subject = SUBJECTS["random llava"]()
    with Pretended() as gpu:
        gpu.put(subject.model, "cuda:0")
        inputs = moved(subject.batch(subject.prompt(1, 1)))
        found = []
        for tokens in (1, 5):
            gpu.waits.clear()
            with compress(subject.model, "divprune+fastv", "40%"), gpu.watched():
                subject.generate(inputs, max_new_tokens=tokens)
            found.append(gpu.own_waits().total())
    assert found[0] == found[1] <= MOST


def test_what_a_device_refuses_is_refused_and_what_waits_is_counted():
    with Pretended() as gpu:
        here, there = torch.ones(2, device="cuda:0"), torch.ones(2, device="cuda:1")
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cuda:1"):
            here + there
        with pytest.raises(RuntimeError, match="found at least two devices, cpu and cuda:0"):
            here + torch.ones(2)
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.ones(1, device="cuda:2")
        with gpu.watched():
            assert (here + here.to("cuda:0") * torch.tensor(2.0)).tolist() == [3, 3]
            assert bool(here.any())
            assert len(there[there > 0]) == 2
    assert gpu.waits.total() == 3
