"""`method="auto"`: what is taken where, and why; and the same from the command line."""

import json
from pathlib import Path

import pytest
from bare import last_logits
from subject_models import IMAGE, LLAMA, SUBJECTS, build
from subject_models import TOWER as TILE
from typer.testing import CliRunner

import vlmcompress
from dev.pages import committed_results as committed
from dev.pages.auto_table import document
from vlmcompress import auto
from vlmcompress.api import compress
from vlmcompress.auto import ChoiceInputs, most_accurate
from vlmcompress.cli import app
from vlmcompress.errors import BudgetError, CompositionError, UnsupportedModelError
from vlmcompress.methods.composition.spec import parse
from vlmcompress.methods.contracts.method import resolve
from vlmcompress.models import loading
from vlmcompress.patches.families.registry import family_of
from vlmcompress.patches.signals.availability import given_by

SAMPLE = Path(vlmcompress.__file__).parent / "assets" / "samples" / "street.png"


def right(method, accuracy):
    """As auto.json has it."""
    return {"method": method, "accuracy": accuracy, "interval": [0.25, 0.755], "n": 40}


TABLES = {
    "pixels": {
        "50%": [right("p2", 0.9)],
        "25%": [right("p4", 0.8), right("q4", 0.7)],
        "12.5%": [right("p8", 0.6)],
    },
    "encoder": {"50%": [right("e2", 0.9)], "25%": [right("e4", 0.8)], "12.5%": [right("e8", 0.6)]},
    "behind": {
        "50%": [right("a2", 0.99), right("b2", 0.98)],
        "25%": [right("a4", 0.9), right("b4", 0.8)],
        "12.5%": [right("a8", 0.7)],
        "6.25%": [right("a16", 0.5)],
    },
}
QWEN, LLAVA = ("pixels", "projector", "decoder"), ("encoder", "projector", "decoder")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where calibrations go: not to the user's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("case", "spec", "words"),
    [
        (ChoiceInputs("50%", 0.5, None, 0.9, QWEN), "a2", "50% leaves 50% of the tokens; with"),
        (ChoiceInputs("36%", 0.36, None, 0.9, QWEN), "a2", "99.0% (25.0 to 75.5) of 40"),
        (ChoiceInputs("35%", 0.35, None, 0.9, QWEN), "a4", "% of the tokens a4 is right in 90.0%"),
        (ChoiceInputs("3%", 0.03, None, 0.9, QWEN), "a16", "leaves 3%"),
        # A cost that methods behind the encoder meet with tokens enough.
        (ChoiceInputs("0.8 flops", 0.3, 0.6, 0.5, QWEN), "a4", "leaves 30%"),
        (ChoiceInputs("0.8 flops", auto.LEAST, 0.6, 0.5, QWEN), "a8", "leaves 12%"),
        # Too few tokens are left, or none: less is encoded, each stage half the way.
        (ChoiceInputs("0.6 flops", 0.12, 0.25, 0.5, QWEN), "p2+a2", "encoder is 50% of the FLOPs"),
        (ChoiceInputs("0.3 flops", None, 0.0625, 0.5, QWEN), "p4+a4", "p4 is right in 80.0%"),
        (ChoiceInputs("0.3 flops", None, 0.0625, 0.5, LLAVA), "e4+a4", "too much for 0.3 flops"),
        (ChoiceInputs("0.3 flops", None, 0.0625, 0.09, QWEN), "a8", "leaves 12%"),
        (ChoiceInputs("0.3 flops", 0.05, 0.0625, 0.5, ("projector",)), "a16", "leaves 5%"),
        (ChoiceInputs("90 ms", None, 0.25, 0.3, LLAVA), "e2+a2", "the FLOPs, too much for 90 ms"),
    ],
)  # fmt: skip
def test_the_choice(monkeypatch, case, spec, words):
    monkeypatch.setattr(auto, "_tables", lambda: TABLES)
    found = most_accurate(case, lambda spec, share: True)
    assert found.spec == spec
    assert words in found.reason


