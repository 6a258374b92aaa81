"""LLaVA-1.5 in vLLM: images in chunks of the prompt, original positions, methods by request."""

from __future__ import annotations

import pytest
from vllm_cases import ALL, PICTURES, answers, ids_of, request, servable
from vllm_engines import engine

from vlmcompress.errors import UnsupportedModelError
from vlmcompress.patches.signals import text_tower

BUDGET, TOKENS = 36, 144
UNSTABLE = {"vispruner"}
"""Which tokens it keeps changes with noise of 1e-6 in the signals, on transformers as well."""
SAYS_TEXT = {"cdpruner", "ppllava"}
"""Compare with the question in CLIP's space where there is a text tower, which no server has."""


@pytest.fixture(scope="module")
def llava():
    """Chunks of 24 tokens, so that every image of 36 is computed in several steps."""
    with engine("tiny-llava", "divprune", BUDGET, max_num_batched_tokens=24) as made:
        yield made


@pytest.fixture(scope="module")
def pruned():
    return answers("tiny-llava", tuple(ALL), "divprune", BUDGET)


@pytest.fixture(scope="module")
def full():
    return answers("tiny-llava", tuple(ALL))


def test_answers_are_those_of_compress(llava, pruned, full):
    found = llava.ask(ALL)
    assert ids_of(found) == pruned
    assert pruned != full
    assert {len(one.prompt_token_ids) for one in found[:6]} == {47, 48, 49, 51}


def test_again_from_the_prefix_cache(llava, pruned):
    llava.ask(ALL)
    found = llava.ask(ALL)
    assert ids_of(found) == pruned
    assert all(one.num_cached_tokens >= 32 for one in found)


def test_keep_and_renumber_and_full_differ(llava, pruned, full):
    """So that equality with one of them says something."""
    renumbered = answers("tiny-llava", tuple(ALL), "divprune", BUDGET, "renumber")
    place = next(n for n, case in enumerate(ALL) if case.files == ("market.png",))
    three = [ids[place] for ids in (full, pruned, renumbered)]
    assert len({tuple(ids) for ids in three}) == 3


@pytest.mark.parametrize("spec", [one for one in servable() if one not in UNSTABLE])
def test_every_method_by_request(llava, spec, monkeypatch):
    spec = spec.format(model="tiny-llava")
    if spec in SAYS_TEXT:
        monkeypatch.setattr(text_tower, "find", _none)
    right = answers.__wrapped__("tiny-llava", tuple(PICTURES), spec, BUDGET)
    found = llava.ask(PICTURES, {"method": spec})
    assert {len(one.prompt_token_ids) for one in found} == {47, 48, 49, 51}
    assert ids_of(found) == right


def _none(*_):
    raise UnsupportedModelError("no text tower")


@pytest.mark.parametrize("spec", sorted(UNSTABLE))
def test_methods_that_noise_decides_about_keep_their_counts(llava, spec):
    found = llava.ask(PICTURES, {"method": spec})
    assert {len(one.prompt_token_ids) for one in found} == {47, 48, 49, 51}


@pytest.mark.parametrize("settings", [{"budget": TOKENS}, {"budget": "100%"}, {"method": "full"}])
def test_keeping_all_is_the_full_model(llava, full, settings):
    """A larger budget than that of the server."""
    assert ids_of(llava.ask(ALL, settings)) == full


def test_other_settings_in_between_change_nothing(llava, pruned):
    llava.ask(ALL, {"method": "visionzip"})
    llava.ask(ALL, {"budget": 72})
    assert ids_of(llava.ask(ALL)) == pruned


def test_several_methods_and_budgets_in_one_batch(llava):
    settings = [
        {},
        {"budget": 72},
        {"method": "visionzip"},
        {"method": "mmtok", "budget": "50%"},
        {"method": "tome(stage='projector')"},
        {"method": "full"},
        {"method": "holov", "budget": 20},
        {"budget": 1},
    ]
    right = []
    for one in settings:
        method = one.get("method", "divprune")
        budget = None if method == "full" else one.get("budget", BUDGET)
        right += answers("tiny-llava", (PICTURES[1],), method, budget)
    assert ids_of(llava.ask([PICTURES[1]] * len(settings), settings)) == right
    assert ids_of(llava.ask([PICTURES[1]] * len(settings), settings)) == right


