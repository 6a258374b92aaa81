"""Every kernel on its trial in the interpreter, and kernels that are broken on purpose."""

import pytest
import torch

pytest.importorskip("triton")

from vlmcompress.ops._triton import coverage, gather, merge, pool, score, select
from vlmcompress.ops.proving import proof
from vlmcompress.ops.proving.proof import prove
from vlmcompress.ops.proving.trials import TRIALS, Draws
from vlmcompress.ops.proving.verdicts import Case

SMALL = [
    ("farthest_point", {"B": 2, "N": 30, "D": 8, "K": 9}),
    ("farthest_point", {"B": 1, "N": 30, "D": 16, "K": 32}),
    ("max_sum", {"N": 30, "D": 16, "K": 9}),
    ("dpp_map", {"N": 60, "D": 128, "K": 30}),
    ("facility_location", {"R": 20, "N": 30, "K": 9}),
    *(
        ("attention_rows", {"B": 2, "H": 4, "S": 2, "R": 3, "N": 20, "d": 8, **flags})
        for flags in ({"mean": 0, "seen": 1}, {"mean": 1, "seen": 0})
    ),
    *(
        ("attention_received", {"H": 2, "S": s, "N": 20, "d": 8, "valid": valid})
        for s, valid in ((1, 0), (1, 1), (3, 0))
    ),
    ("take", {"T": 5, "B": 2, "L": 9, "K": 4, "W": 64}),
    *(
        ("best_match", {"B": 2, "R": 9, "C": 12, "D": 16, "weighted": w, "closed": c})
        for w, c in ((0, 0), (0, 1), (1, 0), (1, 1))
    ),
    *(("segment_sum", {"N": 9, "M": 20, "K": 4, "D": 8, "weighted": w}) for w in (0, 1)),
    *(("pool", {"N": 36, "K": 9, "D": 8, "scored": s}) for s in (0, 1)),
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_timed_pair(monkeypatch):
    monkeypatch.setattr(proof, "_RUNS", 1)


def proven(op, sizes, dtype=None):
    return prove(Case.of(op, sizes, dtype or TRIALS[op].dtype), CPU, 60)


@pytest.mark.parametrize(("op", "sizes"), SMALL, ids=str)
def test_the_real_kernel_passes_its_trial(op, sizes):
    found = proven(op, sizes)
    assert found.outcome in ("faster", "slower"), found
    assert found.torch_ms > 0
    assert found.kernel_ms > 0


@pytest.mark.parametrize("op", ["farthest_point", "dpp_map", "attention_rows", "take", "pool"])
def test_in_float32(op):
    sizes = next(sizes for name, sizes in SMALL if name == op)
    assert proven(op, sizes, torch.float32).outcome in ("faster", "slower")


def last_wrong(found):
    found[..., -1] = found[..., 0]
    return found


BREAKS = [
    # The last pick is the first one again.
    ("farthest_point", select, lambda found: last_wrong(found)),
    ("max_sum", select, lambda found: last_wrong(found)),
    ("dpp_map", coverage, lambda found: last_wrong(found)),
    ("facility_location", coverage, lambda found: last_wrong(found)),
    ("attention_rows", score, lambda found: found * 1.01),
    ("attention_received", score, lambda found: found.flip(-1)),
    ("take", gather, lambda found: [*found[:-1], found[-1].flip(1)]),
    ("best_match", merge, lambda found: (found[0], found[1].flip(1))),
    ("segment_sum", merge, lambda found: found + 0.01),
    ("pool", pool, lambda found: found.flip(0)),
]


@pytest.mark.parametrize(("op", "module", "spoil"), BREAKS, ids=[row[0] for row in BREAKS])
def test_a_wrong_kernel_fails_its_trial(op, module, spoil, monkeypatch):
    name = "best_match" if op == "best_match" else op
    kernel = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: spoil(kernel(*a, **k)))
    for sizes in [sizes for one, sizes in SMALL if one == op]:
        found = proven(op, sizes)
        assert found.outcome == "wrong"
        assert "differ from those of torch" in found.detail


def test_a_tie_that_goes_to_the_wrong_index_is_found(monkeypatch):
    """What a kernel would do that forgot `tie_break_left`: of equal rows the last is picked."""

    def last(images, count):
        found = kernel(images.flip(1), count)
        return images.shape[1] - 1 - found

    kernel = select.farthest_point
    monkeypatch.setattr(select, "farthest_point", last)
    assert proven("farthest_point", {"B": 1, "N": 30, "D": 16, "K": 9}).outcome == "wrong"


def test_every_op_that_asks_has_a_trial_and_is_tried_here():
    from pathlib import Path

    import vlmcompress.ops

    folder = Path(vlmcompress.ops.__file__).parent
    asked = {
        part.split('"')[1]
        for path in folder.glob("*.py")
        for part in path.read_text().replace("\n", "").replace(" ", "").split("use_triton(")[1:]
        if part.startswith('"')
    }
    assert asked == set(TRIALS) == {op for op, _ in SMALL} == {row[0] for row in BREAKS}
    assert all(trial.usual for trial in TRIALS.values())


def test_signs_have_lengths_that_divide_exactly():
    for width in (1, 2, 4, 8, 64, 128):
        rows = Draws(CPU, torch.bfloat16).signs(3, 9, width)
        lengths = rows.float().square().sum(-1)
        assert set(lengths.flatten().tolist()) <= {0.0, *(4.0**k for k in range(8))}
        assert lengths.max() >= width / 2
        assert (lengths[:, 4] == 0).all()


def test_a_trial_leaves_the_seed_of_the_process_alone():
    state = torch.get_rng_state()
    proven(*SMALL[0])
    assert torch.equal(torch.get_rng_state(), state)
