"""The benchmark of the encoder stage, on shapes small enough for a test."""

from __future__ import annotations

import json
import sys

import pytest
from subject_models import QWEN2

from dev.benchmarks import encoder_stage
from dev.benchmarks.encoder_stage import CASES, LAYERS, PREDICTED, TIMED, Case
from vlmcompress.tokens import Grid

SMALL = Case(
    "InternVL",
    {
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "image_size": [64, 64],
            "patch_size": [4, 4],
        },
        "text_config": QWEN2,
        "image_token_id": 99,
    },
    (Grid(1, 8, 8),) * 3,
    Grid(1, 8, 8),
)


@pytest.mark.slow
def test_a_file_of_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_stage, "CASES", {"small": SMALL})
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(path), "--rounds", "2"])
    encoder_stage.main()
    found = json.loads(path.read_text())
    (row,) = found["predicted"]
    assert (row["tokens"], list(row["times_fewer"])) == (192, list(PREDICTED))
    assert 0 < row["encoder"] < 1
    assert all(times > 1 for times in [row["no_tokens"], *row["times_fewer"].values()])
    assert [one["method"] for one in found["timed"]] == list(TIMED)
    shares = {one["method"]: one["predicted"] for one in found["timed"]}
    assert all(0 < share < 1 for share in shares.values())
    dropped = [share for spec, share in shares.items() if spec.startswith("unit-drop")]
    assert len(dropped) == 3
    assert dropped == sorted(dropped, reverse=True)
    for one in found["timed"]:
        median, low, high = one["share"]
        assert low <= median <= high
    assert found["provenance"]["layers"] == LAYERS


def test_what_is_not_measured_again_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_stage, "CASES", {"one": SMALL, "two": SMALL})
    monkeypatch.setattr(encoder_stage, "predicted", lambda name, case: {"model": name})
    path = tmp_path / "found.json"

    def run(ms, *given):
        def timed(name, case, specs, rounds):
            return [{"model": name, "method": spec, "ms": ms} for spec in specs]

        monkeypatch.setattr(encoder_stage, "timed", timed)
        monkeypatch.setattr(sys, "argv", ["x", "--out", str(path), *given])
        encoder_stage.main()
        timed = json.loads(path.read_text())["timed"]
        return [(row["model"], row["method"], row["ms"]) for row in timed]

    first = run(1, "--methods", *TIMED[:2])
    assert first == [(name, spec, 1) for name in ("one", "two") for spec in TIMED[:2]]
    later = run(2, "--timed", "two", "--methods", TIMED[1], TIMED[3])
    assert later == [*first[:3], ("two", TIMED[1], 2), ("two", TIMED[3], 2)]
    row = json.loads(path.read_text())["timed"][-1]
    assert row["measured"]["command"].endswith(TIMED[3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--timed", "gemma3"], "unknown model 'gemma3': did you mean 'gemma3-4b'?"),
        (["--methods", "tomes"], "unknown method 'tomes'"),
    ],
)
def test_wrong_arguments_are_one_line(monkeypatch, tmp_path, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path / "f.json"), *given])
    with pytest.raises(SystemExit) as stop:
        encoder_stage.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"encoder_stage: {message}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_what_the_whole_models_save():
    """By hand, for Gemma 3: the tower computes 4096 patches in a quarter of 27 layers, 7 by
    rounding, and 1024 in the others."""
    row = encoder_stage.predicted("gemma3-4b", CASES["gemma3-4b"])
    model = encoder_stage.built(CASES["gemma3-4b"])
    grid = Grid(1, 16, 16)
    bare = encoder_stage.costs_of(model, [grid], None, "25%")
    some = encoder_stage.costs_of(model, [grid], "unit-drop", "25%")
    weights, width = 4 * 1152**2 + 2 * 1152 * 4304, 1152

    def layer(patches: int) -> int:
        return 2 * (weights * patches + 2 * width * patches**2)

    assert bare.encoder - some.encoder == 20 * (layer(4096) - layer(1024))
    assert some.projector == bare.projector
    assert row["times_fewer"]["unit-drop"] > 2 * row["times_fewer"]["divprune"]
    assert row["times_fewer"]["unit-drop"] > 2 * row["no_tokens"]
