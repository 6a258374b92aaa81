"""Which transformers the tests run on, and what they hold it to."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import transformers

from vlmcompress.version import NEWEST_TRANSFORMERS

ROOT = Path(__file__).parents[2]
SPAN = re.search(r'"transformers>=([\d.]+),<(\d+)"', (ROOT / "pyproject.toml").read_text())


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def test_this_transformers_is_one_that_the_package_allows():
    assert numbers(SPAN[1]) <= numbers(transformers.__version__) < numbers(SPAN[2])


def test_errors_name_the_transformers_that_is_pinned():
    pins = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert max(pins, key=numbers) == NEWEST_TRANSFORMERS


def test_a_future_warning_is_an_error_on_the_newest_transformers_only():
    pins = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    expected = pytest.raises if transformers.__version__ in pins else pytest.warns
    with expected(FutureWarning, match="going away"):
        warnings.warn("going away", FutureWarning, stacklevel=1)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_oldest_run_takes_the_lower_bound_of_the_dependency_in_a_venv_of_its_own():
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-oldest", "PYTHON=python3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"TRANSFORMERS={SPAN[1]} " in plan
    assert f'"transformers=={SPAN[1]}" >> .venv-oldest/constraints.txt' in plan
    assert ".venv-oldest/bin/python -m pytest" in plan
    assert "make test-oldest\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_newest_run_takes_the_transformers_that_the_index_gives():
    command = ["make", "--dry-run", "test-newest"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in plan.splitlines() if " pip install " in line]
    assert [("constraints" in line, line.split()[-1]) for line in installs] == [
        (True, "torch"),
        (False, "accelerate"),
    ]
    assert " transformers " in installs[1]
    assert "make test-newest\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test-newest\n" in (ROOT / ".github/workflows/newest.yml").read_text()
