"""The profiler: one clock, honest shares, and a model that is left as it was."""

import subprocess
import sys

import pytest
import torch
from subject_models import SUBJECTS

from vlmcompress import compress
from vlmcompress.errors import VLMCompressError
from vlmcompress.flops.exact import first_token
from vlmcompress.laws.snapshots import snapshot
from vlmcompress.patches.cost.model_shape import shape_of
from vlmcompress.patches.cost.workload import load_of
from vlmcompress.patches.decoder import between_layers, prefill
from vlmcompress.patches.families.vision_encoders_tiles import TileEncoder
from vlmcompress.patches.signals.signals import Signals
from vlmcompress.profiler import machine, measure, stopwatch
from vlmcompress.profiler.measure import (
    WARM_UP,
    Setting,
    Spread,
    achieved,
    break_even,
    interleaved,
    profile,
)
from vlmcompress.profiler.run import Runner, RunTimes, Tokens
from vlmcompress.profiler.stopwatch import Hooks, Stopwatch
from vlmcompress.tokens import Grid

WORDS = 11
"""Of a prompt of `subject`."""


def to(method, budget=None):
    return lambda model: compress(model, method, budget)


def subject(name, rows=1):
    """A tiny model and what prepares prompts for it."""
    found = SUBJECTS[name]()
    inputs = found.batch(*(found.prompt(1, seed, text=6) for seed in range(rows)))
    return found, lambda stage: inputs


@pytest.fixture
def ticks(monkeypatch):
    """A clock that says 1, 2, 3 ... seconds, or whatever `advance` adds."""
    clock = type("Clock", (), {"now": 0.0})()

    def mark(device):
        return clock.now

    monkeypatch.setattr(stopwatch, "mark", mark)
    return clock


def test_every_moment_is_of_one_stage(ticks):
    watch = Stopwatch(torch.device("cpu"), "preprocess")
    for seconds, act in [
        (1, lambda: watch.switch("other")),
        (2, lambda: watch.enter("encoder")),
        (4, lambda: watch.enter("projector")),
        (8, watch.leave),
        (16, watch.leave),
        (32, lambda: watch.switch("decode")),
        (64, lambda: None),
    ]:
        ticks.now += seconds
        act()
    assert watch.stop() == {
        "preprocess": 1e3,
        "other": 34e3,
        "encoder": 20e3,
        "projector": 8e3,
        "decode": 64e3,
    }


def test_moments_are_remembered_once(ticks):
    watch = Stopwatch(torch.device("cpu"), "other")
    for name in ("start", "end", "end"):
        ticks.now += 3
        watch.switch("other")
        watch.remember(name)
    assert watch.between("start", "end") == 3e3


BARE = {"preprocess", "encoder", "projector", "prefill", "other", "decode"}
STAGES_OF = {None: BARE, "divprune+fastv": BARE | {"selection"}}


def _apart(one, other):
    return abs(one / other - 1)


@pytest.mark.parametrize(
    "name", ["random llava", "random llava-next", "random qwen3-vl", "random idefics3"]
)
@pytest.mark.parametrize("method", list(STAGES_OF))
def test_stages_of_a_run_add_up_to_what_the_clock_on_the_wall_says(name, method):
    found, prepare = subject(name)
    runner = Runner(found.model, prepare, 4)
    runner.look(Setting("text-only", to("text-only")))
    setting = Setting("x", method and to(method, "50%"))
    runner.look(setting)
    runs = [runner.run(setting) for _ in range(5)]
    for sample, _ in runs:
        assert all(value > 0 for value in sample.stages.values())
        assert set(sample.stages) == STAGES_OF[method]
    # A busy machine may stop between two clocks, but hardly every time.
    sample, seen = min(runs, key=lambda run: _apart(sum(run[0].stages.values()), run[0].total))
    assert _apart(sum(sample.stages.values()), sample.total) < 0.05
    before = sample.total - sample.stages["decode"] - sample.stages["preprocess"]
    assert _apart(sample.ttft, before) < 0.05
    assert _apart(sample.ttft + sample.stages["decode"], sample.generate) < 1e-6
    assert (seen.tokens.mean < seen.tokens.before) == bool(method)


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("encoder", "model.vision_tower.encoder.layers.1"),
        ("projector", "model.multi_modal_projector.act"),
        ("prefill", "model.language_model.layers.3"),
        ("other", "lm_head"),
    ],
)
def test_time_goes_to_the_stage_where_it_is_spent(ticks, stage, where):
    found, prepare = subject("random llava")
    runner = Runner(found.model, prepare, 1)
    setting = Setting("x", to("divprune+fastv", "50%"))
    runner.look(setting)
    parts = dict(found.model.named_modules())
    module = parts.get(where) or parts[where.replace("vision_tower.", "vision_tower.vision_model.")]
    calls = []

    def slowly(*_):
        ticks.now += 1
        calls.append(where)

    handle = module.register_forward_hook(slowly)
    stages = runner.run(setting)[0].stages
    handle.remove()
    assert calls
    assert stages.pop(stage) == 1e3 * len(calls)
    assert not any(stages.values())


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (prefill, "choose"),
        (between_layers, "ranked"),
        (Signals, "encoded"),
        (TileEncoder, "packed"),
    ],
)
def test_all_work_of_a_method_is_selection(ticks, monkeypatch, owner, name):
    """A choice before the decoder, one between layers, signals, and packing them like features."""
    found, prepare = subject("random llava-next")
    runner = Runner(found.model, prepare, 1)
    setting = Setting("x", to("hiprune+fastv", "60%"))
    runner.look(setting)
    original, calls = getattr(owner, name), []

    def slowly(*args, **kwargs):
        calls.append(name)
        ticks.now += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, slowly)
    stages = runner.run(setting)[0].stages
    assert calls
    assert stages.pop("selection") == 1e3 * len(calls)
    assert not any(stages.values())


