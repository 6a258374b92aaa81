"""Features that are no numbers are refused, and counted by row."""

import pytest
import torch

from vlmcompress.errors import VLMCompressError
from vlmcompress.ops.finite import check_finite, finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_no_number_is_refused(bad, dtype):
    features = torch.randn(2, 5, 3).to(dtype)
    features[1, 3, 2] = features[0, 1, 0] = features[0, 1, 1] = bad
    for check in (finite, check_finite):
        with pytest.raises(VLMCompressError, match="features must be finite: 2 of 10 rows"):
            check(features)


def test_what_is_finite_comes_back_as_float32_without_gradient():
    features = torch.full((3, 2), 300.0, dtype=torch.bfloat16, requires_grad=True)
    found = finite(features)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.tolist() == [[300.0] * 2] * 3
    assert finite(torch.full((2, 2), torch.finfo(torch.float32).max)).shape == (2, 2)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_is_finite(shape):
    assert finite(torch.zeros(shape)).shape == shape
