"""Budgets in milliseconds: hand numbers from a calibration that is made up, and the files of it."""

import json
import os
import warnings

import pytest
import torch
from bare import last_logits
from subject_models import SUBJECTS

from vlmcompress.api import compress
from vlmcompress.budget import latency_model as timing
from vlmcompress.budget.latency_model import (
    DecoderTimes,
    Memory,
    decoder_times,
    lengths_up_to,
    memory_of,
)
from vlmcompress.errors import BudgetError
from vlmcompress.flops.exact import Costs, first_token
from vlmcompress.patches import engine
from vlmcompress.patches.cost.workload import load_of, shape_of
from vlmcompress.patches.encoder import feature_call
from vlmcompress.patches.sequence import call_trace as trace


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where files go: not to the user's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timing._warn.cache_clear()
    return tmp_path / "vlmcompress" / "timing"


@pytest.fixture
def measured(monkeypatch):
    """A machine whose layers take 0.1 ms a token and whose head takes 3; what it was asked for."""
    asked = []

    def layers(lm, batch, lengths):
        asked.append((batch, list(lengths)))
        return {length: 0.1 * length for length in lengths}

    monkeypatch.setattr(timing, "measure_layers", layers)
    monkeypatch.setattr(timing, "measure_head", lambda model, batch: 3.0)
    return asked


@pytest.fixture
def still(monkeypatch):
    """A clock that stands still, so that what a call measures of itself is 0."""
    for module in (engine, trace):
        monkeypatch.setattr(module, "mark", lambda device: 0.0)


@pytest.fixture
def llava():
    return SUBJECTS["random llava"]()


def inputs_of(one, words=9):
    return one.batch(one.prompt(1, 1, text=words))


def test_lengths_are_powers_of_two():
    assert [lengths_up_to(n)[-1] for n in (1, 16, 17, 32, 33, 1000)] == [16, 16, 32, 32, 64, 1024]
    assert lengths_up_to(100) == [16, 32, 64, 128]


def test_a_layer_s_time_is_a_line_between_what_was_measured():
    times = DecoderTimes({16: 1.0, 32: 3.0, 64: 4.0}, head=0.5)
    assert times.predict([16, 24, 32, 48]) == 1 + 2 + 3 + 3.5 + 0.5
    assert times.predict([3]) == 1.5


def test_the_sum_up_to_the_first_token():
    full, part = (Costs(e, p, 7.0, (1.0,), 9.0, 0) for e, p in ((80.0, 20.0), (40.0, 10.0)))
    decoder = DecoderTimes({16: 1.0, 32: 3.0}, head=0.5)
    rows = [(16, 20), (24, 16)]
    assert timing.predicted(part, full, rows, 12.0, 2.0, decoder) == 6 + 2 + (2 + 1.5 + 0.5)


def test_a_selection_is_known_after_its_first_call_and_read_only_then():
    memory, reads = Memory(), []
    assert memory.selected("a") == 0
    memory.last = "a", lambda: reads.append(1) or 5.0
    assert reads == []
    assert [memory.selected(key) for key in ("b", "a", "a")] == [0, 5, 5]
    assert reads == [1]


@pytest.mark.parametrize("limit", [26, 21.3, 15.1])
def test_the_largest_count_within_a_time(llava, measured, still, limit):
    inputs = inputs_of(llava)
    text = inputs["input_ids"].shape[1] - len(llava.image())

    def milliseconds(kept):
        return llava.layers * 0.1 * max(text + kept, 16) + 3

    kept = max(n for n in range(1, 37) if milliseconds(n) <= limit)
    with compress(llava.model, "divprune", budget=f"{limit} ms") as c:
        last_logits(llava, inputs)
        report = c.report()
    assert report.images[0].after == kept < 36
    assert report.predicted == pytest.approx(milliseconds(kept))
    assert report.resolved == pytest.approx(100 * kept / 36)
    assert (report.asked, report.measured) == (f"{limit} ms", 0)
    assert measured == [(1, [16, 32, 64])]