def test_packing_of_features_is_no_selection(ticks, monkeypatch):
    found, prepare = subject("random llava-next")
    base = type(found.model.model)
    original, calls = base.pack_image_features, []

    def slowly(*args, **kwargs):
        ticks.now += 1
        calls.append("pack")
        return original(*args, **kwargs)

    monkeypatch.setattr(base, "pack_image_features", slowly)
    runner = Runner(found.model, prepare, 1)
    for method in ("stride", "hiprune"):
        setting = Setting("x", to(method, "60%"))
        runner.look(setting)
        calls.clear()
        stages = runner.run(setting)[0].stages
        assert stages["other"] == 1e3
        assert stages["selection"] == 1e3 * (len(calls) - 1)
        assert (len(calls) > 1) == (method == "hiprune")


def test_settings_take_turns_and_each_begins_a_round():
    names, calls = "abc", []

    def run(setting):
        calls.append(setting.label)
        return RunTimes({}, len(calls), 0, 0)

    samples = interleaved(run, [Setting(name) for name in names], 4)
    assert "".join(calls) == "abcbcacababc"
    assert [[one.ttft for one in own] for own in samples] == [
        [1, 6, 8, 10],
        [2, 4, 9, 11],
        [3, 5, 7, 12],
    ]


TIMES = {"full": 100.0, "text-only": 20.0, "half": 60.0, "slow": 120.0}


def faked(monkeypatch, times):
    """Runs that take `times` ms to the first token, 5 of them for a selection of 'half'."""
    real = Runner.run

    def run(self, setting):
        seen = real(self, setting)[1]
        ttft = times[setting.label]
        stages = {"prefill": ttft - 10.0, "decode": 30.0}
        if setting.wrap:
            stages["selection"] = 4.0
        return RunTimes(stages, ttft, ttft + 30, ttft + 31), seen

    monkeypatch.setattr(Runner, "run", run)


def test_shares_of_hand_made_times(monkeypatch):
    faked(monkeypatch, TIMES)
    found, prepare = subject("random llava", rows=2)
    settings = [
        Setting("half", to("stride", 18), "18"),
        Setting("slow", to("stride", "25%"), "25%"),
    ]
    rows = profile(found.model, prepare, to("text-only"), settings, output_tokens=4, rounds=3).rows
    assert [row.label for row in rows] == list(TIMES)
    full, nothing, half, slow = (row.saving for row in rows)
    assert (full.achieved, nothing.achieved, half.achieved, slow.achieved) == (0, 1, 0.5, -0.25)
    assert half.achieved_generate == 0.5
    assert half.selector_overhead == pytest.approx(4 / 90)
    assert full.selector_overhead == 0
    # 80 ms for 72 tokens: 3.6 tokens pay for 4 ms, of two images that keep 18 each.
    assert half.break_even == 20
    assert slow.break_even == 3
    layout, model = Grid(1, 6, 6), found.model
    text = [WORDS, WORDS]
    every = [
        first_token(shape_of(model), load_of(model, images, text)).total
        for images in ([(0, layout, None), (1, layout, None)], [])
    ]
    with compress(model, "stride", 18) as handle:
        model.generate(**prepare(None), max_new_tokens=1)
    some = first_token(shape_of(model), load_of(model, handle.report().images, text)).total
    encoder = first_token(
        shape_of(model), load_of(model, [(0, layout, None), (1, layout, None)], text)
    )
    assert half.predicted == pytest.approx(
        (every[0] - some) / (every[0] - every[1] - encoder.encoder - encoder.projector)
    )
    assert half.of_bound == pytest.approx(half.achieved / half.predicted)
    times = rows[2].times
    assert (times.ttft.median, times.generate.median, times.per_token.median) == (60, 90, 10)
    assert times.tokens_per_second == pytest.approx(1000 * 2 * 4 / 90)
    assert rows[2].seen.tokens == Tokens(2, 72, 36, 36.0)


