"""Calibration of the built-in model: what is measured is what the model does."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import vlmcompress
from vlmcompress.calibrate import (
    CalibrationQuestion,
    calibrate_adaptinfer,
    calibrate_gsearch,
    read_questions,
    training_questions,
)
from vlmcompress.calibrate.adaptinfer import RATIOS, attention_maps
from vlmcompress.calibrate.agreement import agreement, log_likelihood, next_tokens
from vlmcompress.calibrate.changes import locations
from vlmcompress.calibrate.questions import batches
from vlmcompress.errors import BudgetError, MediaError, VLMCompressError
from vlmcompress.eval.tasks.from_worlds import WORLDS
from vlmcompress.eval.worlds import world as worlds
from vlmcompress.methods.adaptinfer import AdaptInfer
from vlmcompress.methods.psigmoid import PSigmoid
from vlmcompress.patches.engine import engine_of

RUNS = {"adaptinfer": calibrate_adaptinfer, "gsearch": calibrate_gsearch}
METHODS = {"adaptinfer": AdaptInfer, "gsearch": lambda path: PSigmoid(table=path)}


@pytest.fixture(scope="module")
def asked():
    return training_questions(6)


@pytest.fixture(scope="module")
def found(tiny_llava, asked):
    return {kind: run(*tiny_llava, asked, name="tiny", batch=3) for kind, run in RUNS.items()}


@pytest.mark.parametrize("batch", [1, 6])
def test_maps_are_the_mean_of_the_models_own_attention(asked, tiny_llava, batch):
    model, processor = vlmcompress.load(
        "tiny-llava", device="cpu", dtype="float32", attn_implementation="eager"
    )
    maps = attention_maps(*tiny_llava, asked, batch)
    assert len(maps) == len(asked)
    for one, inputs in zip(maps, batches(model, processor, asked, 1), strict=True):
        with torch.no_grad():
            whole = model(**inputs, output_attentions=True).attentions
        visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
        rows = torch.stack([layer[0, :, int(visual[-1]) + 1 :].mean((0, 1)) for layer in whole])
        assert one.shape == (6, 144)
        torch.testing.assert_close(one, rows[:, visual], atol=1e-5, rtol=1e-4)


def test_looking_leaves_the_model_as_it_was(tiny_llava, asked):
    model, processor = tiny_llava
    inputs = next(batches(model, processor, asked, 6))
    with torch.no_grad():
        before = model(**inputs).logits
        attention_maps(model, processor, asked, 6)
        assert engine_of(model) is None
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("kind", list(RUNS))
def test_the_schedule_can_be_used(tiny_llava, found, kind, tmp_path, asked):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(found[kind]))
    method = METHODS[kind](str(path))
    model, processor = tiny_llava
    shares = found[kind]["shares"]
    for budget, mean in ((None, sum(shares) / 6), ("60%", 0.6)):
        with vlmcompress.compress(model, method, budget) as handle, torch.no_grad():
            model(**next(batches(model, processor, asked, 2)))
        for image in handle.report().images:
            assert image.mean == pytest.approx(144 * mean, abs=1.0)
            assert image.per_layer[0] == 144 > image.per_layer[-1]


@pytest.mark.parametrize("kind", list(RUNS))
def test_the_document_says_what_was_measured(found, kind):
    one = found[kind]
    assert (one["kind"], one["version"]) == (kind, 1)
    assert one["model"] == {"name": "tiny", "layers": 6}
    assert one["measured"]["samples"] == 6
    assert one["provenance"]["versions"]["vlmcompress"] == vlmcompress.__version__
    assert json.loads(json.dumps(one)) == one
    assert one["shares"][0] == 1
    assert one["shares"] == sorted(one["shares"], reverse=True)


def test_adaptinfer_follows_its_measurement(found):
    one = found["adaptinfer"]
    assert sum(one["measured"]["histogram"]) == 6
    assert one["measured"]["curve"][-1] == pytest.approx(1)
    cuts = [location + 1 for location in one["locations"]]
    drops = [layer for layer in range(1, 6) if one["shares"][layer] < one["shares"][layer - 1]]
    assert set(drops) <= set(cuts)
    assert drops[-1] == cuts[-1]


def test_adaptinfer_takes_the_likeliest_of_what_it_tried(found):
    one, tried = found["adaptinfer"], found["adaptinfer"]["measured"]["tried"]
    assert [entry["ratio"] for entry in tried] == [*RATIOS, *RATIOS]
    assert tried[0]["locations"] == locations(one["measured"]["histogram"])
    assert tried[-1]["locations"] == [0, 1, 3]
    best = max(tried, key=lambda entry: entry["log_likelihood"])
    assert (one["locations"], one["ratio"]) == (best["locations"], best["ratio"])
    assert len({entry["log_likelihood"] for entry in tried}) > 5
    # Halfway between all tokens and the least that the deeper of both first cuts allows.
    first = max(entry["locations"][0] + 1 for entry in tried)
    assert sum(one["shares"]) / 6 == pytest.approx((1 + first / 6) / 2, abs=1e-4)


def test_locations_that_cannot_meet_the_budget_are_not_tried(tiny_llava, asked):
    one = calibrate_adaptinfer(*tiny_llava, asked[:2], name="tiny", budget="30%")
    assert {entry["locations"][0] for entry in one["measured"]["tried"]} == {0}
    assert sum(one["shares"]) / 6 == pytest.approx(0.3, abs=1e-4)


def test_likelihoods_are_those_of_the_model(tiny_llava, asked):
    model, processor = tiny_llava
    inputs = list(batches(model, processor, asked, 2))
    tokens = next_tokens(model, inputs, "full")
    expected = []
    for one, token in zip(batches(model, processor, asked, 1), tokens.tolist(), strict=True):
        with torch.no_grad():
            probabilities = model(**one).logits[0, -1].softmax(-1)
        assert int(probabilities.argmax()) == token
        expected.append(float(probabilities[token].log()))
    found = log_likelihood(model, inputs, "full", tokens)
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert log_likelihood(model, inputs, "text-only", tokens) < found - 0.5
    fewer = next_tokens(model, inputs, "text-only")
    assert agreement(fewer, tokens) == sum((fewer == tokens).tolist()) / 6 < 1


def test_gsearch_follows_its_measurement(found):
    one = found["gsearch"]
    assert one["measured"]["found"][0] == 1
    assert all((share * 16).is_integer() for share in one["measured"]["found"])
    assert sum(one["shares"]) / 6 == pytest.approx(one["measured"]["mean"], abs=1e-4)


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_budget_is_met(tiny_llava, asked, kind):
    one = RUNS[kind](*tiny_llava, asked[:2], name="tiny", budget="55%")
    assert sum(one["shares"]) / 6 == pytest.approx(0.55, abs=1e-4)
    assert one["budget"] == "55%"


@pytest.mark.parametrize("kind", list(RUNS))
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": "64"}, BudgetError, "'64' is no share"),
        ({"budget": "25% per frame"}, BudgetError, "is no share"),
        ({"budget": "10%"}, BudgetError, "cannot keep fewer|out of reach"),
        ({"asked": []}, VLMCompressError, "at least one question"),
    ],
)
def test_what_cannot_be_is_one_clear_error(tiny_llava, asked, kind, change, error, message):
    given = {"asked": asked[:1], "name": "tiny"} | change
    with pytest.raises(error, match=message) as raised:
        RUNS[kind](*tiny_llava, **given)
    assert "\n" not in str(raised.value)
    assert engine_of(tiny_llava[0]) is None


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_tolerance_is_checked(tiny_llava, asked, tolerance):
    with pytest.raises(VLMCompressError, match="tolerance must be at least 0 and below 1"):
        calibrate_gsearch(*tiny_llava, asked, name="tiny", tolerance=tolerance)


@pytest.mark.parametrize(("world", "size"), [("pictures", 96), ("posters", 192)])
def test_built_in_questions_are_of_training_seeds_only(monkeypatch, world, size):
    seeds, make = [], WORLDS[world].make
    watched = replace(WORLDS[world], make=lambda seed: seeds.append(seed) or make(seed))
    monkeypatch.setitem(WORLDS, world, watched)
    last = worlds.TRAIN_SEEDS[-1]
    for seed in (0, 5, last, 10**9 + 7):
        found = training_questions(15, seed, world)
        assert [one.picture.size for one in found] == [(size, size)] * 15
    assert set(seeds) <= set(worlds.TRAIN_SEEDS)
    assert not set(seeds) & set(worlds.HELD_OUT_SEEDS)
    assert last in seeds


def test_built_in_questions_repeat_and_differ_with_the_seed():
    texts = [[one.question for one in training_questions(14, seed)] for seed in (0, 0, 100)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 7


@pytest.fixture
def data(tmp_path):
    picture = training_questions(1)[0].picture
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "one.png")
    line = json.dumps({"image": "a/one.png", "question": "what color is it ?", "answer": "red"})

    def write(text):
        (tmp_path / "d.jsonl").write_text(text.replace("LINE", line))
        return tmp_path / "d.jsonl"

    return write


def test_a_data_file_is_read_relative_to_itself(data, tmp_path):
    one = CalibrationQuestion(tmp_path / "a" / "one.png", "what color is it ?")
    assert read_questions(data("LINE\n\nLINE\nLINE\n")) == [one] * 3
    assert read_questions(data("LINE\nLINE\nLINE"), 2) == [one] * 2


def test_a_data_file_is_what_the_model_is_asked(tiny_llava, data):
    model, processor = tiny_llava
    picture = training_questions(1)[0].picture
    read = partial(batches, model, processor, size=2)
    from_file = list(read(asked=read_questions(data("LINE\nLINE\nLINE"))))
    assert [len(part["input_ids"]) for part in from_file] == [2, 1]
    given = next(read(asked=[CalibrationQuestion(picture, "what color is it ?")] * 2))
    assert all(torch.equal(given[name], from_file[0][name]) for name in given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("\n\n", "has no questions"),
        ("LINE\n{", "line 2 is not JSON"),
        ("[]", "line 1 must be like"),
        ('"x"', "line 1 must be like"),
        ('{"image": "a/one.png"}', "line 1 must be like"),
        ('{"image": "a/one.png", "question": " "}', "line 1 must be like"),
        ('{"image": 3, "question": "what ?"}', "line 1 must be like"),
        ('{"image": "none.png", "question": "what ?"}', r"none\.png' does not exist"),
    ],
)
def test_a_bad_data_file_is_one_clear_error(data, text, message):
    with pytest.raises(VLMCompressError, match=message) as error:
        read_questions(data(text))
    assert "\n" not in str(error.value)


def test_a_data_file_of_bytes_or_none_is_one_clear_error(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VLMCompressError, match="cannot be read"):
        read_questions(tmp_path / "d.jsonl")
    with pytest.raises(MediaError, match=r"data file .*none\.jsonl' does not exist"):
        read_questions(tmp_path / "none.jsonl")
