"""docs/serving.md: its figures are those that were measured, its models those that are served."""

import json
from pathlib import Path

import vlmcompress
from vlmcompress.serving import SERVED

ROOT = Path(vlmcompress.__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_the_table_shows_the_committed_figures():
    found = json.loads((ROOT / "dev/benchmarks/results/serving.json").read_text())
    for row in found["rows"]:
        every, fewer = row["all"], row["fewer"]
        ttft = f"{every['median_ttft_ms']:.0f} -> {fewer['median_ttft_ms']:.0f}"
        rate = f"{every['request_throughput']:.2f} -> {fewer['request_throughput']:.2f}"
        line = [row["concurrency"], ttft, row["ttft_ratio"], rate, row["throughput_ratio"]]
        assert f"| {' | '.join(map(str, line))} |" in PAGE
    assert f"load {found['machine']['load']}" in PAGE


def test_all_models_that_are_served_are_listed():
    assert all(name in PAGE for name in SERVED.values())
