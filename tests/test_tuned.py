"""A profile as it is read, and what `auto` takes of it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from raced import found, profile_of, row

import vlmcompress
from vlmcompress.api import compress
from vlmcompress.asking.setting import setting_of
from vlmcompress.budget.budget import Budget
from vlmcompress.errors import (
    BudgetError,
    CompositionError,
    UnsupportedModelError,
    VLMCompressError,
)
from vlmcompress.media.given import media_of
from vlmcompress.models.formats import read_config
from vlmcompress.models.names import resolve
from vlmcompress.patches.families.parts import ModelParts
from vlmcompress.serving.served_profile import served_method
from vlmcompress.tuned import Tuned, how_sure

SAMPLE = Path(vlmcompress.__file__).parent / "assets" / "samples" / "street.png"


@pytest.fixture
def profile(tmp_path, tiny_llava):
    """Writes a profile of tiny-llava, as changed."""

    def write(**changed):
        taken = {"50%": "scope", "25%": "stride", "12.5%": "pool"}
        content = profile_of(tiny_llava[0], taken) | changed
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_auto_takes_what_was_found(tiny_llava, profile):
    model, processor = tiny_llava
    picture = str(SAMPLE)
    answer = vlmcompress.ask(model, processor, picture, "what ?", profile=profile(), budget="25%")
    assert answer.report.method == "auto: stride"
    assert answer.report.reason == (
        "tuned at 25%: stride says what the whole model says in 90.0% (85.0 to 94.0) of 320 "
        "answers, KL 0.1; of the 4 left at the end not told apart from it: none"
    )
    named = vlmcompress.ask(model, processor, picture, "what ?", "stride", "25%")
    assert answer.report.images[0].kept == named.report.images[0].kept
    plain = vlmcompress.ask(model, processor, picture, "what ?", "auto", "25%")
    assert plain.report.method != answer.report.method


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("25%", "25%"), (0.5, "50%"), ("30%", "25%"), ("1%", "12.5%"), (36, "25%"), (144, "50%")],
)
def test_the_nearest_budget_is_taken_and_said(tiny_llava, profile, asked, taken):
    choice = Tuned.read(profile()).choice(ModelParts.of(tiny_llava[0]), Budget.parse(asked))
    assert choice.spec == {"50%": "scope", "25%": "stride", "12.5%": "pool"}[taken]
    near = f"tuned at {taken}, the nearest to {Budget.parse(asked)} in the profile: "
    exact = str(Budget.parse(asked)) == taken
    assert choice.reason.startswith(f"tuned at {taken}: " if exact else near)


def test_budgets_that_cannot_be_compared(tiny_llava, profile):
    tuned, parts = Tuned.read(profile()), ModelParts.of(tiny_llava[0])
    for budget in ("0.4 flops", "120 ms", "8 per frame"):
        with pytest.raises(BudgetError, match=r"cannot be compared .*: give one of 50%, 25%"):
            tuned.choice(parts, Budget.parse(budget))
    with pytest.raises(BudgetError, match=r"needs a budget; profile .* knows 50%, 25%, 12\.5%"):
        tuned.choice(parts, None)
    with pytest.raises(BudgetError, match="cannot be compared"):
        tuned.nearest(Budget.parse(64))  # of how many, nobody knows
    with pytest.raises(BudgetError, match="cannot be compared"):
        Tuned.read(profile(budgets={"64": found("pool")})).nearest(Budget.parse("25%"))
    assert Tuned.read(profile(budgets={"64": found("pool")})).nearest(Budget.parse(64)) == "64"


def test_another_model_is_refused(tiny_llava, tiny_qwen, profile):
    path = profile()
    with pytest.raises(UnsupportedModelError, match="of another model, tiny-llava: type llava th"):
        compress(tiny_qwen[0], "auto", "25%", profile=path)
    other = copy.deepcopy(tiny_llava[0])
    with compress(other, "auto", "25%", profile=path):
        pass
    with compress(other.to(torch.bfloat16), "auto", "25%", profile=path):
        pass
    for name, weight in other.named_parameters():
        if weight.dim() == 1 and "norm" in name:
            weight.data *= 1.5
    with pytest.raises(UnsupportedModelError, match="is of other weights, those of tiny-llava"):
        compress(other, "auto", "25%", profile=path)
    deeper = profile(model={**json.loads(path.read_text())["model"], "layers": 9})
    with pytest.raises(UnsupportedModelError, match="layers 9 there, 6 here"):
        compress(tiny_llava[0], "auto", "25%", profile=deeper)


def test_a_profile_goes_with_auto_only(tiny_llava, profile):
    with pytest.raises(CompositionError, match='give it with "auto", not divprune'):
        compress(tiny_llava[0], "divprune", "25%", profile=profile())
    with pytest.raises(CompositionError, match='give it with "auto", not divprune'):
        setting_of("divprune", profile=profile())
    for given in (profile(), Tuned.read(profile())):
        assert setting_of(profile=given).label == "auto"
        assert setting_of(profile=given).budget == "25%"


def test_a_chat_keeps_its_profile_until_a_method_is_named(tiny_llava, profile):
    picture = media_of(str(SAMPLE))
    with vlmcompress.Chat(*tiny_llava, picture, budget="25%", profile=profile()) as chat:
        assert chat.ask("what ?").report.method == "auto: stride"
        assert chat.set(budget="50%").profile is not None
        assert chat.ask("what ?").report.method == "auto: scope"
        assert chat.set("divprune", "50%").profile is None
        assert chat.set("auto", "25%").profile is not None
        assert chat.ask("what ?").report.method == "auto: stride"
        reports = [one.report for one in chat.compare(["auto", "divprune"], "50%")]
        assert [one.method for one in reports[1:]] == ["auto: stride", "auto: scope", "divprune"]


def test_what_was_read_is_as_good_as_its_file(tiny_llava, profile):
    path = profile()
    with compress(tiny_llava[0], budget="25%", profile=path) as c:
        by_file = c.report()
    read = Tuned.read(path)
    path.unlink()
    with compress(tiny_llava[0], "auto", "25%", profile=read) as c:
        assert c.report() == by_file
    assert by_file.method == "auto: stride"
    with pytest.raises(VLMCompressError, match=r"name of a file or what tune\(\) gave, not 7"):
        compress(tiny_llava[0], "auto", "25%", profile=7)
    with pytest.raises(VLMCompressError, match="no method given: write"):
        compress(tiny_llava[0])


@pytest.mark.parametrize(
    ("methods", "asked"),
    [
        (None, ["auto: stride"]),
        ("divprune", ["divprune", "auto: stride"]),
        (["auto", "divprune"], ["auto: stride", "divprune"]),
    ],
)
def test_compare_asks_what_the_profile_takes_besides(tiny_llava, profile, methods, asked):
    given = (*tiny_llava, SAMPLE, "what ?", methods)
    found = vlmcompress.compare(*given, "25%", profile=profile(), max_new_tokens=2)
    assert [one.report.method for one in found] == ["full", *asked]
    if methods != "divprune":
        return
    several = vlmcompress.compare(*given, ["25%", "50%"], profile=profile(), max_new_tokens=2)
    assert [one.report.method for one in several][3:] == ["auto: stride", "auto: scope"]
    assert "auto at 50%: tuned at 50%: scope says what" in str(several)


def test_compare_refuses_a_profile_of_another_model(tiny_qwen, profile):
    with pytest.raises(UnsupportedModelError, match="is of another model, tiny-llava"):
        vlmcompress.compare(*tiny_qwen, SAMPLE, "what ?", "divprune", profile=profile())


BROKEN = {
    "[]": "is no profile",
    "{": "is not JSON",
    '{"kind": "tuning", "format": 2}': "is no profile of this version",
}


@pytest.mark.parametrize("text", list(BROKEN))
def test_what_is_no_profile(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(VLMCompressError, match=BROKEN[text]) as caught:
        Tuned.read(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(VLMCompressError, match=r"cannot read profile .*: No such file"):
        Tuned.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"budgets": {}},
        {"budgets": {"25%": []}},
        {"budgets": {"25%": {**found("pool"), "rows": []}}},
        {"budgets": {"25%": {**found("pool"), "rows": [7]}}},
        {"budgets": {"25%": {**found("pool"), "rows": [{"method": "pool"}]}}},
        {"budgets": {"25%": {**found("pool"), "rows": [row("pool", agreement="all")]}}},
        {"budgets": {"25%": {**found("pool"), "rows": [row("pool", agreement_interval=[1])]}}},
        {"budgets": {"25%": {**found("pool"), "last": None}}},
        {"model": []},
        {"model": {"weights": ["1"]}},
        {"kind": "calibration"},
    ],
)
def test_a_damaged_profile_is_no_profile(profile, changed):
    with pytest.raises(VLMCompressError, match="is no profile of this version"):
        Tuned.read(profile(**changed))


def test_a_method_that_is_gone_is_said(tiny_llava, profile):
    path = profile(budgets={"25%": found("divprun")})
    with pytest.raises(VLMCompressError, match="did you mean 'divprune'"):
        compress(tiny_llava[0], "auto", "25%", profile=path)


def test_one_that_stands_alone_at_the_end_has_no_ties():
    assert how_sure({**found("pool"), "last": 1}).endswith("KL 0.1; no other was left at the end")


def test_a_server_takes_what_it_can_serve(profile):
    config = {"model_type": "llava"}
    path = profile(budgets={"25%": found("fastv", "pool"), "50%": found("fastv")})
    method, said = served_method(path, "25%", config)
    assert method == "pool"
    assert "the best that can be served is pool" in said
    with pytest.raises(CompositionError, match="has no method at 50% that can be served"):
        served_method(path, "50%", config)
    with pytest.raises(UnsupportedModelError, match="type llava there, qwen2_vl here"):
        served_method(path, "25%", {"model_type": "qwen2_vl"})
    with pytest.raises(CompositionError, match='give it with "auto", not pool'):
        served_method(path, "25%", config, "pool")
    with pytest.raises(BudgetError, match="auto needs a budget"):
        served_method(path, None, config)


@pytest.mark.parametrize("taken", [("50%", "25%", "12.5%"), ("72", "36", "18"), ("72", "25%")])
@pytest.mark.parametrize("asked", ["72", "36", "25%", "30%", "13%", "1%", "7", "500"])
def test_a_server_takes_what_compress_takes(tiny_llava, profile, taken, asked):
    """Every picture of this model has 144 tokens: 72, 36 and 18 of them are these shares."""
    methods = dict(zip(taken, ("scope", "stride", "pool"), strict=False))
    path = profile(budgets={budget: found(method) for budget, method in methods.items()})
    right = Tuned.read(path).choice(ModelParts.of(tiny_llava[0]), Budget.parse(asked))
    config = read_config(resolve("tiny-llava"), {})
    before = copy.deepcopy(config)
    assert served_method(path, asked, config) == (right.spec, right.reason)
    assert config == before
    shares = {"72": "50%", "36": "25%", "18": "12.5%"}
    near = {"72": "50%", "30%": "25%", "13%": "12.5%", "1%": "12.5%", "7": "12.5%", "500": "50%"}
    if len(taken) == 3:
        named = {shares.get(budget, budget): method for budget, method in methods.items()}
        assert right.spec == named[near.get(asked, shares.get(asked, asked))]


def test_a_server_refuses_what_compress_refuses(tiny_qwen, tmp_path):
    """Pictures of this model have any number of tokens: nobody knows what share a count is."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(profile_of(tiny_qwen[0], {"192": "scope", "128": "stride"})))
    config = read_config(resolve("tiny-qwen"), {})
    assert served_method(path, 128, config)[0] == "stride"
    message = r"budget 25% cannot be compared with those of profile '.*': give one of 192, 128$"
    with pytest.raises(BudgetError, match=message):
        served_method(path, "25%", config)
    with pytest.raises(BudgetError, match=message):
        Tuned.read(path).choice(ModelParts.of(tiny_qwen[0]), Budget.parse("25%"))


def test_a_damaged_configuration_tells_no_number_of_tokens(profile):
    damaged = {**read_config(resolve("tiny-llava"), {}), "vision_config": 7}
    assert served_method(profile(), "25%", damaged)[0] == "stride"
    with pytest.raises(BudgetError, match=r"budget 36 cannot be compared"):
        served_method(profile(), 36, damaged)