def test_a_difference_that_is_none_has_no_share(monkeypatch):
    faked(monkeypatch, {"full": 20.0, "text-only": 20.0})
    found, prepare = subject("random llava")
    rows = profile(found.model, prepare, to("text-only"), [], rounds=1, output_tokens=1).rows
    assert [row.saving.achieved for row in rows] == [None, None]
    assert [row.saving.break_even for row in rows] == [None, None]
    assert rows[0].times.per_token is None
    assert achieved(10, 5, 11) is None


@pytest.mark.parametrize(
    ("full", "half", "nothing", "overlaps"),
    [
        ([100, 110], [60, 70], [20, 30], [False, False, False]),
        ([100, 110], [100, 120], [20, 30], [False, False, True]),
        ([100, 110], [60, 70], [95, 115], [True, True, True]),
    ],
)
def test_a_share_of_times_that_overlap_is_flagged(monkeypatch, full, half, nothing, overlaps):
    """Also of a method that is not near the full setting, where the two ends are."""
    turns = {"full": full, "text-only": nothing, "half": half, "none": [1, 1]}
    calls = dict.fromkeys(turns, 0)
    times = dict.fromkeys(turns, 50.0)
    faked(monkeypatch, times)
    fake = Runner.run

    def run(self, setting):
        times[setting.label] = turns[setting.label][calls[setting.label] % 2]
        calls[setting.label] += 1
        return fake(self, setting)

    monkeypatch.setattr(Runner, "run", run)
    found, prepare = subject("random llava")
    seen = []
    rows = profile(
        found.model,
        prepare,
        to("text-only"),
        [Setting("half", to("stride", 18), "18"), Setting("none", to("fastv(k=40)", 18), "18")],
        rounds=2,
        output_tokens=1,
        progress=lambda runs, what: seen.append(runs),
    ).rows
    assert [row.saving.overlaps for row in rows if row.saving] == overlaps
    assert sum(seen) == 4 * (WARM_UP + 2)


def test_stages_are_means_over_the_middle_half_by_total(monkeypatch):
    real, totals = Runner.run, iter([10, 1, 2, 3, 100, *range(20, 25)])
    looking = []

    def run(self, setting):
        seen = real(self, setting)[1]
        if len(looking) < 4:
            looking.append(setting)
            return None, seen
        total = float(next(totals))
        return RunTimes({"prefill": 2 * total, "selection": 1.0}, 5.0, 6.0, total), seen

    monkeypatch.setattr(Runner, "run", run)
    monkeypatch.setattr(
        measure,
        "interleaved",
        lambda run, settings, rounds: [[run(one) for _ in range(5)] for one in settings],
    )
    found, prepare = subject("random llava")
    full, other = profile(found.model, prepare, to("text-only"), [], output_tokens=1).rows
    assert full.times.total == 5
    assert full.times.stages == {"selection": 1, "prefill": 10}
    assert full.times.spread["total"] == Spread(3, 2, 10)
    assert other.times.total == 22


def test_answers_are_never_shorter(monkeypatch):
    found, prepare = subject("random llava")
    first = found.model.generate(**prepare(None), max_new_tokens=1, do_sample=False)[0, -1]
    monkeypatch.setattr(found.model.generation_config, "eos_token_id", int(first))
    runner = Runner(found.model, prepare, 5)
    assert runner.run(Setting("text-only", to("text-only")))
    assert runner.run(Setting("full"))


@pytest.mark.parametrize(
    ("tokens", "selection", "slope", "share", "expected"),
    [
        (Tokens(1, 576, 64, 64.0), 10.0, 0.5, False, 85),
        (Tokens(1, 576, 144, 144.0), 10.0, 0.5, True, 27),
        (Tokens(2, 1152, 128, 128.0), 10.0, 0.5, False, 75),
        (Tokens(1, 576, 64, 64.0), 0.0, 0.5, False, 65),
        (Tokens(1, 576, 576, 576.0), 1.0, 0.5, False, None),
        (Tokens(1, 576, 64, 64.0), 1.0, 0.0, False, None),
    ],
)
def test_break_even(tokens, selection, slope, share, expected):
    assert break_even(tokens, selection, slope, share) == expected


def test_a_setting_that_refuses_has_a_row_and_the_others_are_measured():
    found, prepare = subject("random llava")
    settings = [Setting("fastv", to("fastv", 3), "3"), Setting("stride", to("stride", 3), "3")]
    rows = profile(found.model, prepare, to("text-only"), settings, rounds=1, output_tokens=1).rows
    assert [row.label for row in rows] == ["full", "text-only", "fastv", "stride"]
    assert "cannot keep fewer" in rows[2].error
    assert rows[2].times is None
    assert rows[3].error is None
    assert rows[3].seen.tokens.after == 3


