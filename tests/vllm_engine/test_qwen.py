"""Qwen2.5-VL in vLLM: images and clips, positions with three axes."""

from __future__ import annotations

import pytest
from vllm_cases import ALL, CLIPS, PICTURES, Case, answers, ids_of, request, servable
from vllm_engines import engine

BUDGET = "25%"


@pytest.fixture(scope="module")
def qwen():
    with engine("tiny-qwen", "divprune", BUDGET) as made:
        yield made


def test_answers_about_images_are_those_of_compress(qwen):
    right = answers("tiny-qwen", tuple(ALL), "divprune", BUDGET)
    found = qwen.ask(ALL)
    assert ids_of(found) == right
    assert right != answers("tiny-qwen", tuple(ALL))
    assert {len(one.prompt_token_ids) for one in found[:6]} == {22, 23, 24, 26}
    assert ids_of(qwen.ask(ALL)) == right


def test_keeping_all_is_the_full_model(qwen):
    assert ids_of(qwen.ask(ALL, {"method": "full"})) == answers("tiny-qwen", tuple(ALL))
    assert ids_of(qwen.ask(CLIPS, {"method": "full"})) == answers("tiny-qwen", tuple(CLIPS))


@pytest.mark.parametrize("cases", [PICTURES, CLIPS], ids=["images", "clips"])
@pytest.mark.parametrize("spec", servable())
def test_every_method_by_request(qwen, spec, cases):
    spec = spec.format(model="tiny-qwen")
    right = answers("tiny-qwen", tuple(cases), spec, BUDGET)
    found = qwen.ask(cases, {"method": spec})
    assert ids_of(found) == right


def test_a_budget_for_each_frame(qwen):
    settings = {"budget": "5 per frame"}
    right = answers("tiny-qwen", tuple(CLIPS), "divprune", "5 per frame")
    found = qwen.ask(CLIPS, settings)
    assert ids_of(found) == right
    (whole,) = qwen.ask(CLIPS[:1], {"method": "full"})
    assert len(whole.prompt_token_ids) - len(found[0].prompt_token_ids) == 2 * (36 - 5)


def test_clips_again_from_the_prefix_cache(qwen):
    right = answers("tiny-qwen", tuple(CLIPS), "divprune", "50%")
    for cached in (False, True):
        found = qwen.ask(CLIPS, {"budget": "50%"})
        assert ids_of(found) == right
        assert all(one.num_cached_tokens >= 32 for one in found) or not cached


@pytest.mark.parametrize("turn", [1, -1])
def test_an_image_and_a_clip_in_one_prompt(qwen, turn):
    cases = [
        Case((image.files + clip.files)[::turn], question, clip.frames)
        for image, clip in zip(PICTURES[:4], CLIPS[:4], strict=True)
        for question in (image.question, clip.question)
    ]
    right = answers("tiny-qwen", tuple(cases), "divprune", BUDGET)
    assert ids_of(qwen.ask(cases)) == right
    assert ids_of(qwen.ask(cases)) == right


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "downsample"}, "downsample acts at the pixels stage of qwen2_5_vl"),
        ({"method": "pixelprune"}, "pixels stage"),
        ({"method": "fastv"}, "fastv cannot be served"),
        ({"method": "zoo-prune"}, "needs projection"),
    ],
)
def test_what_cannot_be_served_fails_its_request_alone(qwen, settings, message):
    with pytest.raises(ValueError, match=message):
        qwen.ask([PICTURES[0]], settings)
    assert ids_of(qwen.ask([PICTURES[0]])) == answers(
        "tiny-qwen", (PICTURES[0],), "divprune", BUDGET
    )


@pytest.mark.parametrize("method", [None, "divprune"])
def test_a_prompt_that_ends_with_its_image(qwen, method, in_process):
    text = "<|im_start|>user : how many circles are there ? <|vision_start|><|image_pad|>"
    asked = request("tiny-qwen", PICTURES[1], None if method else {"method": "full"})
    asked["prompt"] = text
    found = ids_of(qwen.generate([asked], 12, ignore_eos=True))[0]
    assert found == in_process("tiny-qwen", text, PICTURES[1].media, method, BUDGET)
