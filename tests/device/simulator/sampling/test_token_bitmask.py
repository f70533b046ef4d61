"""``apply_token_bitmask``: which tokens go, bit by bit in Python; rows; refusals."""

import math

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected


def words(*shape, seed=0):
    drawn = torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed))
    drawn[..., 0] = torch.tensor([-1, 0, 2**31 - 1, -(2**31)])[torch.arange(drawn[..., 0].numel()) % 4]
    return drawn.int()


def expected(logits, bitmask, rows):
    """Return lists; bit v % 32 of word v // 32 says whether token v stays, and no word says that it goes."""
    out = logits.tolist()
    for row in rows:
        bits = [word >> bit & 1 for word in bitmask[row].tolist() for bit in range(32)]
        bits += [0] * max(0, logits.shape[1] - len(bits))
        out[row] = [value if bit else -math.inf for value, bit in zip(out[row], bits, strict=False)]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "count"), [(64, 2), (70, 3), (1, 1), (300, 4), (40, 5)])
def test_tokens_without_a_bit_go(dtype, vocabulary, count):
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(1)).to(dtype)
    bitmask = words(5, count)
    want = expected(logits, bitmask, range(5))
    out = torch.ops.npu.apply_token_bitmask(logits, bitmask)
    assert logits.tolist() == want
    assert out.data_ptr() == logits.data_ptr()
    assert out.dtype == dtype


@pytest.mark.parametrize("indices", [[3, 0], [], None, [-1]])
def test_only_some_rows(indices):
    logits, bitmask = torch.zeros(4, 64), words(4, 2)
    rows = range(4) if not indices else [row % 4 for row in indices]
    want = expected(logits, bitmask, rows)
    given = None if indices is None else torch.tensor(indices, dtype=torch.int32)
    torch.ops.npu.apply_token_bitmask(logits, bitmask, given)
    assert logits.tolist() == want


def test_nan_and_infinity_stay_where_a_bit_says_so():
    logits = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    torch.ops.npu.apply_token_bitmask(logits, torch.tensor([[0b0111]], dtype=torch.int32))
    assert str(logits.tolist()) == "[[nan, inf, -inf, -inf]]"


@pytest.mark.parametrize(
    ("logits", "bitmask", "indices", "message"),
    [
        (torch.zeros(64), words(1, 2), None, "logits must be 2D, got 1D tensor"),
        (torch.zeros(1, 64), words(2), None, "bitmask must be 2D, got 1D tensor"),
        (torch.zeros(2, 64), words(3, 2), None, "batch size mismatch: 2 vs 3"),
        (torch.zeros(64, 2).T, words(2, 2), None, "logits must be contiguous"),
        (torch.zeros(2, 64), words(2, 4)[:, ::2], None, "bitmask must be contiguous"),
        (torch.zeros(2, 64), words(2, 2).long(), None, "bitmask must be int32"),
        (torch.zeros(2, 64).double(), words(2, 2), None, "logits must be float32, float16 or bfloat16"),
        (torch.zeros(2, 0), words(2, 2), None, "vocab_size must be > 0"),
        (torch.zeros(2, 64), words(2, 2), torch.zeros(1, 1).int(), "indices must be 1D"),
    ],
)
def test_what_is_refused(logits, bitmask, indices, message):
    with pytest.raises(OperatorRejected, match=message):
        torch.ops.npu.apply_token_bitmask(logits, bitmask, indices)


def test_rows_outside_are_faults():
    with pytest.raises(DeviceFault, match="is 2, there are 2 rows"):
        torch.ops.npu.apply_token_bitmask(torch.zeros(2, 64), words(2, 2), torch.tensor([0, 2]))
