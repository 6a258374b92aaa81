"""Questions to the device: at once, or collected and asked together."""

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.deferred_checks import Checks, collected, expect
from vlmcompress.ops.select import top_k


def saying(words):
    return lambda: VLMCompressError(words)


def test_the_first_error_is_the_one_that_is_raised():
    checks = Checks()
    checks.settle()
    for good, words in ((True, "none"), (False, "first"), (False, "second")):
        checks.expect(torch.tensor(good), saying(words))
    with pytest.raises(VLMCompressError, match="first"):
        checks.settle()
    checks.settle()


def test_what_is_expected_is_asked_at_once_unless_it_is_collected():
    bad, checks = torch.tensor(False), Checks()
    with collected(checks):
        expect(bad, saying("later"))
        with collected(inner := Checks()):
            assert top_k(torch.tensor([1.0, torch.nan, 3.0]), 2).shape == (2,)
        expect(torch.tensor(True), saying("never"))
    with pytest.raises(VLMCompressError, match="NaN"):
        inner.settle()
    with pytest.raises(VLMCompressError, match="later"):
        checks.settle()
    with pytest.raises(VLMCompressError, match="now"):
        expect(bad, saying("now"))
    expect(~bad, saying("never"))
