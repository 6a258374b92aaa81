"""The comparison with the published loop, on a few tokens."""

import json
import sys

import pytest
import torch

from dev.benchmarks import farthest_point as select_speed
from vlmcompress.ops.select import farthest_point


def test_the_loop_is_the_definition():
    angles = torch.tensor([0.0, 10, 40, 100, 170, 205]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert select_speed.published(rows, 3).tolist() == [0, 3, 5]
    assert select_speed.published(rows, 5).tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [select_speed.independent, select_speed.smooth])
def test_the_same_features_every_time(kind):
    rows = kind(70, 12)
    assert rows.shape == (70, 12)
    assert rows.std(0).min() > 0
    assert torch.equal(rows, kind(70, 12))


def test_smooth_rows_are_like_their_neighbours():
    near = [
        (rows[1:] * rows[:-1]).sum(-1).mean() - (rows[40:] * rows[:-40]).sum(-1).mean()
        for rows in (select_speed.independent(900, 64), select_speed.smooth(900, 64))
    ]
    assert near[1] > 10 * abs(near[0])


def test_the_table_is_whole(tmp_path, monkeypatch):
    out = tmp_path / "select.json"
    command = [
        "select_speed",
        "--out",
        str(out),
        "--sizes",
        "900,40,32",
        "60,9,16",
        "--rounds",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", command)
    select_speed.main()
    document = json.loads(out.read_text())
    assert document["provenance"]["device"].startswith("CPU")
    assert document["provenance"]["threads"] == torch.get_num_threads()
    assert [(row["tokens"], row["features"]) for row in document["rows"]] == [
        (900, "independent"),
        (900, "smooth"),
        (60, "independent"),
        (60, "smooth"),
    ]
    for row in document["rows"]:
        assert row["identical"]
        assert row["common"] == row["picks"]
        for name in ("published_s", "ours_s", "ratio"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
    assert [path.name for path in tmp_path.iterdir()] == ["select.json"]

    monkeypatch.setattr(sys, "argv", [*command[:4], "60,5,16", "--rounds", "2"])
    select_speed.main()
    again = json.loads(out.read_text())["rows"]
    assert [(row["tokens"], row["picks"]) for row in again] == [
        (60, 5),
        (60, 5),
        (900, 40),
        (900, 40),
    ]
    assert again[2:] == document["rows"][:2]


def test_other_picks_are_told(monkeypatch):
    rows = select_speed.independent(60, 16)
    monkeypatch.setattr(select_speed, "farthest_point", lambda x, k: farthest_point(x, k) // 2)
    row = select_speed.measure("independent", rows, 9, 1)
    assert not row["identical"]
    assert row["common"] < 9
