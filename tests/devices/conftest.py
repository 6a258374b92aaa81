"""The device guard that makes torch take pretended tensors; built once a session."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

GUARD = Path(__file__).with_name("guard.cpp")


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing that a kernel could run on; `test_proving` has stand-ins."""
    monkeypatch.setenv("VLMCOMPRESS_OPS", "torch")


@pytest.fixture(scope="session", autouse=True)
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if torch.cuda.is_available():
        pytest.skip("there is a real CUDA device, and one cannot be pretended beside it")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("a pretended device needs g++ to build its guard")
    built = tmp_path_factory.mktemp("guard") / "guard.so"
    root = Path(torch.__file__).parent
    command = [compiler, "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}"]
    command += [str(GUARD), "-o", str(built), f"-L{root / 'lib'}", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"g++ cannot build the guard of a pretended device: {done.stderr[-300:]}")
    ctypes.CDLL(str(built))
    return built
