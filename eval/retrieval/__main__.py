"""Measures a retriever on drawn pages.

python -m vlmcompress.eval.retrieval --out pages.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vlmcompress.eval.retrieval.measure import measure
from vlmcompress.eval.retrieval.settings import SETTINGS
from vlmcompress.eval.run.provenance import of_run
from vlmcompress.eval.worlds.pages import VERSION, collection
from vlmcompress.files.whole import write_json
from vlmcompress.models.loading import load


def main() -> None:
    """Write the table as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmcompress.eval.retrieval", description="Find drawn pages."
    )
    parser.add_argument("--model", default="tiny-colqwen", help="built-in name, folder or hub id")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load(arguments.model, device="cpu")
    found = measure(
        model,
        processor,
        collection(arguments.pages, arguments.queries),
        SETTINGS,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    made = of_run(arguments.model, model, world=VERSION)
    write_json(arguments.out, {"made": made, **found})


if __name__ == "__main__":
    main()