def test_the_prefix_cache_is_shared_by_questions_and_by_nothing_else(llava):
    """Blocks of 32 tokens: the border lies inside the image."""
    llava.llm.reset_prefix_cache()
    case, other = ALL[1], ALL[9]
    assert case.files == other.files
    assert case.question != other.question

    def cached(one, settings=None):
        (found,) = llava.ask([one], settings)
        return found.num_cached_tokens

    assert cached(case) == 0
    assert cached(other) == 32
    assert cached(case, {"method": "stride"}) == 0
    assert cached(case, {"budget": 37}) == 0
    assert cached(case, {"method": "random(seed=1)"}) == 0
    assert cached(case, {"method": "random(seed=2)"}) == 0
    assert cached(case, {"method": "mmtok"}) == 0
    assert cached(other, {"method": "mmtok"}) == 0  # looks at the question
    assert cached(case, {"method": "mmtok"}) == 32


def test_another_version_shares_nothing(llava, monkeypatch):
    llava.ask([PICTURES[0]])
    (found,) = llava.ask([PICTURES[0]])
    assert found.num_cached_tokens == 32
    monkeypatch.setattr("vlmcompress.serving.settings.__version__", "0.0.other")
    (found,) = llava.ask([PICTURES[0]])
    assert found.num_cached_tokens == 0


def test_a_name_of_the_users_for_a_picture_tells_settings_apart(llava, full, pruned):
    """`multi_modal_uuids`: the same name with other settings is not the same picture."""
    place = next(n for n, case in enumerate(ALL) if full[n] != pruned[n])
    for settings, right in ((None, pruned), ({"method": "full"}, full)):
        asked = request("tiny-llava", ALL[place], settings)
        asked["multi_modal_uuids"] = {"image": ["one", "two"][: len(ALL[place].files)]}
        assert ids_of(llava.generate([asked])) == [right[place]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fastv"}, "fastv cannot be served: fastv acts between decoder layers"),
        ({"method": "divprune+fastv"}, "cannot be served"),
        ({"method": "pyramiddrop"}, "cannot be served"),
        ({"method": "tome"}, "possible"),
        ({"method": "pixelprune"}, "pixels stage"),
        ({"method": "zoo-prune"}, "zoo-prune needs projection, which this llava model"),
        ({"method": "text-only"}, "keeps no token"),
        ({"method": "nope"}, "unknown method"),
        ({"method": "hiprune-pp", "budget": "0.4 flops"}, "cannot be served per request"),
        ({"budget": "120 ms"}, "cannot be served per request"),
        ({"budget": -3}, "must be above zero"),
        ({"budget": 0}, "must be above zero"),
        ({"positions": "renumber"}, "no setting 'positions'"),
        ("divprune", "must be an object"),
    ],
)
def test_what_cannot_be_served_fails_its_request_alone(llava, pruned, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        llava.ask([PICTURES[0]], settings)
    assert "\n" not in str(caught.value).strip()
    assert ids_of(llava.ask([PICTURES[0]])) == [pruned[0]]


def test_a_question_without_words_is_refused_where_they_are_needed(llava):
    asked = request("tiny-llava", PICTURES[0], {"method": "mmtok"})
    asked["prompt"] = "<image>"
    with pytest.raises(ValueError, match="has no words beside its images"):
        llava.generate([asked])


@pytest.mark.parametrize("method", [None, "divprune"])
def test_a_prompt_that_ends_with_its_image(llava, method, in_process):
    """The answer goes on from the position after the whole image."""
    text = "user : how many circles are there ? <image>"
    asked = request("tiny-llava", PICTURES[1], None if method else {"method": "full"})
    asked["prompt"] = text
    found = ids_of(llava.generate([asked], 12, ignore_eos=True))[0]
    assert found == in_process("tiny-llava", text, PICTURES[1].media, method, BUDGET)


def test_text_alone_is_answered(llava):
    (found,) = llava.generate([{"prompt": "user : what color is the circle ? assistant :"}])
    assert found.outputs[0].token_ids
