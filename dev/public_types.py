"""Whether a type checker of a user knows the type of every public name.

    pyright --outputjson --ignoreexternal --verifytypes vlmcompress > build/types.json
    python -m dev.public_types build/types.json

Public are the names of `vlmcompress.__all__` and their members. A type that pyright can infer, but
another checker might infer otherwise, counts as known.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vlmcompress


def unknown(report: Mapping[str, Any]) -> list[str]:
    """Public names whose type is not known, each with the first reason.

    Args:
        report: what `pyright --verifytypes` wrote.

    Raises:
        ValueError: it is of another package, or public names are missing in it.
    """
    symbols = report["typeCompleteness"]["symbols"]
    homes = {f"vlmcompress.{name}" for name in vlmcompress.__all__}
    homes |= {f"vlmcompress.{home}.{name}" for name, home in vlmcompress._HOME.items()}
    public = [one for one in symbols if _of(one["name"], homes)]
    missing = homes - {one["name"] for one in public} - {"vlmcompress.__version__"}
    if missing:
        raise ValueError(f"the report does not tell of {', '.join(sorted(missing))}")
    return [
        f"{one['name']}: {_reason(one)}"
        for one in public
        if not one["isTypeKnown"] and not one["isTypeAmbiguous"]
    ]


def _of(name: str, homes: set[str]) -> bool:
    """Whether a symbol is a public name, or a member of one."""
    return name in homes or name.rpartition(".")[0] in homes


def _reason(symbol: Mapping[str, Any]) -> str:
    reasons = [one["message"].split("\n")[0] for one in symbol["diagnostics"]]
    return reasons[0] if reasons else "a part of it is not known"


def main() -> None:
    """Print the names whose type is not known; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m dev.public_types")
    parser.add_argument("report", type=Path, help="what pyright wrote")
    report = json.loads(parser.parse_args().report.read_text())
    found = unknown(report)
    for line in found:
        print(line)
    score = report["typeCompleteness"]["completenessScore"]
    print(f"{len(found)} public names of unknown type; all of the package: {100 * score:.1f} %")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
