"""DivPrune's selection of several images in one call, beside one call for each.

python -m dev.benchmarks.selection_together --out dev/benchmarks/results/selection_together.json

The picks are the same; what is shared is the time between small operations, so that it pays where
tokens are few and narrow. CPU time of one thread, which others on the machine do not change.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import write_json
from vlmcompress.ops.select import farthest_point

IMAGES = 8
SIZES = ("36,9,64", "144,16,256", "576,64,64", "576,64,256", "576,64,896", "576,64,4096")
"""Tokens, picks and width of an image."""


def measure(tokens: int, picks: int, width: int, rounds: int) -> dict[str, Any]:
    """One row: a warm-up, then both in turns."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, tokens, width, generator=generator)
    alone, together = [], []
    for number in range(rounds + 1):
        start = time.process_time()
        one_by_one = [farthest_point(image, picks) for image in images]
        middle = time.process_time()
        at_once = farthest_point(images, picks)
        end = time.process_time()
        if number:
            alone.append(1000 * (middle - start) / IMAGES)
            together.append(1000 * (end - middle) / IMAGES)
    ratios = [one / other for one, other in zip(alone, together, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        **{"images": IMAGES, "tokens": tokens, "picks": picks, "width": width},
        "alone_ms": round(statistics.median(alone), 3),
        "together_ms": round(statistics.median(together), 3),
        "ratio": [round(x, 3) for x in (median, low, high)],
        "identical": torch.equal(torch.stack(one_by_one), at_once),
    }


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.selection_together")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="N,K,D")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [[int(number) for number in size.split(",")] for size in given.sizes]
    rows = [measure(tokens, picks, width, given.rounds) for tokens, picks, width in sizes]
    made_on = machine("python -m dev.benchmarks.selection_together", torch.device("cpu"))
    made_on["clock"] = "CPU time"
    write_json(given.out, {"provenance": made_on, "rows": rows})


if __name__ == "__main__":
    main()
