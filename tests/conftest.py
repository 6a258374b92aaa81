"""Fixtures that several test folders share, and what the newest transformers is held to."""

import os
from pathlib import Path

import pytest
import torch
from tiers import by_default, share

# Triton reads it when it is first imported, which importing transformers does.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers

import vlmcompress

# Models this small spend their time waiting for a second thread.
torch.set_num_threads(1)

PINS = Path(__file__).parents[1] / "constraints.txt"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run slow tests and whole products, too")
    parser.addoption("--shard", metavar="I/N", help="run the Ith of N shares of the tests")


def pytest_collection_modifyitems(config, items):
    """Leave out what `--full` is needed for, and the shares of other machines."""
    kept = items if config.getoption("--full") else by_default(items)
    if config.getoption("--shard"):
        kept = share(kept, config.getoption("--shard"))
    taken = {id(item) for item in kept}
    dropped = [item for item in items if id(item) not in taken]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_configure(config):
    """On the pinned transformers, the newest, nothing may use what a next release takes away.

    And no test depends on how wide the terminal is that happens to run it.
    """
    os.environ.pop("COLUMNS", None)
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
