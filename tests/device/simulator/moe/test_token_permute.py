"""``npu_moe_token_permute`` and ``npu_moe_token_unpermute``: orders by hand, a round trip, and what is refused."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected

FLOATS = [torch.float16, torch.bfloat16, torch.float32]


def permute(*arguments, **more):
    return torch.ops.npu.npu_moe_token_permute(*arguments, **more)


def unpermute(rows, indices, *arguments, **more):
    indices = indices if isinstance(indices, torch.Tensor) else torch.tensor(indices, dtype=torch.int32)
    return torch.ops.npu.npu_moe_token_unpermute(rows, indices, *arguments, **more)


TOKENS = torch.tensor([[0.0, 1], [10, 11], [20, 21]])
EXPERTS = torch.tensor([[2, 0], [1, 2], [0, 1]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("experts", [EXPERTS, EXPERTS.int()])
def test_by_hand(dtype, experts):
    # Pairs 0 to 5 have experts 2 0 1 2 0 1, so sorted they are 1 4 2 5 0 3; pair 0 is in row 4, and so on.
    rows, places = permute(TOKENS.to(dtype), experts)
    assert rows[:, 0].tolist() == [0, 20, 10, 20, 0, 10]
    assert places.tolist() == [4, 0, 2, 5, 1, 3]
    assert (rows.dtype, places.dtype) == (dtype, torch.int32)


@pytest.mark.parametrize(("wanted", "rows"), [(None, 6), (0, 6), (4, 4), (9, 6), (-2, 4), (-6, 0), (-9, 0)])
def test_rows_that_are_given_back(wanted, rows):
    permuted, places = permute(TOKENS, EXPERTS, wanted)
    assert permuted[:, 0].tolist() == [0, 20, 10, 20, 0, 10][:rows]
    assert places.tolist() == [4, 0, 2, 5, 1, 3]


def test_one_expert_per_token():
    rows, places = permute(TOKENS, torch.tensor([5, 2, 5]))
    assert rows[:, 0].tolist() == [10, 0, 20]
    assert places.tolist() == [1, 0, 2]


def test_sums_by_hand():
    rows = torch.tensor([[1.0], [2], [4], [8], [16], [32]])
    probs = torch.tensor([[1.0, 10], [100, 1000], [0.5, 0.25]])
    # Token 0: rows 4 and 0; token 1: rows 2 and 5; token 2: rows 1 and 3.
    assert unpermute(rows, [4, 0, 2, 5, 1, 3], probs).tolist() == [[26], [32400], [3]]
    assert unpermute(rows, [4, 0, 2, 5, 1, 3]).tolist() == [[16], [1], [4], [32], [2], [8]]
    # Rows that were cut off are left out.
    assert unpermute(rows[:4], [4, 0, 2, 5, 1, 3], probs).tolist() == [[10], [400], [3]]
    assert unpermute(rows[:0], [4, 0], probs[:1]).tolist() == [[0]]


def test_one_rounding_in_the_order_of_experts():
    rows = torch.tensor([[2.0**25], [1], [-(2.0**25)]])
    # In float32 the 1 is lost beside 2**25, but not behind it.
    assert unpermute(rows, [0, 1, 2], torch.ones(1, 3)).item() == 0
    assert unpermute(rows, [0, 2, 1], torch.ones(1, 3)).item() == 1
    rows = torch.tensor([[256.0], [1], [1]]).bfloat16()
    assert unpermute(rows, [0, 1, 2], torch.ones(1, 3).bfloat16()).item() == 258
    # 129/128 squared is 130.0078/128: less 130/128 that is 2**-14, which a rounded product does not have.
    rows = torch.tensor([[129 / 128], [130 / 128]]).bfloat16()
    assert unpermute(rows, [0, 1], torch.tensor([[129 / 128, -1]]).bfloat16()).item() == 2.0**-14


@pytest.mark.parametrize("dtype", FLOATS)
def test_back_and_forth(dtype):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(50, 16, generator=generator).to(dtype)
    experts = torch.randint(0, 7, (50, 4), generator=generator)
    rows, places = permute(tokens, experts)
    assert torch.equal(unpermute(rows, places, torch.full((50, 4), 0.25)), tokens)
    assert torch.equal(unpermute(rows, places).view(50, 4, 16)[:, 2], tokens)


def test_rows_before_the_first():
    with pytest.raises(DeviceFault, match=r"sorted_indices\[1\] is -1, there are 3 rows"):
        unpermute(TOKENS, [0, -1, 7])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokens": torch.zeros(3)}, "tokens was of rank 1"),
        ({"tokens": torch.zeros(3, 2).int()}, "tokens was int32"),
        ({"indices": EXPERTS.float()}, "indices was float32; allowed: int32 or int64"),
        ({"indices": EXPERTS[None]}, "indices was of rank 3"),
        ({"indices": EXPERTS[:2]}, r"indices was of shape \[2, 2\]; allowed: \[3, 2\]"),
        ({"indices": torch.zeros(3, 513).int()}, "indices was 513; allowed: 1 to 512"),
        ({"padded_mode": True}, "padded_mode was True; allowed: False"),
    ],
)
def test_permute_rejections(other, message):
    with pytest.raises(OperatorRejected, match=message):
        permute(**{"tokens": TOKENS, "indices": EXPERTS} | other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rows": torch.zeros(3)}, "permuted_tokens was of rank 1"),
        ({"rows": torch.zeros(3, 2).int()}, "permuted_tokens was int32"),
        ({"indices": torch.zeros(3).long()}, "sorted_indices was int64; allowed: int32"),
        ({"indices": torch.zeros(3, 1).int()}, "sorted_indices was of rank 2"),
        ({"probs": torch.zeros(3)}, "probs was of rank 1"),
        ({"probs": torch.zeros(3, 1).int()}, "probs was int32"),
        ({"probs": torch.zeros(1, 513)}, "probs was of 513 columns; allowed: 1 to 512"),
        ({"probs": torch.zeros(2, 2)}, r"sorted_indices was of length 3; allowed: \[2, 2\] of probs make 4"),
        ({"padded_mode": True}, "padded_mode was True; allowed: False"),
    ],
)
def test_unpermute_rejections(other, message):
    with pytest.raises(OperatorRejected, match=message):
        unpermute(**{"rows": TOKENS, "indices": [0, 1, 2]} | other)
