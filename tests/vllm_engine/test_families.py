"""Families without a built-in model, on small models with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_models import MODELS
from random_questions import BUDGET, TOKENS, Asked, all_newlines

METHODS = {name: ["divprune", "mmtok", "tome(stage='projector')"] for name in MODELS}
for _name in ("Qwen2-VL", "Qwen3-VL", "InternVL"):
    METHODS[_name] += ["hiprune", "scope"]
KINDS = [(name, kind) for name, made in MODELS.items() for kind in made.kinds]
CASES = [(name, kind, method) for name, kind in KINDS for method in METHODS[name]]


def with_family(names, values):
    """Over whole families: an engine each, and one lives at a time."""
    return pytest.mark.parametrize(names, values, indirect=["family"], scope="module")


@pytest.fixture(scope="module")
def family(request, tmp_path_factory):
    made = Asked(request.param, tmp_path_factory.mktemp("model"))
    yield made
    made.context.__exit__(None, None, None)


@pytest.mark.slow
@with_family(("family", "kind", "method"), CASES)
def test_answers_are_those_of_compress(family, kind, method):
    """In chunks of 24 tokens: every image or clip is computed in several steps."""
    questions = family.questions(kind)
    full, right = family.compress(questions, None), family.compress(questions, method)
    assert sum(map(len, right)) >= TOKENS
    assert right != full
    same(family.serve(questions, {"method": "full"}), full)
    for cached in (False, True):
        found = family.outputs(questions, {"method": method})
        same([list(one.outputs[0].token_ids) for one in found], right)
        assert all(one.num_cached_tokens >= 32 for one in found) or not cached


@pytest.mark.slow
@with_family(("family", "kind"), KINDS)
def test_several_settings_in_one_batch(family, kind):
    tome = {"method": "tome(stage='projector')"}
    settings = [{}, {"method": "mmtok"}, {"method": "full"}, tome, {**tome, "budget": "60%"}]
    settings += [{"method": "stride"}, {"method": "stride", "budget": "75%"}]
    settings += [{"budget": "75%"}, {"budget": 9}]
    questions = family.questions(kind)[:1] * len(settings)
    right = []
    for one in settings:
        method = one.get("method", "divprune")
        budget = None if method == "full" else one.get("budget", BUDGET)
        right += family.compress(questions[:1], method, budget)
    assert right[0] != right[2]
    same(family.serve(questions, settings), right)


@pytest.mark.slow
@with_family("family", [name for name, made in MODELS.items() if made.newlines])
@pytest.mark.parametrize(
    ("method", "budget"),
    [("stride", "75%"), ("stride", 9), ("pool", "50%"), ("divprune", 9), ("tome", 9)],
)
def test_newlines_of_emptied_rows(family, method, budget):
    """They go with their rows where the grid tells which; where the content decides they stay."""
    spec = "tome(stage='projector')" if method == "tome" else method
    questions = family.questions("image")
    right = family.in_process(questions, spec, budget)
    with all_newlines():
        stay = family.in_process(questions, spec, budget)
    assert stay != right
    found = family.serve(questions, {"method": spec, "budget": budget})
    same(found, stay if method in ("divprune", "tome") else right)


@pytest.mark.slow
@with_family("family", [name for name, kind in KINDS if kind == "clip"])
def test_pictures_and_clips_in_one_batch(family):
    image, clip = (family.questions(kind)[0] for kind in ("image", "clip"))
    both = family.both("image", "clip")
    asked = [(image, "stride"), (clip, "divprune"), (both, "divprune"), (clip, "stride")]
    asked += [(both, "stride"), (image, "divprune")]
    right = [family.compress([one], method, "60%")[0] for one, method in asked]
    assert right[0] != right[-1]
    settings = [{"method": method, "budget": "60%"} for _, method in asked]
    same(family.serve([one for one, _ in asked], settings), right)


@pytest.mark.slow
@with_family(("family", "kind"), KINDS)
def test_two_in_one_prompt_and_one_at_its_end(family, kind):
    """The answer goes on from the position after the whole image or clip."""
    two = [family.two(kind, n) for n in range(2) if kind in family.made.together]
    questions = [*two, *(family.last(kind, n) for n in range(3))]
    full, right = family.compress(questions, None), family.compress(questions, "divprune")
    assert full != right
    same(family.serve(questions, {"method": "full"}), full)
    same(family.serve(questions, {"method": "divprune"}), right)


@pytest.mark.slow
@with_family("family", [name for name, kind in KINDS if kind == "clip"])
def test_an_image_and_a_clip_in_one_prompt(family):
    questions = [family.both("image", "clip"), family.both("clip", "image")]
    right = family.compress(questions, "divprune")
    assert right != family.compress(questions, None)
    same(family.serve(questions, {"method": "divprune"}), right)


@pytest.mark.slow
@with_family("family", ["Qwen3-VL"])
def test_other_timestamps_make_another_clip(family):
    """The same frames; timestamps are among what the caches keep."""
    (question, *_) = family.questions("clip")
    questions = [question, replace(question, fps=1.0)]
    right = family.compress(questions, "divprune")
    assert right[0] != right[1]
    for _ in range(2):
        same(family.serve(questions, {"method": "divprune"}), right)


def same(found, right):
    """Answers of vLLM begin as those of transformers, which end at a near tie."""
    assert [ids[: len(one)] for ids, one in zip(found, right, strict=True)] == right
