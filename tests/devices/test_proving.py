"""Kernels that prove themselves on a pretended GPU: stand-ins for kernels, and for the clock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from pretended import Pretended

pytest.importorskip("triton")

from typer.testing import CliRunner

from vlmcompress.cli import app
from vlmcompress.ops import select
from vlmcompress.ops._triton import select as kernels
from vlmcompress.ops.backend import VARIABLE, use_triton
from vlmcompress.ops.proving import decision, proof, verdicts
from vlmcompress.ops.proving.trials import TRIALS
from vlmcompress.ops.proving.verdicts import Verdict

HERE = Path(__file__)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that knows nothing, and a cache folder of its own."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "_known", {})


@pytest.fixture
def calls(monkeypatch):
    """Calls of a kernel that is right."""
    made: list[int] = []

    def kernel(images, count):
        made.append(count)
        return select._dense(images, count)

    monkeypatch.setattr(kernels, "farthest_point", kernel)
    return made


@pytest.fixture
def seconds(monkeypatch):
    """A clock that a run of either kind moves on by so much; the kernel is the faster one."""
    cost, now = {"torch": 0.02, "triton": 0.01, "first": 0.0}, [0.0]
    run = proof._run

    def spend(choice, work):
        now[0] += cost[choice] + cost["first"]
        return run(choice, work)

    monkeypatch.setattr(proof, "_now", lambda device: now[0])
    monkeypatch.setattr(proof, "_run", spend)
    return cost


def images(batch=1, tokens=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, tokens, 16, generator=generator)


def picks(x=None):
    x = images() if x is None else x
    with Pretended():
        return select.farthest_point(x.to("cuda:0"), 5).cpu()


def on_file(folder: Path) -> dict[str, dict]:
    found = folder.glob("vlmcompress/kernels/*/*.json")
    return {path.name: json.loads(path.read_text()) for path in found}


def test_the_faster_kernel_is_taken_for_shapes_like_these(calls, seconds, tmp_path):
    expected = select.farthest_point(images(), 5)
    assert torch.equal(picks(), expected)
    # The bucket of 5 picks is 8: compared once, timed five times, then the real call.
    assert calls == [8] * 6 + [5]
    assert torch.equal(picks(images(tokens=60)), select.farthest_point(images(tokens=60), 5))
    assert calls[7:] == [5]
    picks(images(tokens=70))
    assert calls[8:] == [8] * 6 + [5]
    rows = on_file(tmp_path)
    assert set(rows) == {f"farthest_point_B1_D16_K8_N{n}_float32.json" for n in (64, 128)}
    row = rows["farthest_point_B1_D16_K8_N64_float32.json"]
    assert row["outcome"] == "faster"
    assert row["torch_ms"] == pytest.approx(20)
    assert row["kernel_ms"] == pytest.approx(10)
    assert row["card"].startswith(f"pretended sm_80, torch {torch.__version__}, triton ")


def test_a_slower_kernel_is_not_taken(calls, seconds, tmp_path):
    seconds["triton"] = 0.03
    assert torch.equal(picks(), select.farthest_point(images(), 5))
    assert calls == [8] * 6
    (row,) = on_file(tmp_path).values()
    assert row["outcome"] == "slower"
    picks()
    assert len(calls) == 6


def wrong(images, count):
    found = select._dense(images, count)
    return torch.cat([found[:, :-1], found[:, :1]], 1)


def test_a_wrong_kernel_is_switched_off_for_good(monkeypatch, seconds, tmp_path):
    monkeypatch.setattr(kernels, "farthest_point", wrong)
    assert not torch.equal(wrong(images(), 5), select._dense(images(), 5))
    with pytest.warns(UserWarning, match="farthest_point gives wrong results") as said:
        found = picks()
    assert torch.equal(found, select.farthest_point(images(), 5))
    assert len(said) == 1
    assert "report this line" in str(said[0].message)
    assert "1 of 8 values differ" in str(said[0].message)
    # Neither for these shapes nor for others is it tried again, and nothing more is said.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(picks(images(8, 200)), select.farthest_point(images(8, 200), 5))
            verdicts._known.clear()
    assert set(on_file(tmp_path)) == {"farthest_point_any.json"}


def test_a_kernel_that_cannot_run_is_tried_again_by_the_next_process(
    monkeypatch, seconds, tmp_path
):
    def broken(images, count):
        raise RuntimeError("Failed to find\n a C compiler")

    monkeypatch.setattr(kernels, "farthest_point", broken)
    with pytest.warns(UserWarning, match="cannot run here.*find a C compiler"):
        picks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picks(images(tokens=300))
    assert on_file(tmp_path) == {}


@pytest.mark.parametrize(("each", "runs"), [(3.0, 0), (1.5, 1)])
def test_no_run_begins_after_two_seconds(each, runs, calls, seconds, tmp_path):
    """Of two that take three seconds not even the kernel runs, of 1.5 none is timed."""
    seconds["first"] = each
    picks()
    assert calls == [8] * runs
    assert on_file(tmp_path) == {}
    picks()
    assert calls == [8] * runs


def test_too_little_memory_says_nothing_about_a_kernel(monkeypatch, seconds, tmp_path):
    def full(images, count):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "farthest_point", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picks()
    assert on_file(tmp_path) == {}


def test_nothing_is_tried_inside_a_graph_or_while_something_is_timed(
    monkeypatch, calls, seconds, tmp_path
):
    with decision.no_proofs():
        picks()
    with Pretended(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        select.farthest_point(images().to("cuda:0"), 5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        picks()
    assert calls == []
    assert on_file(tmp_path) == {}
    picks()
    with decision.no_proofs():  # what is known counts
        picks()
    assert calls == [8] * 6 + [5, 5]


def test_torch_and_a_cpu_never_try(monkeypatch, calls, tmp_path):
    select.farthest_point(images(), 5)
    monkeypatch.setenv(VARIABLE, "torch")
    picks()
    assert calls == []
    assert on_file(tmp_path) == {}


def test_what_was_spent_is_told(calls, seconds):
    before = decision.spent()
    picks()
    once = decision.spent()
    assert once > before
    picks()
    assert decision.spent() == once


def test_a_verdict_on_file_needs_no_trial(calls, seconds):
    picks()
    verdicts._known.clear()
    picks()
    assert calls == [8] * 6 + [5, 5]


NEXT = """
import sys
sys.path[:0] = {path!r}
import ctypes
import torch
ctypes.CDLL({guard!r})
from pretended import Pretended
from vlmcompress.ops.proving import decision
from vlmcompress.ops.backend import use_triton
decision.prove = None
with Pretended():
    x = torch.ones(1, 1, device="cuda:0")
    sizes = dict(B=1, N=33, D=16, K=5)
    print(use_triton("farthest_point", x, **sizes), use_triton("max_sum", x, N=40, D=16, K=5))
