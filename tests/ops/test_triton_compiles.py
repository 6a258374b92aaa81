"""The interpreter takes what a compiler refuses, so every kernel is compiled for real cards."""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
LISTS = sorted(HERE.glob("compiled_*.py"))
LONG = {f"compiled_{name}" for name in ("coverage", "merge", "pool", "score", "select")}
"""Lists that compile for more than three seconds."""
KERNELS = HERE.parents[1] / "vlmcompress" / "ops" / "_triton"


def compiled(listing, cache):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *sys.path])
    command = [sys.executable, str(HERE.parent / "helpers" / "compile_kernels.py"), str(listing)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    "listing",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ()) for path in LISTS],
    ids=lambda path: path.stem,
)
def test_every_listed_kernel_compiles_and_fits_its_card(listing, tmp_path):
    rows = compiled(listing, tmp_path)
    assert {row["sm"] for row in rows} == {75, 80, 86, 89, 90}
    assert [row for row in rows if not row["fits"]] == []


def test_every_kernel_is_listed():
    written, listed = set(), set()
    for path in KERNELS.glob("*.py"):
        tree = ast.parse(path.read_text())
        written |= {
            f.name
            for f in tree.body
            if isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel")
        }
    for path in LISTS:
        listed |= {row[0] for row in runpy.run_path(str(path))["KERNELS"]}
    assert written == listed
    assert written
