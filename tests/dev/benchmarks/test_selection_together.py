"""Several images in one call beside one call for each."""

import json
import sys

import torch

from dev.benchmarks import selection_together
from vlmcompress.ops.select import farthest_point


def test_the_table_is_whole(tmp_path, monkeypatch):
    out = tmp_path / "t.json"
    command = ["x", "--out", str(out), "--sizes", "40,5,16", "20,3,8", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    selection_together.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["tokens"], row["picks"], row["width"]) for row in rows] == [
        (40, 5, 16),
        (20, 3, 8),
    ]
    for row in rows:
        median, low, high = row["ratio"]
        assert 0 < low <= median <= high
        assert row["alone_ms"] > 0
        assert row["together_ms"] > 0
        assert row["identical"]


def test_other_picks_are_told(monkeypatch):
    def reversed_together(x, count):
        found = farthest_point(x, count)
        return found.flip(0) if x.dim() == 3 else found

    monkeypatch.setattr(selection_together, "farthest_point", reversed_together)
    assert not selection_together.measure(40, 5, 16, 2)["identical"]
    assert torch.get_num_threads() == 1
