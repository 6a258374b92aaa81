"""Every Triton kernel beside its torch path and beside the floor of the card.

python -m dev.benchmarks.kernels --out dev/benchmarks/results/kernels.json

On a machine without CUDA only the torch paths are timed; bytes and operations stand there as well.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dev.benchmarks.kept_rows import joined
from dev.benchmarks.kernel_case import KernelCase
from vlmcompress.budget.clock import elapsed
from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import write_json
from vlmcompress.ops.backend import forced

CARDS = {
    "H100": (3.35e12, 67e12, 989e12),
    "H200": (4.8e12, 67e12, 989e12),
    "A100": (1.94e12, 19.5e12, 312e12),
}
"""Bytes/s of memory, FLOP/s in float32, and in bfloat16 on tensor cores, from the data sheets.

Tensor cores multiply bfloat16 exactly and add in float32, as all ops calculate.
"""


def cases() -> list[KernelCase]:
    """All of them."""
    from dev.benchmarks.kernel_cases_merge import CASES as MERGE
    from dev.benchmarks.kernel_cases_score import CASES as SCORE
    from dev.benchmarks.kernel_cases_select import CASES as SELECT

    return [*SELECT, *SCORE, *MERGE]


def floor(case: KernelCase, card: str) -> float | None:
    """Milliseconds that the memory and the arithmetic of a known card take at least."""
    for name, (bandwidth, single, half) in CARDS.items():
        if name in card:
            rate = half if "bf16" in case.shape else single
            return max(case.bytes / bandwidth, case.flops / rate) * 1000
    return None


def measure(case: KernelCase, device: torch.device, rounds: int) -> dict[str, Any]:
    """Medians and quartiles in ms of every backend that runs there, interleaved."""
    run = case.prepare(device)
    names = ["torch", "triton"] if device.type == "cuda" else ["torch"]
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            with forced(name):
                spent = elapsed(run, device)
            if number:  # the first one compiles
                times[name].append(spent)
    row: dict[str, Any] = {"op": case.op, "shape": case.shape}
    row |= {"bytes": case.bytes, "flops": case.flops}
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        row[name] = {"ms": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}
    if device.type == "cuda":
        row["floor_ms"] = floor(case, torch.cuda.get_device_name(device))
        row["times_as_fast"] = round(row["torch"]["ms"] / row["triton"]["ms"], 3)
    return row


def paying(rows: list[dict[str, Any]]) -> list[str]:
    """Ops whose kernel is the faster one at every shape."""
    slowest: dict[str, float] = {}
    for row in rows:
        if "times_as_fast" in row:
            slowest[row["op"]] = min(row["times_as_fast"], slowest.get(row["op"], torch.inf))
    return sorted(op for op, ratio in slowest.items() if ratio > 1)


def main() -> None:
    """Measure all cases on the device that there is."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.kernels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="ops whose names contain this; others stay")
    given = parser.parse_args()
    device, rows = torch.device(given.device), []
    file: dict[str, Any] = (
        json.loads(given.out.read_text()) if given.only and given.out.exists() else {}
    )
    for case in cases():
        if given.only is None or given.only in case.op:
            rows.append(measure(case, device, given.rounds))
            print(rows[-1], flush=True)
    now = machine("python -m dev.benchmarks.kernels", device)
    own, rows = joined(file.get("provenance"), file.get("rows", []), rows, now, key)
    listed = [(case.op, case.shape) for case in cases()]
    rows = sorted((row for row in rows if key(row) in listed), key=lambda r: listed.index(key(r)))
    write_json(given.out, {"provenance": own, "pays": paying(rows), "rows": rows})


def key(row: Mapping[str, Any]) -> tuple[str, str]:
    """What is measured once."""
    return row["op"], row["shape"]


if __name__ == "__main__":
    main()