def test_a_time_out_of_reach_and_one_that_is_plenty(llava, measured, still):
    inputs = inputs_of(llava)
    bare = last_logits(llava, inputs)
    least = llava.layers * 0.1 * 16 + 3
    with (
        compress(llava.model, "divprune", budget="12 ms"),
        pytest.raises(BudgetError, match=f"costs {least:g} ms or more on this prompt"),
    ):
        last_logits(llava, inputs)
    with compress(llava.model, "divprune", budget=f"{least:g} ms") as c:
        last_logits(llava, inputs)
    assert c.report().images[0].after == 16 - 14
    with compress(llava.model, "divprune", budget="1000 ms") as c:
        assert torch.equal(last_logits(llava, inputs), bare)
    assert (c.report().resolved, c.report().engaged) == (100, False)


def test_what_a_selection_took_is_left_out_of_the_next_budget(llava, measured, still):
    inputs = inputs_of(llava)
    with compress(llava.model, "divprune", budget="26 ms") as c:
        last_logits(llava, inputs)
        first = c.report()
        key, _ = memory_of(llava.model).last
        memory_of(llava.model).last = key, lambda: 2.4
        last_logits(llava, inputs)
        second = c.report()
    memory_of(llava.model).last = None
    assert first.images[0].after - second.images[0].after == 4
    assert second.predicted == pytest.approx(first.predicted)
    # Other methods have not been timed, and another handle of the same model knows what was.
    with compress(llava.model, "stride", budget="26 ms") as c:
        last_logits(llava, inputs)
    assert c.report().images[0].after == first.images[0].after
    memory_of(llava.model).last = None
    with compress(llava.model, "divprune", budget="26 ms") as c:
        last_logits(llava, inputs)
    assert c.report().images[0].after == second.images[0].after


def test_the_longest_row_of_a_batch_counts(llava, measured, still):
    inputs = llava.batch(llava.prompt(1, 1, text=5), llava.prompt(0, 2, text=60))
    with compress(llava.model, "divprune", budget="50 ms") as c:
        last_logits(llava, inputs)
    report = c.report()
    assert measured == [(2, [16, 32, 64])]
    assert report.resolved == 100  # the text alone is longer than the row with the picture
    assert report.predicted == pytest.approx(llava.layers * 0.1 * 63 + 3)


@pytest.mark.parametrize(
    ("name", "spec", "limit"),
    [
        ("random llava", "tome", 55),
        ("tiny-qwen", "downsample+divprune", 48),
        ("tiny-qwen", "downsample+hiprune", 48),
    ],
)
def test_an_encoder_is_timed_once_per_shape_and_scaled(
    monkeypatch, measured, still, name, spec, limit
):
    one, runs = SUBJECTS[name](), []

    def median_of(run, device, runs_of=0, **options):
        runs.append(run())
        return 40.0

    monkeypatch.setattr(feature_call, "median_of", median_of)
    inputs = inputs_of(one)
    bare = one.features(inputs)
    with compress(one.model, spec, budget=f"{limit} ms") as c:
        for _ in range(2):
            last_logits(one, inputs)
            memory_of(one.model).last = None
        planner = c._engine.trace.solved.planner
        report = c.report()
        layout = c._engine.trace.images[0].layout
        (plan,) = planner.plan([layout])
        upstream = planner.pipeline.upstream
    (timed,) = runs
    assert torch.equal(torch.cat(list(timed.pooler_output)), bare.flatten(0, -2))
    text = [inputs["input_ids"].shape[1] - layout.placeholders]
    shape = shape_of(one.model)
    part, full = (
        first_token(shape, load_of(one.model, [(0, layout, some)], text, upstream))
        for some in (plan, None)
    )
    share = (part.encoder + part.projector) / (full.encoder + full.projector)
    layers = sum(0.1 * max(16, text[0] + n) for n in plan.per_layer)
    assert report.engaged
    assert 0 < share < 1
    assert report.predicted == pytest.approx(40 * share + layers + 3)