@pytest.mark.parametrize("name", ["random llava", "random llava-next", "random qwen2.5-vl"])
def test_the_model_is_left_as_it_was(name):
    found, prepare = subject(name)
    found.model.generate(**prepare(None), max_new_tokens=1)
    before = snapshot(found.model)
    settings = [Setting("a", to("hiprune+fastv", "70%")), Setting("b", to("fastv", 1))]
    profile(found.model, prepare, to("text-only"), settings, rounds=1, output_tokens=2)
    assert snapshot(found.model) == before

    def fail(stage):
        raise VLMCompressError("no more pictures")

    with pytest.raises(VLMCompressError, match="no more pictures"):
        profile(found.model, fail, to("text-only"), [], rounds=1)
    handle = found.lm.layers[2].register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="inside"):
        profile(found.model, prepare, to("text-only"), settings, rounds=1)
    handle.remove()
    assert snapshot(found.model) == before


def test_the_hooks_of_a_compressed_model_come_back():
    """Also where it goes on being compressed after the run."""
    found, _ = subject("random llava")
    with compress(found.model, "stride", 9):
        before = snapshot(found.model)
        watch = Stopwatch(torch.device("cpu"), "other")
        hooks = Hooks(found.model, watch, compressed=True)
        with hooks.inner():
            assert snapshot(found.model) != before
        assert snapshot(found.model) == before


def _fail(*_):
    raise RuntimeError("inside")


def test_the_cache_is_measured():
    """Against keys and values counted by hand: 6 layers, 2 heads of 8, float32."""
    found, prepare = subject("random llava", rows=2)
    settings = [Setting("stride", to("stride", 9)), Setting("fastv", to("fastv(k=3)", 18))]
    rows = profile(found.model, prepare, to("text-only"), settings, rounds=1, output_tokens=3).rows
    per_token = 2 * 2 * 8 * 4
    expected = [6 * (36 + WORDS), 6 * WORDS, 6 * (9 + WORDS), 3 * (36 + WORDS) + 3 * WORDS]
    assert [row.seen.kv_bytes for row in rows] == [2 * per_token * count for count in expected]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_peak_memory_is_what_a_block_holds_at_most():
    """In a process of its own, where nothing else is freed meanwhile."""
    code = (
        "import torch\n"
        "from vlmcompress.profiler.machine import peak_memory\n"
        "def small(): return [torch.ones(25_000) for _ in range(400)]\n"
        "before, kept = small(), torch.ones(25_000)\n"
        "del before  # glibc keeps these 40 MB below what is still held\n"
        "peak = torch.ones(60_000_000); del peak\n"
        "with peak_memory(torch.device('cpu')) as found:\n"
        "    a = torch.ones(20_000_000); del a\n"
        "with peak_memory(torch.device('cpu')) as pieces:\n"
        "    b = small()\n"
        "print(found.bytes, pieces.bytes)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if "None" in out.stdout:
        pytest.skip("this kernel does not forget its peak")
    whole, pieces = map(int, out.stdout.split())
    assert whole == pytest.approx(80e6, rel=0.1)
    assert pieces == pytest.approx(40e6, rel=0.1)


def test_peak_memory_is_unknown_where_the_kernel_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_PROCESS", tmp_path / "nothing")
    with machine.peak_memory(torch.device("cpu")) as found:
        pass
    assert found.bytes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole"),
        ({"output_tokens": 0}, "output_tokens must be a whole"),
    ],
)
def test_wrong_numbers(options, message):
    found, prepare = subject("random llava")
    with pytest.raises(VLMCompressError, match=message):
        profile(found.model, prepare, to("text-only"), [], **options)


def test_a_prompt_without_pictures_has_nothing_to_save():
    found, _ = subject("random llava")
    words = {"input_ids": torch.arange(5, 11)[None], "attention_mask": torch.ones(1, 6).long()}
    with pytest.raises(VLMCompressError, match="no visual tokens"):
        profile(found.model, lambda stage: words, to("text-only"), [])


def test_conditions_are_recorded():
    found, prepare = subject("random llava", rows=2)
    known = profile(
        found.model, prepare, to("text-only"), [], rounds=2, output_tokens=3
    ).environment
    assert known["prompt"] == {"rows": 2, "text": 2 * WORDS, "output_tokens": 3}
    assert (known["rounds"], known["dtype"], known["decoder_layers"]) == (2, "float32", 6)
    assert known["attention"] == {"decoder": "sdpa", "encoder": "sdpa"}
    assert known["threads"] == torch.get_num_threads()
    assert known["cpu"]
    assert set(known["versions"]) == {"vlmcompress", "torch", "transformers", "python"}