def test_what_does_not_fit_is_passed_over(monkeypatch):
    monkeypatch.setattr(auto, "_tables", lambda: TABLES)
    case, asked = ChoiceInputs("0.3 flops", None, 0.0625, 0.5, QWEN), []

    def fits(spec, share):
        asked.append((spec, share))
        return spec == "q4+a4"

    assert most_accurate(case, fits).spec == "q4+a4"
    assert asked == [("p4+a4", 0.0625), ("p4+b4", 0.0625), ("q4+a4", 0.0625)]
    with pytest.raises(UnsupportedModelError, match=r"stages pixels, .* at 0\.3 flops: name one"):
        most_accurate(case, lambda spec, share: False)


INSIDE = TABLES | {
    "inside": {
        "25%": [right("t", 0.88), right("u", 0.84)],
        "12.5%": [right("t", 0.75), right("u", 0.74)],
    }
}
TOWER = ("pixels", "encoder", "projector", "decoder")


@pytest.mark.parametrize(
    ("case", "shares", "spec", "words"),
    [
        # Behind the encoder 12.5 % of the tokens meet it, with less of the tower 25 %.
        (("0.6 flops", 0.13, 0.3, 0.5, TOWER), {"t": 0.25, "u": 0.2}, "t", "leaves 25% of the"),
        (("0.6 flops", 0.13, 0.3, 0.5, TOWER), {"t": 0.1, "u": 0.25}, "u", "inside it; with 25%"),
        # Where tokens enough are left behind it, that was more often right.
        (("0.9 flops", 0.5, 0.6, 0.5, TOWER), {"t": 0.6, "u": 0.6}, "a2", "leaves 50%"),
        (("0.6 flops", 0.3, 0.4, 0.5, TOWER), {"t": 0.4, "u": 0.4}, "a4", "leaves 30%"),
        # 0.9 and 0.99, measured apart, are 0.891 together.
        (("0.6 flops", 0.1, 0.25, 0.5, TOWER), {"t": 0.25, "u": 0.25}, "p2+a2", "too much for"),
        (("0.6 flops", 0.1, 0.06, 0.5, TOWER), {"t": 0.2, "u": 0.2}, "t", "t is right in 88.0%"),
        # A fifth of the FLOPs or less, out of reach, or no tower that lets tokens be dropped.
        (("0.6 flops", 0.13, 0.3, 0.2, TOWER), {"t": 0.25, "u": 0.2}, "a8", "leaves 13%"),
        (("0.6 flops", 0.13, 0.3, 0.5, TOWER), {"t": None, "u": None}, "a8", "leaves 13%"),
        (("0.6 flops", 0.13, 0.3, 0.5, QWEN), {"t": 0.25, "u": 0.2}, "a8", "leaves 13%"),
    ],
)  # fmt: skip
def test_dropping_inside_the_tower_is_taken_where_it_was_more_often_right(
    monkeypatch, case, shares, spec, words
):
    monkeypatch.setattr(auto, "_tables", lambda: INSIDE)
    inputs, asked = ChoiceInputs(*case, shares.get), []

    def fits(spec, share):
        asked.append((spec, share))
        return True

    found = most_accurate(inputs, fits)
    assert found.spec == spec
    assert words in found.reason
    assert all(share == shares[spec] for spec, share in asked if spec in shares)
    if spec in shares:
        others = most_accurate(inputs, lambda one, share: one != spec)
        assert others.spec != spec


def test_a_tower_that_lets_nothing_merge_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(auto, "_tables", lambda: TABLES)
    case = ChoiceInputs("90 ms", None, 0.25, 0.5, LLAVA)
    assert most_accurate(case, lambda spec, share: not spec.startswith("e")).spec == "a8"


