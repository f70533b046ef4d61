"""``npu_convert_weight_to_int4pack``: the order of integers, matrices, formats, and what it refuses."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected
from npudiff.device.simulator.cache.formats import Format, format_of


def pack(weight, *arguments):
    return torch.ops.npu.npu_convert_weight_to_int4pack(weight, *arguments)


def test_one_after_the_other(exact):
    weight = exact.integers(3, 16, low=-8, high=8, dtype=torch.int32)
    words = pack(weight)
    assert (words.shape, words.dtype) == ((3, 2), torch.int32)
    for row, packed in zip(weight.tolist(), words.tolist(), strict=True):
        assert exact.nibbles(packed[0]) + exact.nibbles(packed[1]) == row
    assert torch.equal(pack(weight, 4), words)


def test_by_hand():
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]] * 2).int()).tolist() == [[0x07654321]] * 2
    assert pack(torch.tensor([[-1, 0, 0, 0, 0, 0, 0, -8]]).int()).tolist() == [[0x8000000F - 2**32]]


def test_higher_bits_are_dropped():
    assert pack(torch.tensor([[0x1F, -17, 0x70, 8, 0, 0, 0, 0]]).int()).tolist() == [[0x80FF]]


def test_of_several_matrices_the_first_comes_back(exact):
    weight = exact.integers(3, 4, 8, low=-8, high=8, dtype=torch.int32)
    assert torch.equal(pack(weight), pack(weight[0].clone()))
    with exact.changed(int4pack_rank_3="all"):
        assert torch.equal(pack(weight)[2], pack(weight[2].clone()))


def test_nz_stays_nz(exact):
    weight = exact.integers(32, 64, low=-8, high=8, dtype=torch.int32)
    words = pack(torch.ops.npu.npu_format_cast(weight, 29))
    assert format_of(words) == Format.FRACTAL_NZ
    assert torch.equal(words, pack(weight))
    assert format_of(pack(weight)) == Format.ND


W = torch.ones(8, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (W[0], r"rank 1, \[8\]; allowed: rank 2 to 3"),
        (W.view(1, 1, 8, 8), r"rank 4, \[1, 1, 8, 8\]; allowed: rank 2 to 3"),
        (W.tril().t(), r"not contiguous, strides \(1, 8\)"),
        (W.float(), "float32; allowed: int32"),
        (W.to(torch.int8), "int8; allowed: int32"),
        (W[:, :4].contiguous(), r"of shape \[8, 4\]; allowed: no empty axis, and a last one that is a multiple of 8"),
        (W[:0], r"of shape \[0, 8\]"),
    ],
)
def test_rejections(weight, message):
    with pytest.raises(OperatorRejected, match=f"npu_convert_weight_to_int4pack: weight was (of )?{message}"):
        pack(weight)
