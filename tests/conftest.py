"""Fixtures that several test folders share, and what the newest transformers is held to."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

# Triton reads it when it is first imported, which importing transformers does.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers

import vlmcompress

# Models this small spend their time waiting for a second thread.
torch.set_num_threads(1)

PINS = Path(__file__).parents[1] / "constraints.txt"


def pytest_addoption(parser):
    text = "of a test with over 100 sets of parameters take every Nth (a prime leaves no pair out)"
    parser.addoption("--every", type=int, default=1, metavar="N", help=text)


def pytest_collection_modifyitems(config, items):
    """Thin out the large products, where one run over all of them is enough."""
    sets = Counter(item.function for item in items if hasattr(item, "function"))
    seen = Counter()
    kept, dropped = [], []
    for item in items:
        test = getattr(item, "function", None)
        large = sets[test] > 100
        (dropped if large and seen[test] % config.getoption("--every") else kept).append(item)
        seen[test] += 1
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_configure(config):
    """On the pinned transformers, the newest, nothing may use what a next release takes away."""
    if f"transformers=={transformers.__version__}" in PINS.read_text().replace(";", "\n").split():
        config.addinivalue_line("filterwarnings", "error::FutureWarning")
        config.addinivalue_line("filterwarnings", "error::DeprecationWarning:transformers")


@pytest.fixture(scope="session")
def tiny_llava():
    """The built-in model and its processor in float32; leave it as it was found."""
    return vlmcompress.load("tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_qwen():
    """The built-in model of clips, likewise."""
    return vlmcompress.load("tiny-qwen", device="cpu", dtype="float32")


@pytest.fixture
def device():
    """Where ops are tested: a GPU if there is one, else the CPU with Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nothing was written to yet holds NaN, or a number that is no index."""

    def poison(make):
        def filled(*args, **kwargs):
            made = make(*args, **kwargs)
            if made.is_floating_point():
                return made.fill_(torch.nan)
            return made.fill_(True if made.dtype == torch.bool else torch.iinfo(made.dtype).max)

        return filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