def test_the_figures_are_those_of_the_committed_results():
    file = Path(vlmcompress.__file__).parent / "methods" / "data" / "auto.json"
    found = json.loads(file.read_text())
    assert found == json.loads(json.dumps(document()))
    task = committed.results("tiny-llava")["tasks"]["pictures"]
    row = next(r for r in task["cases"] if (r["method"], r["budget"]) == ("pitome", "25%"))
    (figure,) = [one for one in found["encoder"]["25%"] if one["method"] == "pitome"]
    assert figure["accuracy"] == pytest.approx(row["accuracy"], abs=1e-4)
    assert figure["interval"] == pytest.approx(row["interval"], abs=1e-4)
    assert figure["n"] == task["scored"]
    for share in found["behind"].values():
        listed = [one["accuracy"] for one in share]
        assert listed == sorted(listed, reverse=True)
        methods = {one["method"] for one in share}
        assert "divprune" in methods
        assert not {"cdpruner", "mmtok", "zoo-prune", "full"} & methods


MODELS = ["random llava", "random llava-next", "random qwen2.5-vl", "random qwen3-vl",
          "random internvl", "random gemma3", "random idefics3"]  # fmt: skip


@pytest.mark.parametrize("budget", ["50%", 5, "0.9 flops", "5000 ms"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_taken_runs(name, budget):
    one = SUBJECTS[name]()
    inputs = one.batch(one.prompt(1, 1, text=5), one.prompt(2, 2, text=7))
    with compress(one.model, "auto", budget=budget) as c:
        last_logits(one, inputs)
    report = c.report()
    pipeline = c._engine.planner.pipeline
    assert report.method == f"auto: {pipeline.name}"
    assert report.reason in str(report)
    assert report.engaged == (budget != "5000 ms")
    base = family_of(one.model).base(one.model)
    assert not resolve(pipeline.needs, given_by(family_of(one.model), base))[1]
    assert not {"text", "relevance"} & set(report.signals)


def test_a_model_with_a_costly_encoder_is_shown_less(tiny_qwen, tiny_llava):
    taken = {}
    for model, _ in (tiny_qwen, tiny_llava):
        for budget in ("0.4 flops", "0.9 flops"):
            with compress(model, "auto", budget=budget) as c:
                taken[model.config.model_type, budget] = c._engine.planner.pipeline
    assert taken["qwen2_5_vl", "0.4 flops"].upstream.name in ("pixelprune", "unit-drop")
    assert taken["llava", "0.4 flops"].upstream.name in ("tome", "pitome", "mctf", "unit-drop")
    for kind in ("qwen2_5_vl", "llava"):
        assert taken[kind, "0.9 flops"].upstream is None
    assert "auto" not in str(parse("divprune").name)


def test_tiles_and_windows_are_taken_into_account(monkeypatch):
    seen = {}

    def most_accurate(case, fits):
        seen[case.budget] = case
        assert fits("divprune", 0.5)
        assert not fits("pitome", 0.5)
        assert not fits("fastv(k=5)", 0.1)
        if "pixels" in case.stages:
            assert fits("pixelprune+divprune", 0.5)
            assert not fits("pixelprune+pool", 0.5)  # no grid behind it
        return auto.MethodChoice("divprune", "tested")

    monkeypatch.setattr(auto, "most_accurate", most_accurate)
    one = SUBJECTS["random llava-next"]()
    for budget in ("25%", 72, "0.9 flops", "0.01 flops", "90 ms"):
        with compress(one.model, "auto", budget=budget):
            pass
    assert (seen["25%"].behind, seen["25%"].before) == (0.25, None)
    assert (seen["72"].behind, seen["72"].before) == (0.125, None)
    assert (seen["90 ms"].behind, seen["90 ms"].before) == (None, 0.25)
    with compress(SUBJECTS["tiny-qwen"]().model, "auto", budget="0.8 flops"):
        pass
    assert seen["0.8 flops"].behind < seen["0.8 flops"].before < 1
    assert set(seen.pop("0.8 flops").stages) == set(TOWER)
    assert all(set(case.stages) == {"projector", "decoder"} for case in seen.values())
    assert seen["0.01 flops"].behind is None
    assert 0 < seen["0.9 flops"].encoder < 1


def test_signals_that_a_model_lacks(monkeypatch, tiny_llava):
    def most_accurate(case, fits):
        seen.append(fits("hiprune", 0.5))
        assert fits("divprune", 0.5)
        return auto.MethodChoice("divprune", "tested")

    seen = []
    monkeypatch.setattr(auto, "most_accurate", most_accurate)
    for given in (frozenset({"encoder_attention"}), frozenset()):
        monkeypatch.setattr(auto, "given_by", lambda family, base, given=given: given)
        compress(tiny_llava[0], "auto", budget="50%").remove()
    assert seen == [True, False]


def test_no_cuts_where_the_decoder_s_layers_forbid_them(monkeypatch, tiny_llava):
    def refuse(*_):
        raise UnsupportedModelError("layers of a kind that cannot be cut")

    monkeypatch.setattr(auto, "layer_kinds", refuse)
    with compress(tiny_llava[0], "auto", budget="50%") as c:
        pipeline = c._engine.planner.pipeline
    assert (pipeline.decoder, pipeline.upstream) == (None, None)
    assert pipeline.projector is not None


@pytest.mark.parametrize("tower", ["clip_vision_model", "pixtral"])
def test_nothing_before_the_projector_where_the_tower_lets_no_method_in(tower):
    """CLS is a token behind the one, and the other takes pictures of any size."""
    model = build(
        "Llava",
        vision_config=TILE | {"model_type": tower},
        text_config=LLAMA,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with compress(model, "auto", budget="90 ms") as c:
        assert c._engine.planner.pipeline.upstream is None


def test_wrong_use(tiny_llava):
    model, _ = tiny_llava
    with pytest.raises(BudgetError, match="auto needs a budget"):
        compress(model, "auto")
    with pytest.raises(CompositionError, match="auto has no options, got k"):
        compress(model, "auto", budget="25%", k=3)
    with compress(model, "divprune", budget="25%") as c:
        assert c.report().reason is None


def ask(*arguments):
    return CliRunner().invoke(app, ["ask", str(SAMPLE), "what color is the circle ?", *arguments])


@pytest.fixture
def loaded(monkeypatch, tiny_llava):
    monkeypatch.setattr(loading, "load", lambda name, **options: tiny_llava)


def test_the_command_line_shows_the_choice_and_the_cost(loaded):
    done = ask("--method", "auto", "--budget", "0.4 flops", "--json", "--max-new-tokens", "3")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["method"].startswith("auto: ")
    assert (report["asked"], report["budget"]) == ("0.4 flops", "0.4 flops")
    assert 0.3 < report["measured"] <= 0.4
    text = ask("--method", "auto", "--budget", "0.4 flops", "--max-new-tokens", "3").stdout
    assert f"method     {report['method']}: the encoder is" in text
    assert "cost       asked 0.4 flops, predicted 0.39" in text
    plain = ask("--budget", "25%", "--max-new-tokens", "3").stdout
    assert "cost " not in plain
    assert "method " not in plain
    default = ask("--method", "auto", "--max-new-tokens", "3")
    assert "budget 25%" in default.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "2 flops"], "more than the full model computes"),
        (["--budget", "0 ms"], "must be above zero"),
        (["--budget", "0.4 gflops"], '"0.4 flops" or a time such as "120 ms"'),
        (["--method", "auto", "--option", "k=3"], "auto has no options, got k"),
        (["--budget", "0.1 flops"], "out of reach: divprune costs 0.4"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(loaded, arguments, words):
    done = ask(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_the_list_of_methods_names_it():
    assert "auto takes those" in CliRunner().invoke(app, ["ls", "methods"]).stdout