def test_files_spare_the_next_process_the_measuring(llava, measured, folder):
    first = decoder_times(llava.model, llava.lm, 1, 20)
    assert measured == [(1, [16, 32])]
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["layer"] == {"16": 1.6, "32": 3.2}
    for _ in range(2):
        memory_of(llava.model).decoder.clear()
        assert decoder_times(llava.model, llava.lm, 1, 20) == first
    decoder_times(llava.model, llava.lm, 1, 50)
    assert measured == [(1, [16, 32]), (1, [64])]
    decoder_times(llava.model, llava.lm, 2, 20)
    assert measured[2:] == [(2, [16, 32])]
    assert len(list(folder.iterdir())) == 2


def test_other_attention_dtype_and_threads_are_measured_again(llava, measured, folder):
    decoder_times(llava.model, llava.lm, 1, 16)
    llava.model.set_attn_implementation("eager")
    decoder_times(llava.model, llava.lm, 1, 16)
    llava.model.to(torch.bfloat16)
    decoder_times(llava.model, llava.lm, 1, 16)
    torch.set_num_threads(2)
    try:
        decoder_times(llava.model, llava.lm, 1, 16)
    finally:
        torch.set_num_threads(1)
    assert len(measured) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"layer": {"16": "x"}, "head": 1}', '{"layer": {"16": -1}, "head": 1}',
     '{"layer": {"16": Infinity}, "head": 1}', '{"layer": {"16": 1}}', "\x00\xff"],
)  # fmt: skip
def test_a_damaged_file_is_measured_again_and_written_anew(llava, measured, folder, text):
    decoder_times(llava.model, llava.lm, 1, 16)
    (file,) = folder.iterdir()
    good = file.read_text()
    file.write_text(text)
    memory_of(llava.model).decoder.clear()
    assert decoder_times(llava.model, llava.lm, 1, 16) == DecoderTimes({16: 1.6}, 3.0)
    assert len(measured) == 2
    assert file.read_text() == good
    assert list(folder.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_said_once(llava, measured, folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="times of this machine are not kept"):
        found = decoder_times(llava.model, llava.lm, 1, 16)
    assert found == DecoderTimes({16: 1.6}, 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder_times(llava.model, llava.lm, 1, 32)


def test_a_draft_that_cannot_be_finished_is_taken_away(llava, measured, folder, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match="no space left"):
        decoder_times(llava.model, llava.lm, 1, 16)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("spec", ["divprune+fastv", "tome+divprune"])
def test_for_real(spec, folder):
    one = SUBJECTS["tiny-llava"]()
    inputs, seen = inputs_of(one), {}
    bare = one.generate(inputs)
    with compress(one.model, spec, budget="1000000 ms") as c:
        assert torch.equal(one.generate(inputs), bare)
        seen = c.report()
    assert (seen.resolved, seen.engaged) == (100, False)
    assert seen.predicted > 0
    parts = ("encoder", "selection", "prefill")
    assert seen.measured > sum(seen.milliseconds[part] for part in parts)  # and the head
    assert len(list(folder.iterdir())) == 1
    with (
        compress(one.model, spec, budget="0.001 ms"),
        pytest.raises(BudgetError, match=r"costs [0-9.]+ ms or more") as raised,
    ):
        one.generate(inputs)
    assert float(str(raised.value).split("costs ")[1].split()[0]) > 0.1
    assert torch.equal(one.generate(inputs), bare)


def test_a_calibration_is_no_part_of_the_prefill_and_the_head_is_timed_once(monkeypatch, llava):
    clock, added = [0.0], []

    def layers(lm, batch, lengths):
        clock[0] += 0.5
        return {length: 0.1 * length for length in lengths}

    def add(self, name, start, end):
        added.append(name)
        real(self, name, start, end)

    real = trace.Trace.add
    monkeypatch.setattr(trace.Trace, "add", add)
    monkeypatch.setattr(timing, "measure_layers", layers)
    for module in (engine, trace):
        monkeypatch.setattr(module, "mark", lambda device: clock[0])
    with compress(llava.model, "divprune", budget="1000 ms") as c:
        llava.generate(inputs_of(llava))
    report = c.report()
    assert clock == [0.5]
    assert report.milliseconds == {"encoder": 0, "selection": 0, "prefill": 0, "decode": 0}
    assert report.measured == 0
    assert (added.count("head"), added.count("calibration"), report.decode_tokens > 0) == (
        1,
        1,
        True,
    )
