"""`vlmcompress profile`: tables, files that are whole or not at all, and mistakes."""

import dataclasses
import functools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vlmcompress.cli.profile import run as profiling
from vlmcompress.cli.profile.output import show
from vlmcompress.profiler import random_weights
from vlmcompress.profiler.measure import Profile, ProfileRow, Saving, Spread, Times
from vlmcompress.profiler.published_shapes import SHAPES, PublishedShape
from vlmcompress.profiler.run import RunFacts, Tokens
from vlmcompress.profiler.stopwatch import STAGES

FAST = ("--rounds", 2, "--output-tokens", 2)


@pytest.fixture
def refused(refuses, unloadable, monkeypatch):
    """Check that a call is refused with one line, before a model is loaded, and writes nothing."""
    monkeypatch.setattr(profiling, "build", lambda *a, **k: pytest.fail("a model was made"))
    return functools.partial(refuses, "profile")


def test_the_example_of_the_help(cli, loaded):
    result = cli(
        "profile",
        "--model",
        "tiny-llava",
        "--method",
        "divprune,fastv,fastv(k=4),pyramiddrop",
        "--budget",
        72,
        *FAST,
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert (
        "fastv(k=4) @ 72: fastv with its first cut before layer 4 cannot keep fewer"
        in result.stdout
    )
    heads = [line for line in lines if line.startswith(("milliseconds", "saving"))]
    assert heads[0].split()[1:10] == [*STAGES, "sum"]
    apart = []
    for name in ("full", "text-only", "divprune @ 72", "fastv @ 72", "pyramiddrop @ 72"):
        stages, saving = (
            line.removeprefix(name).split() for line in lines if line.startswith(name)
        )
        numbers = [0.0 if cell == "-" else float(cell) for cell in stages]
        assert sum(numbers[: len(STAGES)]) == pytest.approx(numbers[-4], abs=0.5)
        apart.append(abs(numbers[-4] / numbers[-3] - 1))
        assert saving[:2] == ["144", ">"]
    assert min(apart) < 0.05  # a busy machine may stop between the two clocks
    assert "144 > 72 " in result.stdout
    assert loaded == [
        ("tiny-llava", {"device": None, "dtype": None, "attn_implementation": "sdpa"})
    ]


def test_json_and_picture(cli, loaded, tmp_path, picture):
    out, plot = tmp_path / "p.json", tmp_path / "p.png"
    before = {path.name for path in tmp_path.iterdir()}
    arguments = ("--method", "random(seed=1,),random(seed=1)+fastv(k=2)", "--budgets", "50%, 24")
    result = cli("profile", picture, *arguments, *FAST, "--json", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == before | {"p.json", "p.png"}
    found = json.loads(out.read_text())
    rows = [(row["label"], row["budget"], row["seen"]["tokens"]["mean"]) for row in found["rows"]]
    assert rows[2:4] == [("random(seed=1,)", "50%", 72), ("random(seed=1,)", "24", 24)]
    assert [row[:2] for row in rows[4:]] == [
        ("random(seed=1)+fastv(k=2)", b) for b in ("50%", "24")
    ]
    assert found["environment"]["model"] == "tiny-llava"
    for row in found["rows"]:
        assert row["times"]["stages"]["media"] > 0
    with Image.open(plot) as image:
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 10


def test_json_alone_on_stdout(cli, loaded):
    result = cli("profile", "--json", "-", "--batch", 3, *FAST)
    assert json.loads(result.stdout)["environment"]["prompt"]["rows"] == 3
    row = json.loads(result.stdout)["rows"][2]
    assert (row["label"], row["budget"]) == ("divprune", "25%")
    assert row["seen"]["tokens"] == {"images": 3, "before": 432, "after": 108, "mean": 108}


def test_a_video(cli, loaded, clip):
    result = cli("profile", "--video", clip, "--frames", 4, "--json", "-", *FAST)
    assert result.exit_code == 0, result.output
    assert loaded[0][0] == "tiny-qwen"
    assert json.loads(result.stdout)["rows"][0]["seen"]["tokens"]["before"] == 2 * 36


TOY = PublishedShape(
    "Qwen2_5_VL",
    {
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 30_100,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        "image_token_id": 30_050,
        "video_token_id": 30_051,
    },
    None,
    36,
)
"""Published by nobody, and quick."""


def test_random_weights(cli, monkeypatch):
    monkeypatch.setitem(SHAPES, "toy", TOY)
    made = []
    real = random_weights.build

    def build(name, **options):
        made.append(real(name, **options))
        return made[-1]

    monkeypatch.setattr(profiling, "build", build)
    cut = ("--layers", 4, "--encoder-layers", 2, "--visual-tokens", 30, "--text-tokens", 9)
    others = ("--batch", 2, "--attn", "eager", "--method", "divprune+fastv", "--budget", 4)
    found = [
        json.loads(cli("profile", "--random-weights", "toy", *given, *FAST, "--json", "-").stdout)
        for given in ((), (*cut, *others, "--dtype", "float32"))
    ]
    kinds = [
        (len(m.model.language_model.layers), len(m.model.visual.blocks), m.dtype) for m in made
    ]
    assert kinds == [(5, 3, torch.bfloat16), (4, 2, torch.float32)]
    first, second = (document["environment"] for document in found)
    assert first["model"] == "toy, random weights"
    assert [one["attention"]["decoder"] for one in (first, second)] == ["sdpa", "eager"]
    assert first["prompt"] == {"rows": 1, "text": 40, "output_tokens": 2}
    assert second["prompt"] == {"rows": 2, "text": 18, "output_tokens": 2}
    tokens = [document["rows"][2]["seen"]["tokens"] for document in found]
    assert tokens[0] == {"images": 1, "before": 36, "after": 9, "mean": 9}
    assert (tokens[1]["images"], tokens[1]["before"], tokens[1]["mean"]) == (2, 60, 8)


def test_mistakes(refused, tmp_path, picture):
    refused("unknown method 'divprun'.*divprune", "--method", "divprun")
    refused("cannot read the method ''", "--method", "divprune,")
    refused("budget '0' must be above zero", "--budgets", "36,0")
    refused("budget '' is not understood", "--budgets", "36,")
    refused("threshold=0.1", "--method", "divprune(threshold=0.1)", "--budget", "36")
    refused("--budget and --budgets", "--budgets", "36", "--budget", "36")
    refused("unknown model", "--model", "tiny-lava")
    refused("unknown shape", "--random-weights", "llava-7b")
    refused("has 32 layers", "--random-weights", "llava-1.5-7b", "--layers", 40)
    refused("takes neither --model", "--random-weights", "llava-1.5-7b", "--model", "tiny-llava")
    refused("takes neither --model", "--random-weights", "llava-1.5-7b", picture)
    refused("unknown dtype", "--random-weights", "llava-1.5-7b", "--dtype", "float8")
    refused("--layers is for --random-weights", "--layers", 3)
    refused("does not exist", tmp_path / "none.png")
    refused("--frames and --fps are for videos", picture, "--frames", 3)
    refused("must end in .json", "--json", tmp_path / "p.txt")
    refused("must end in .pdf, .png, .svg", "--plot", tmp_path / "p.gif")
    refused("no folder", "--plot", tmp_path / "no" / "p.png")


def test_without_matplotlib(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(r"needs matplotlib: pip install 'vlmcompress\[eval\]'", "--plot", tmp_path / "p.png")


@pytest.mark.parametrize("broken", ["matplotlib.figure.Figure.savefig", "pathlib.Path.write_text"])
def test_a_file_that_cannot_be_written_costs_nothing_but_itself(
    cli, loaded, tmp_path, monkeypatch, broken
):
    def fail(*args, **kwargs):
        real = args[1] if "Figure" in broken else args[0]
        if str(tmp_path) not in str(real):
            return original(*args, **kwargs)
        real.touch()
        raise OSError(28, "No space left on device")

    owner, name = broken.rsplit(".", 1)
    module, kind = owner.rsplit(".", 1)
    original = getattr(getattr(__import__(module, fromlist=[kind]), kind), name)
    monkeypatch.setattr(broken, fail)
    files = ("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    result = cli("profile", *FAST, *files)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert "divprune @ 25%" in result.stdout
    written = ["p.json"] if "Figure" in broken else ["p.png"]
    assert [path.name for path in tmp_path.iterdir()] == written


def test_eighty_columns_are_enough(cli, loaded, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    methods = "divprune,divprune+fastv(k=3),fastv(k=4)"
    result = cli("profile", "--method", methods, "--budget", 36, *FAST)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in result.stdout
    for name in (*STAGES, "quartiles", "achieved", "predicted", "break-even", "KV MB"):
        assert any(name in line for line in lines if line.startswith(("milliseconds", "saving")))
    for label in ("divprune @ 36", "divprune+fastv(k=3) @ 36"):
        assert sum(line.startswith(f"{label} ") for line in lines) >= 2
    assert "fastv(k=4) @ 36: fastv with its first cut" in result.stdout


def test_noise_is_called_so(capsys):
    times = Times(
        {"prefill": 1.0}, 1.0, {}, Spread(5.0, 1.0, 9.0), Spread(5.0, 1.0, 9.0), None, 1.0
    )
    seen = RunFacts(Tokens(1, 144, 36, 36.0), 1.0, None)
    saving = Saving(-6.02, -6.02, 0.5, -12.04, 0.1, 3, overlaps=True)
    known = {
        "prompt": {"rows": 1, "text": 4, "output_tokens": 2},
        "attention": {"decoder": "sdpa"},
        "versions": {"torch": "2", "transformers": "5"},
        **{"device": "cpu", "cpu": "x", "model": "m", "decoder_layers": 6, "dtype": "float32"},
        **{"threads": 2, "rounds": 2},
    }
    for overlaps in (True, False):
        own = dataclasses.replace(saving, overlaps=overlaps)
        show(Profile(known, [ProfileRow("divprune", "36", None, seen, times, own)]))
        text = capsys.readouterr().out
        assert ("-602.0%" in text) == (not overlaps)
        assert ("noise: the quartiles" in text) == overlaps


def test_a_pipe_hears_how_far_it_is(cli, loaded, monkeypatch):
    monkeypatch.setattr("vlmcompress.cli.progress_bar.EVERY", 0.0)
    result = cli("profile", *FAST)
    assert "% " not in result.stdout.splitlines()[0]
    assert "% , " not in result.stderr
    assert "100%, 0.0 min left" in result.stderr
