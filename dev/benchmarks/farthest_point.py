"""`farthest_point` beside the published loop of DivPrune, in one process and interleaved.

python -m dev.benchmarks.farthest_point --out dev/benchmarks/results/farthest_point.json

The loop as it is published: all cosines by one product, then for each pick the rows of all picks so
far gathered and their minimum taken, O(k^2 N) in all. Both get the same float32 features.

Time of `farthest_point` depends on the features, that of the loop does not. "independent" rows are
normal: in thousands of dimensions all are about equally far apart, which leaves most to compute.
"smooth" rows vary over the picture as an encoder's output does, with noise and a common part.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlmcompress.eval.run.provenance import machine
from vlmcompress.files import write_json
from vlmcompress.ops.select import farthest_point

SIZES = ("2880,320,4096", "16384,1024,4096")
"""Tokens, picks and width: LLaVA-NeXT and a long video."""

WAVES = 64
"""Directions in which smooth features vary."""


def published(features: Tensor, count: int) -> Tensor:
    """[count] picks of the loop, ascending."""
    unit = features / features.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    # The smallest distance of a row is that to itself.
    pick = distance.topk(2, dim=0, largest=False).values[1].argmax()[None]
    for _ in range(count - 1):
        nearest = distance.index_select(0, pick).min(dim=0).values
        pick = torch.cat([pick, nearest.argmax()[None]])
    ascending: Tensor = pick.sort().values
    return ascending


def independent(tokens: int, width: int) -> Tensor:
    """[N, D] normal numbers."""
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))


def smooth(tokens: int, width: int) -> Tensor:
    """[N, D] that change over about six tokens of a square picture in raster order."""
    generator = torch.Generator().manual_seed(0)
    side = int(tokens**0.5) + 1
    coarse = torch.randn(1, WAVES, side // 6 + 2, side // 6 + 2, generator=generator)
    waves = interpolate(coarse, (side, side), mode="bicubic")[0].flatten(1).T[:tokens]
    drawn: Tensor = waves @ torch.randn(WAVES, width, generator=generator) / WAVES**0.5
    drawn += torch.randn(1, width, generator=generator)
    return drawn + 0.5 * torch.randn(tokens, width, generator=generator)


def measure(name: str, features: Tensor, count: int, rounds: int) -> dict[str, Any]:
    """One row: a warm-up, then `rounds` of both in turns."""
    ways: dict[str, Callable[[Tensor, int], Tensor]] = {
        "published": published,
        "ours": farthest_point,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    picks = {}
    for number in range(rounds + 1):
        for way, pick in ways.items():
            start = time.perf_counter()
            picks[way] = pick(features, count)
            if number:
                times[way].append(time.perf_counter() - start)
    tokens, width = features.shape
    ratios = [theirs / ours for theirs, ours in zip(*times.values(), strict=True)]
    return {
        "features": name,
        "tokens": tokens,
        "picks": count,
        "width": width,
        "product_s": round(_product(features), 4),
        **{f"{way}_s": _spread(times[way]) for way in ways},
        "ratio": _spread(ratios),
        "identical": torch.equal(picks["published"], picks["ours"]),
        "common": int(torch.isin(picks["published"], picks["ours"]).sum()),
    }


def _product(features: Tensor) -> float:
    """Seconds of all cosines by one product: what no way that computes them all can beat."""
    torch.mm(features[:64], features[:64].T)
    start = time.perf_counter()
    torch.mm(features, features.T)
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        values = 2 * values
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Measure sizes with both kinds of features; others that the file has stay in it."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.farthest_point")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="N,K,D")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        tokens, count, width = map(int, size.split(","))
        for kind in (independent, smooth):
            # Above a second a run is long enough to be steady.
            rounds = given.rounds if tokens < 8192 else min(given.rounds, 2)
            rows.append(measure(kind.__name__, kind(tokens, width), count, rounds))
            print(rows[-1], flush=True)
    made_on = machine("python -m dev.benchmarks.farthest_point", torch.device("cpu"))
    known = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    measured = {row["tokens"] for row in rows}
    rows += [row for row in known if row["tokens"] not in measured]
    write_json(given.out, {"provenance": made_on, "rows": rows})


if __name__ == "__main__":
    main()
