"""``npu_prefetch`` changes nothing and refuses numbers that are outside the tensor, in torch_npu's words."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected


def test_nothing_happens():
    x = torch.arange(4.0)
    assert torch.ops.npu.npu_prefetch(x, None, 1000, 15) is None
    assert torch.ops.npu.npu_prefetch(x[::2], x, 1) is None
    assert x.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-1,), "max_size should be greater than zero, but got -1"),
        ((0,), "max_size should be greater than zero, but got 0"),
        ((1, -1), "offset should not be smaller than zero, but got -1"),
        ((1, 16), "offset out of range of tensor size, tensor size: 16, offset: 16"),
    ],
)
def test_rejections(numbers, message):
    with pytest.raises(OperatorRejected, match=f"ERR01003.: {message}"):
        torch.ops.npu.npu_prefetch(torch.arange(4.0), None, *numbers)
    if numbers[-1] != 16:
        with pytest.raises(OperatorRejected, match=message):
            torch.ops.npu.npu_prefetch(torch.empty(4, device="meta"), None, *numbers)
