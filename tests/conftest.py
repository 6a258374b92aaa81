"""Fixtures that several test folders share."""

import pytest
import torch

import vlmcompress

# Models this small spend their time waiting for a second thread.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llava():
    """The built-in model and its processor in float32; leave it as it was found."""
    return vlmcompress.load("tiny-llava", device="cpu", dtype="float32")
