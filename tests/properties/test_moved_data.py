from __future__ import annotations

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.moved_data import DTYPES, random_bits


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_no_element_is_0_and_all_are_finite(dtype):
    data = random_bits(Stream(3, "data"), (50, 41), dtype)
    assert data.dtype == dtype
    assert data.shape == (50, 41)
    assert bool((data != 0).all())
    assert bool(data.isfinite().all())
    assert len(data.unique()) > (100 if dtype == torch.int8 else 1900)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_the_same_stream_gives_the_same_bits(dtype):
    assert torch.equal(random_bits(Stream(3, "data"), (7,), dtype), random_bits(Stream(3, "data"), (7,), dtype))
    assert not torch.equal(random_bits(Stream(3, "data"), (7,), dtype), random_bits(Stream(4, "data"), (7,), dtype))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (1,), (2, 3, 4, 5)])
def test_it_has_a_storage_of_its_own(shape):
    data = random_bits(Stream(0, "data"), shape, torch.float16)
    assert data.shape == shape
    assert data._base is None
    assert data.untyped_storage().nbytes() == 2 * data.numel()
