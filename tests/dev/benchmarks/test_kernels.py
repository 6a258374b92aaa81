"""The table of kernels: what is timed, floors, and which kernels pay."""

import json
import sys

import pytest
import torch

from dev.benchmarks import kernels as kernel_speed
from dev.benchmarks.kernel_case import KernelCase
from dev.benchmarks.kernels import cases, floor, measure, paying


def case(op="take", shape="N=3 fp32", **sizes):
    return KernelCase(op, shape, lambda device: lambda: torch.ones(3, device=device), **sizes)


def test_cases_name_ops_and_floors():
    found = cases()
    assert len({(one.op, one.shape) for one in found}) == len(found) > 30
    assert all(one.bytes > 0 and one.flops >= 0 for one in found)


def test_a_floor_is_the_slower_of_memory_and_arithmetic():
    assert floor(case(bytes=3_350_000_000, flops=1), "NVIDIA H100 80GB HBM3") == pytest.approx(1)
    assert floor(case(bytes=1, flops=134 * 10**9), "NVIDIA H100") == pytest.approx(2)
    half = case(shape="N=3 bf16", bytes=1, flops=989 * 10**9)
    assert floor(half, "NVIDIA H100") == pytest.approx(1)
    assert floor(case(bytes=1, flops=1), "a card of tomorrow") is None


def test_an_op_pays_where_its_kernel_is_faster_at_every_shape():
    rows = [{"op": "a", "times_as_fast": 1.5}, {"op": "a", "times_as_fast": 0.9}]
    rows += [{"op": "b", "times_as_fast": 1.1}, {"op": "c"}]
    assert paying(rows) == ["b"]


def test_without_a_gpu_only_torch_is_timed(monkeypatch, tmp_path):
    row = measure(case(bytes=12, flops=0), torch.device("cpu"), 3)
    assert row["torch"]["ms"] > 0
    assert "triton" not in row
    both = [case(bytes=12, flops=0), case("merge", bytes=12, flops=0)]
    monkeypatch.setattr(kernel_speed, "cases", lambda: both)
    out = tmp_path / "kernels.json"
    command = ["kernel_speed", "--device", "cpu", "--out", str(out), "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    kernel_speed.main()
    document = json.loads(out.read_text())
    assert document["pays"] == []
    assert [row["op"] for row in document["rows"]] == ["take", "merge"]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "take"])
    kernel_speed.main()
    again = json.loads(out.read_text())["rows"]
    assert [row["op"] for row in again] == ["take", "merge"]
    assert again[1] == document["rows"][1]
    assert again[0]["measured"]["command"].endswith("--only take")
