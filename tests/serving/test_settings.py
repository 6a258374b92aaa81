"""What a server or a request may ask for, without vLLM."""

import json
from types import SimpleNamespace

import pytest

from vlmcompress.errors import VLMCompressError
from vlmcompress.serving import SERVED, hf_overrides
from vlmcompress.serving.settings import Settings


def server(**given):
    return Settings.of_server(SimpleNamespace(vlmcompress=given))


def test_overrides_of_an_architecture_are_the_settings_of_the_server():
    found = hf_overrides(["LlavaForConditionalGeneration"], "divprune", 0.25, "renumber")
    assert found["architectures"] == ["VlmcompressLlavaForConditionalGeneration"]
    assert server(**found["vlmcompress"]) == Settings("divprune", "25%", "renumber")


def test_the_architecture_that_is_served_is_found_among_others():
    found = hf_overrides(["Other", *SERVED], "divprune")
    assert found["architectures"] == [f"Vlmcompress{next(iter(SERVED))}"]
    with pytest.raises(VLMCompressError, match="GPT2LMHeadModel cannot be served"):
        hf_overrides(["GPT2LMHeadModel"], "divprune")


def test_a_server_without_settings_says_how_to_give_them():
    with pytest.raises(VLMCompressError, match="vlmcompress serve"):
        Settings.of_server(SimpleNamespace())


def test_a_request_changes_method_and_budget():
    settings = server(method="divprune", budget="25%")
    assert settings.for_request(None) is settings
    assert settings.for_request({"budget": 72}) == Settings("divprune", "72")
    assert settings.for_request({"method": "evs"}) == Settings("evs", "25%")
    assert settings.for_request({"method": "full"}) == Settings("full", None)
    assert settings.for_request({"method": "visionzip", "budget": "50%"}).budget == "50%"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must be an object"),
        ("divprune", "must be an object"),
        ({"positions": "renumber"}, "no setting 'positions'; possible: method, budget"),
        ({"text": [1]}, "no setting 'text'"),
        ({"x" * 500: 1}, "no setting 'xxx"),
        ({"method": ["divprune"]}, "method must be text"),
        ({"method": ""}, "names no method"),
        ({"method": "nope"}, "unknown method 'nope'"),
        ({"budget": -3}, "must be above zero"),
        ({"budget": "10**9"}, "not understood"),
        ({"budget": [36]}, "not understood"),
        ({"budget": True}, "not understood"),
        ({"budget": float("nan")}, "not understood"),
        ({"method": "divprune(" + "(" * 3000}, "cannot read"),
    ],
)
def test_a_request_that_asks_for_something_else_is_refused_in_one_line(given, message):
    with pytest.raises(VLMCompressError, match=message.replace("**", r"\*\*")) as caught:
        server(method="divprune", budget="25%").for_request(given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_positions_are_known_words():
    with pytest.raises(VLMCompressError, match="positions='sideways'"):
        server(method="divprune", positions="sideways")


def test_the_identity_tells_apart_whatever_decides_about_the_tokens(monkeypatch):
    base = Settings("divprune", "25%")
    others = [
        Settings("evs", "25%"),
        Settings("divprune", "26%"),
        Settings("divprune", "25%", "renumber"),
        Settings("divprune(norm='l2')", "25%"),
    ]
    seen = {one.identity(()) for one in [base, *others]} | {base.identity((1, 2))}
    monkeypatch.setattr("vlmcompress.serving.settings.__version__", "0.0.other")
    seen.add(base.identity(()))
    assert len(seen) == len(others) + 3
    assert Settings.of_identity(base.identity((1, 2))) == (base, (1, 2))
    json.loads(base.identity(()))
