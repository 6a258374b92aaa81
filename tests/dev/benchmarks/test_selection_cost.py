"""The table of what the choice itself costs, on a picture small enough for a test."""

import json
import sys

import pytest
import torch

from dev.benchmarks import selection_cost as selector_speed
from dev.benchmarks import selection_inputs as selector_work
from dev.benchmarks.random_signals import Widths, make, methods
from vlmcompress.methods import DecoderMethod
from vlmcompress.methods.registry import METHODS
from vlmcompress.tokens import Grid

PARTS = (Grid(1, 4, 4), Grid(1, 4, 4))


@pytest.fixture
def model(monkeypatch):
    small = selector_work.Model(
        selector_work.LlamaDecoderLayer,
        selector_work.LlamaRotaryEmbedding,
        selector_work.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=6
        ),
        Widths(),
    )
    monkeypatch.setitem(selector_work.MODELS, "small", small)
    monkeypatch.setitem(selector_work.PICTURES, "two", PARTS)
    return small


def run(monkeypatch, path, *given):
    call = f"x --out {path} --models small --pictures two --dtypes float32 --counts 24 --seconds 0"
    monkeypatch.setattr(sys, "argv", [*call.split(), "--threads", "1", *given])
    selector_speed.main()


def test_every_method_has_a_line_at_each_of_its_stages(model, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path / "t.json")
    made = json.loads((tmp_path / "t.json").read_text())
    expected = {(name, stage) for name, cls in METHODS.items() for stage in cls.stages}
    assert {(row["method"], row["stage"]) for row in made["rows"]} == expected
    assert made["provenance"]["threads"] == 1
    for row in made["rows"]:
        assert row["tokens"] == 32
        assert row["share"] == pytest.approx(row["ms"] / row["prefill_ms"], rel=0.05, abs=1e-3)
        assert row["above"] == (row["share"] > 0.01) or row["share"] == pytest.approx(0.01)


def figures(path):
    rows = json.loads(path.read_text())["rows"]
    return {(row["method"], row["stage"]): row["ms"] for row in rows}


def test_what_the_file_has_stays_and_only_what_is_missing_is_measured(model, monkeypatch, tmp_path):
    path, taken = tmp_path / "t.json", iter(range(1, 99))
    monkeypatch.setattr(selector_speed, "milliseconds", lambda work, seconds: next(taken))
    monkeypatch.setattr(selector_speed, "prefill", lambda *given: 1000.0)
    # The one keeps what it is asked for, the other cannot be asked.
    run(monkeypatch, path, "--methods", "stride", "todre-exit")
    assert figures(path) == {("stride", "projector"): 1, ("todre-exit", "decoder"): 2}
    run(monkeypatch, path, "--methods", "todre-exit", "pool", "stride")
    first = figures(path)
    assert list(first.items()) == [
        (("stride", "projector"), 1),
        (("pool", "decoder"), 3),
        (("pool", "projector"), 4),
        (("todre-exit", "decoder"), 2),
    ]
    run(monkeypatch, path, "--methods", "todre-exit", "--again")
    assert figures(path) == first | {("todre-exit", "decoder"): 5}
    row = json.loads(path.read_text())["rows"][-1]
    assert row["measured"]["command"].endswith("--methods todre-exit --again")
    run(monkeypatch, path, "--methods", "todre-exit")  # there is nothing to do
    assert figures(path) == first | {("todre-exit", "decoder"): 5}


def test_a_run_that_is_stopped_leaves_what_it_measured(model, monkeypatch, tmp_path):
    path = tmp_path / "t.json"
    found = iter([1.0, 2.0])
    monkeypatch.setattr(selector_speed, "milliseconds", lambda work, seconds: next(found))
    monkeypatch.setattr(selector_speed, "prefill", lambda *given: 1000.0)
    with pytest.raises((StopIteration, RuntimeError)):
        run(monkeypatch, path)
    assert list(figures(path).values()) == [1.0, 2.0]


def test_the_name_of_a_paper_stands_for_its_methods():
    assert selector_speed.cases(["flashvid", "stride"]) == [
        ("flashvid-merge", "projector"),
        ("flashvid-prune", "decoder"),
        ("stride", "projector"),
    ]


def test_an_unknown_method_is_one_line(model, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path / "t.json", "--methods", "strides")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("selection_cost: unknown method 'strides': did you mean 'stride'?")
    assert error.count("\n") == 1


def test_a_method_is_asked_part_by_part_for_all_of_the_count(model, monkeypatch, tmp_path):
    asked = []
    cls = METHODS.get("divprune")
    monkeypatch.setattr(cls, "select", lambda self, shown, count: asked.append((shown, count)))
    method = make("divprune", tmp_path)
    selector_work.works(method, model, PARTS, torch.bfloat16, 5)()
    assert [count for _, count in asked] == [2, 3]
    assert [shown.grid for shown, _ in asked] == list(PARTS)
    assert {shown.features.dtype for shown, _ in asked} == {torch.bfloat16}


@pytest.mark.parametrize("name", methods(DecoderMethod))
def test_a_layer_that_a_decoder_method_sees_holds_what_its_schedule_left(name, model, tmp_path):
    method = make(name, tmp_path)
    seen = []
    kept = method.keep
    object.__setattr__(
        method, "keep", lambda v, n: seen.append((v.layer, len(v.index))) or kept(v, n)
    )
    # The first has no budget, the second cuts late.
    count = {"todre-exit": None, "flashvid-prune": 26}.get(name, 20)
    selector_work.works(method, model, PARTS, torch.float32, count)()
    schedule = method.schedule(6, 32, count)
    assert seen == list(zip(schedule, [32, *schedule.values()], strict=False))


def test_what_cannot_be_written_is_one_line(model, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path / "no" / "t.json")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