"""


@pytest.mark.slow
def test_a_second_process_reads_the_verdicts(calls, seconds, tmp_path, guard):
    picks()
    with Pretended():
        slower = verdicts.Case.of("max_sum", {"N": 40, "D": 16, "K": 5}, torch.float32)
        card = verdicts.card_of(torch.device("cuda:0"))
        verdicts.keep(card, slower, Verdict("slower", "", 1.0, 2.0))
    code = NEXT.format(path=[str(HERE.parent), *sys.path], guard=str(guard))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr[-2000:]


def test_other_versions_and_cards_know_nothing(monkeypatch, calls, seconds):
    picks()
    assert len(calls) == 7
    for module, name, value in (
        (verdicts, "__version__", "99"),
        (verdicts, "_triton", lambda: "99"),
        (torch, "__version__", "99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            before = len(calls)
            picks()
            assert len(calls) == before + 7


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"outcome": "best"}', '{"outcome": "faster", "torch_ms": "x"}']
)
def test_a_damaged_file_is_written_anew(content, calls, seconds, tmp_path):
    picks()
    (path,) = tmp_path.glob("vlmcompress/kernels/*/*.json")
    good = path.read_text()
    path.write_text(content)
    verdicts._known.clear()
    picks()
    assert path.read_text() == good
    assert len(calls) == 14


def test_a_folder_that_cannot_be_written_costs_the_next_process_a_trial(
    monkeypatch, calls, seconds, tmp_path
):
    (tmp_path / "vlmcompress").write_text("a file")
    picks()
    picks()
    assert calls == [8] * 6 + [5, 5]


def command(*words):
    with Pretended():
        return CliRunner().invoke(app, ["kernels", *words])


def test_the_command_tries_all_usual_shapes(monkeypatch, seconds):
    monkeypatch.setattr(decision, "prove", judged)
    shown = command("--check")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].startswith("pretended sm_80")
    assert lines[1].split() == [
        *("op", "shape", "torch,", "ms", "kernel,", "ms", "runs", "because")
    ]
    assert {line.split()[0] for line in lines[2:]} == set(TRIALS)
    assert len(lines) == 2 + sum(len(trial.usual) for trial in TRIALS.values())
    again = json.loads(command("--json").output)
    assert len(again["kernels"]) == len(lines) - 2
    assert {row["outcome"] for row in again["kernels"]} == {"faster", "slower"}


def judged(case, device, limit):
    assert limit > 2
    if case.op == "take":
        return Verdict("slower", "", 1.0, 2.0)
    return Verdict("faster", "", 2.0, 1.0)


def test_the_command_fails_where_a_kernel_is_wrong(monkeypatch, seconds):
    def one_wrong(case, device, limit):
        wrong = Verdict("wrong", "3 of 8 values differ from those of torch")
        return wrong if case.op == "max_sum" else judged(case, device, limit)

    monkeypatch.setattr(decision, "prove", one_wrong)
    shown = command("--check")
    assert shown.exit_code == 1
    assert re.search(r"max_sum .* torch +wrong: 3 of 8 values differ", shown.output)


def test_the_command_on_an_empty_cache_and_without_a_card(monkeypatch):
    shown = command()
    assert shown.exit_code == 0
    assert "nothing is known yet" in shown.output
    alone = CliRunner().invoke(app, ["kernels"])
    assert alone.exit_code == 2
    assert "there is none" in alone.output


def test_use_triton_asks_with_the_dtype_of_the_first_tensor(calls, seconds, tmp_path):
    with Pretended():
        x = images().to("cuda:0", torch.bfloat16)
        assert use_triton("farthest_point", x, B=1, N=40, D=16, K=5)
    (name,) = on_file(tmp_path)
    assert name.endswith("_bfloat16.json")
