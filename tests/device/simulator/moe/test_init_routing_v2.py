"""``npu_moe_init_routing_v2``: orders, ranges, counts and capacities by hand, rounding chains, and what is refused."""

import dataclasses
from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile
from npudiff.device.simulator.moe.quantisation import cut_to_half

GARBAGE = 0x5A5A5A5A
GARBAGE_64 = 0x5A5A5A5A5A5A5A5A
# Token 0 has experts 3 and 1, token 1 has 0 and 3, token 2 has 1 and 4.
EXPERTS = [[3, 1], [0, 3], [1, 4]]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def tokens(rows, width=2, dtype=torch.float32):
    return (torch.arange(rows).view(-1, 1) * 10 + torch.arange(width)).to(dtype)


def route(x=None, experts=EXPERTS, **more):
    x = tokens(len(experts)) if x is None else x
    more = {"expert_num": 5, "expert_tokens_num_flag": True, "expert_tokens_num_type": 1} | more
    return torch.ops.npu.npu_moe_init_routing_v2(x, int32(experts), **more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
def test_all_experts_by_hand(dtype):
    x, places, counts, scale = route(tokens(3, dtype=dtype))
    # Sorted: expert 0: t1; 1: t0, t2; 3: t0, t1; 4: t2. Places by token * 2 + j.
    assert (x[:, 0] / 10).tolist() == [1, 0, 2, 0, 1, 2]
    assert places.tolist() == [3, 1, 0, 4, 2, 5]
    assert counts.tolist() == [1, 2, 0, 2, 1]
    assert (x.dtype, places.dtype, counts.dtype, scale.dtype) == (dtype, torch.int32, torch.int64, torch.float32)
    assert scale.shape == (6,)
    # The other index is the inverse of this one.
    pairs = route(row_idx_type=1)[1]
    assert pairs.tolist() == [2, 1, 4, 0, 3, 5]


def test_statistics_by_hand():
    assert route(expert_tokens_num_type=0)[2].tolist() == [1, 3, 3, 5, 6]
    assert route(expert_tokens_num_type=2)[2].tolist() == [[0, 1], [1, 2], [3, 2], [4, 1], [0, 0]]
    nothing = route(expert_tokens_num_flag=False)[2]
    assert (nothing.shape, nothing.dtype) == ((), torch.int64)
    few = route(expert_tokens_num_type=2, active_expert_range=[1, 4])[2]
    assert few.tolist() == [[1, 2], [3, 2], [0, 0], *[[GARBAGE_64] * 2] * 2]
    with changed(moe_init_routing_keys="place_in_range"):
        few = route(expert_tokens_num_type=2, active_expert_range=[1, 4])[2]
        assert few[:3].tolist() == [[0, 2], [2, 2], [0, 0]]


def test_pairs_have_no_end_when_every_expert_has_rows():
    assert route(experts=[[1, 0]], expert_num=2, expert_tokens_num_type=2)[2].tolist() == [[0, 1], [1, 1]]


def test_a_range_of_experts_by_hand():
    x, places, counts, _ = route(active_expert_range=[1, 4])
    # Experts 0 and 4 are elsewhere: t0, t2 to expert 1, nothing to 2, t0, t1 to 3.
    assert (x[:4, 0] / 10).tolist() == [0, 2, 0, 1]
    assert x.shape == (6, 2)
    assert (x[4:].view(torch.int32) == GARBAGE).all()
    assert places.tolist() == [2, 0, -1, 3, 1, -1]
    assert counts.tolist() == [2, 0, 2]
    assert route(active_expert_range=[1, 4], expert_tokens_num_type=0)[2].tolist() == [2, 2, 4]
    pairs = route(active_expert_range=[1, 4], row_idx_type=1)[1]
    # Behind them the pair of expert 4, which is above the range, and that of expert 0, which is below.
    assert pairs.tolist() == [1, 4, 0, 3, 5, 2]
    with changed(moe_init_routing_inactive="unwritten"):
        pairs = route(active_expert_range=[1, 4], row_idx_type=1)[1]
    assert pairs.tolist() == [1, 4, 0, 3, GARBAGE, GARBAGE]


def test_pairs_above_the_range_are_sorted_and_those_below_are_not():
    pairs = route(experts=[[0, 4], [3, 1], [2, 0]], active_expert_range=[2, 3], row_idx_type=1)[1]
    assert pairs.tolist() == [4, 2, 1, 0, 3, 5]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("scale", [None, torch.ones(0), torch.ones(1, 2)])
def test_no_tokens(kind, scale):
    experts = torch.zeros(0, 3, dtype=torch.int32)
    more = {"expert_num": 5, "active_expert_range": [1, 4], "expert_tokens_num_flag": True, "quant_mode": 1}
    x, places, counts, by_row = torch.ops.npu.npu_moe_init_routing_v2(
        tokens(0), experts, scale=scale, expert_tokens_num_type=kind, **more
    )
    assert (x.shape, x.dtype, places.shape, by_row.shape) == ((0, 2), torch.int8, (0,), (0,))
    assert torch.equal(counts, torch.zeros((5, 2) if kind == 2 else 3, dtype=torch.int64))


def test_experts_that_do_not_exist_are_dropped():
    _, places, counts, _ = route(experts=[[-1, 5], [1, 2**31 - 1]])
    assert places.tolist() == [-1, -1, 0, -1]
    assert counts.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("active", "rows", "written"), [(-1, 6, 4), (0, 6, 4), (2, 2, 2), (5, 5, 4), (6, 6, 4), (99, 6, 4)]
)
def test_active_num_counts_rows(active, rows, written):
    x, places, counts, scale = route(active_expert_range=[1, 4], active_num=active, scale=torch.tensor([1.0, 2, 3]))
    assert (x.shape, scale.shape) == ((rows, 2), (rows,))
    assert (x[:written, 0] / 10).tolist() == [0, 2, 0, 1][:written]
    assert scale[:written].tolist() == [1, 3, 1, 2][:written]
    assert (x[written:].view(torch.int32) == GARBAGE).all()
    assert (scale[written:].view(torch.int32) == GARBAGE).all()
    # Index and counts know nothing of it.
    assert places.tolist() == [2, 0, -1, 3, 1, -1]
    assert counts.tolist() == [2, 0, 2]


def test_capacity_by_hand():
    experts = [[0, 1], [0, 2], [0, 2], [1, 0]]
    more = {"experts": experts, "expert_num": 4, "drop_pad_mode": 1, "expert_capacity": 2}
    x, places, counts, scale = route(**more, scale=torch.tensor([1.0, 2, 3, 4]), active_num=1)
    assert x.shape == (4, 2, 2)
    # Expert 0 keeps t0 and t1, and drops t2 and t3.
    assert x[..., 0].tolist() == [[0, 10], [0, 30], [10, 20], [0, 0]]
    assert x[..., 1].tolist() == [[1, 11], [1, 31], [11, 21], [0, 0]]
    assert places.tolist() == [0, 2, 1, 4, -1, 5, 3, -1]
    assert counts.tolist() == [4, 2, 2, 0]
    assert scale.tolist() == [1, 2, 1, 4, 2, 3, 0, 0]
    with changed(moe_init_routing_drop_pad_counts="kept"):
        assert route(**more)[2].tolist() == [2, 2, 2, 0]
    quantised, _, _, scale = route(**more, quant_mode=1)
    assert (quantised.dtype, quantised.shape, scale.shape) == (torch.int8, (4, 2, 2), (8,))
    assert quantised[2].tolist() == [[115, 127], [121, 127]]  # 10 / 11 * 127 = 115.45, 20 / 21 * 127 = 120.95
    assert quantised[3].tolist() == [[0, 0], [0, 0]]
    assert scale.tolist()[4:] == pytest.approx([11 / 127, 21 / 127, 0, 0])


def test_static_int8():
    more = {"experts": [[0]], "expert_num": 1, "quant_mode": 0}
    x = torch.tensor([[2.5, 3.5, -2.5, 1000.0, -1000.0, 0.25]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        q, _, _, scale = route(x.to(dtype), scale=torch.tensor([1.0]), offset=torch.tensor([0.0]), **more)
        assert q.tolist() == [[2, 4, -2, 127, -128, 0]]
        assert scale.shape == ()
    # 1 + 2**-12 is 1 in float16: 2048 - 2047 is 1. In float32 2048.5 - 2047 is 1.5, which rounds to 2.
    numbers = {"scale": torch.tensor([1 + 2.0**-12]), "offset": torch.tensor([-2047.0])}
    assert route(torch.tensor([[2048.0]]).half(), **numbers, **more)[0].tolist() == [[1]]
    assert route(torch.tensor([[2048.0]]).bfloat16(), **numbers, **more)[0].tolist() == [[2]]
    # 1025 * 1.5 is 1537.5, which float16 rounds to 1538; less 1537 that is 1. In float32 it is 0.5, which rounds to 0.
    numbers = {"scale": torch.tensor([1.5]), "offset": torch.tensor([-1537.0])}
    assert route(torch.tensor([[1025.0]]).half(), **numbers, **more)[0].tolist() == [[1]]
    assert route(torch.tensor([[1025.0]]), **numbers, **more)[0].tolist() == [[0]]


def test_static_int8_of_float32_goes_through_float16():
    # 2.5 + 2**-12 is 2.5 in float16, which rounds to the even 2; float32 would give 3.
    more = {"experts": [[0]], "expert_num": 1, "quant_mode": 0, "scale": torch.ones(1), "offset": torch.zeros(1)}
    assert route(torch.tensor([[2.5 + 2.0**-12]]), **more)[0].tolist() == [[2]]


def half_grid(value):
    """Cut a fraction below 128 toward zero to 11 significant bits, as float16 does."""
    magnitude, exponent = abs(value), 0
    if not magnitude:
        return value
    while magnitude >= 2 ** (exponent + 1):
        exponent += 1
    while magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -14) - 10)
    cut = magnitude // unit * unit
    return cut if value > 0 else -cut


def half_away(value):
    whole = (abs(value) + Fraction(1, 2)).__floor__()
    return whole if value > 0 else -whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dynamic_int8_in_fractions(dtype):
    # The largest of each row is 127 * 2**e, so that the scale is a power of two and all quotients are exact.
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(-127 * 64, 127 * 64 + 1, (5, 40), generator=generator) / 64).to(dtype)
    x[:, 7] = 127
    x = x * torch.tensor([[1], [2], [4], [0.5], [8]]).to(dtype)
    q, _, _, scale = route(x, [[0]] * 5, expert_num=1, quant_mode=1)
    assert scale.tolist() == [1, 2, 4, 0.5, 8]
    for row, step, got in zip(x.tolist(), scale.tolist(), q.tolist(), strict=True):
        assert got == [half_away(half_grid(Fraction(value) / Fraction(step))) for value in row]


def test_the_chain_of_dynamic_int8():
    # 2.5 rounds away; 3.4999 is cut to 3.498; 64.5 - 2**-10 is cut to 64.4375 (unit 1/16), as 100.5 - 2**-10 is.
    x = torch.tensor([[127, 2.5, -2.5, 3.4999, 64.5 - 2**-10, 100.5 - 2**-10, 1.5, 0.5]])
    q, _, _, scale = route(x, [[0]], expert_num=1, quant_mode=1)
    assert q.tolist() == [[127, 3, -3, 3, 64, 100, 2, 1]]
    assert scale.tolist() == [1]
    with changed(moe_init_routing_dynamic_int8="half_to_even"):
        assert route(x, [[0]], expert_num=1, quant_mode=1)[0].tolist() == [[127, 2, -2, 3, 64, 100, 2, 0]]
    # Nearest float16 would be 64.5, and then 65.
    assert torch.tensor(64.5 - 2**-10).half().item() == 64.5


def test_cut_to_half():
    values = torch.tensor(
        [1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 3 * 2.0**-11, 5.0, -0.0, 0.0, 2.0**-25 * 1.5, float("nan")]
    )
    cut = cut_to_half(values)
    assert cut[:7].tolist() == [1, 1 + 2.0**-10, -1 - 2.0**-10, 5, 0, 0, 0]
    assert cut[7].isnan()


def test_a_row_of_zeros():
    q, _, _, scale = route(torch.zeros(1, 4), [[0]], expert_num=1, quant_mode=1)
    assert q.tolist() == [[0, 0, 0, 0]]
    assert scale.tolist() == [0]


def test_smooth_scales_by_hand():
    x = torch.tensor([[1.0, 2, 4]]).expand(2, 3)
    smooth = torch.tensor([[127.0, 1, 1], [1, 1, 127 / 4]])
    # Token 0 goes to expert 2 and token 1 to expert 1: rows are of experts 1 and 2.
    more = {"experts": [[2], [1]], "active_expert_range": [1, 3], "quant_mode": 1}
    q, places, _, scale = route(x, scale=smooth, **more)
    assert places.tolist() == [1, 0]
    assert scale.tolist() == [1, 1]
    assert q.tolist() == [[127, 2, 4], [1, 2, 127]]
    q, _, _, scale = route(x, scale=smooth[:1], **more)
    assert q.tolist() == [[127, 2, 4]] * 2
    with changed(moe_init_routing_smooth="scale_only"):
        assert route(x, scale=smooth, **more)[0].tolist() == [[1, 2, 4], [1, 2, 4]]


def test_quantised_rows_of_other_experts_are_not_written():
    q, _, _, scale = route(active_expert_range=[1, 4], quant_mode=1)
    assert q.shape == (6, 2)
    assert (q[4:] == 0x5A).all()
    assert (scale[4:].view(torch.int32) == GARBAGE).all()


def test_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    experts = torch.randint(0, 9, (40, 4), generator=generator, dtype=torch.int32)
    x, places, counts, _ = route(tokens(40), experts.tolist(), expert_num=9, active_expert_range=[2, 7])
    expected = [(token, j) for e in range(2, 7) for token in range(40) for j in range(4) if experts[token, j] == e]
    assert (x[: len(expected), 0] / 10).tolist() == [token for token, _ in expected]
    position = {pair: place for place, pair in enumerate(expected)}
    assert places.tolist() == [position.get((token, j), -1) for token in range(40) for j in range(4)]
    assert counts.tolist() == [int((experts == e).sum()) for e in range(2, 7)]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_rows_may_be_said(dtype):
    x = torch.arange(6).view(3, 2).to(dtype)
    number = {torch.int8: 1, torch.float16: 5, torch.bfloat16: 15}[dtype]
    assert torch.equal(route(x, x_dtype=number)[0], route(x)[0])


def test_no_rows():
    x, places, counts, scale = torch.ops.npu.npu_moe_init_routing_v2(
        torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int32), expert_num=3, quant_mode=1, expert_tokens_num_flag=True
    )
    assert (x.shape, places.shape, scale.shape) == ((0, 4), (0,), (0,))
    assert counts.tolist() == [0, 0, 0]


PAD = {"drop_pad_mode": 1, "expert_capacity": 2}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": torch.zeros(3)}, "x was of rank 1"),
        ({"x": torch.zeros(2, 2)}, r"expert_idx was of shape \[3, 2\]; allowed: \[2, 2\]"),
        ({"x": torch.zeros(3, 2).double()}, "x was float64"),
        ({"x": torch.zeros(3, 2).to(torch.int8), "quant_mode": 1}, "x was int8; allowed: float16"),
        ({"active_expert_range": [3, 3]}, r"active_expert_range was \[3, 3\]; allowed: two increasing numbers"),
        ({"active_expert_range": [0, 6]}, r"active_expert_range was \[0, 6\]; allowed: experts below expert_num"),
        ({"active_expert_range": [-1, 4]}, r"active_expert_range was \[-1, 4\]"),
        ({"active_expert_range": [0, 10241], "expert_num": 10241}, "active_expert_range was"),
        ({"expert_num": -1}, "expert_num was -1; allowed: 1 to 10240"),
        ({"expert_num": 5121, "expert_tokens_num_type": 2}, "expert_num was 5121; allowed: 1 to 5120"),
        ({"drop_pad_mode": 2}, "drop_pad_mode was 2; allowed: 0 or 1"),
        ({"expert_tokens_num_type": 3}, "expert_tokens_num_type was 3; allowed: 0 or 1 or 2"),
        ({"row_idx_type": 2}, "row_idx_type was 2; allowed: 0 or 1"),
        ({"quant_mode": 3}, "quant_mode was 3, which is for Ascend 950; allowed: -1, 0, 1 or 13"),
        ({"quant_mode": 10}, "quant_mode was 10; allowed: -1 or 0 or 1 or 13"),
        ({"x_dtype": 290}, "x_dtype was 290; allowed: None or that of x"),
        ({"x_dtype": 1}, "x_dtype was 1; allowed: None or that of x"),
        ({"scale": torch.zeros(2)}, r"scale was of shape \[2\]; allowed: \[3\], \[n\], with quant_mode -1"),
        ({"scale": torch.zeros(3).half()}, "scale was float16; allowed: float32"),
        ({"offset": torch.zeros(1)}, "offset was a tensor; allowed: None, with quant_mode -1"),
        ({"quant_mode": 0}, r"scale was None; allowed: a tensor \[1\]"),
        ({"quant_mode": 0, "scale": torch.ones(1)}, "offset was None"),
        ({"quant_mode": 0, "scale": torch.ones(2), "offset": torch.ones(1)}, r"scale was of shape \[2\]"),
        ({"quant_mode": 1, "scale": torch.ones(2)}, "scale was of rank 1"),
        ({"quant_mode": 1, "scale": torch.ones(4, 2)}, r"scale was of shape \[4, 2\]; allowed: \[5, 2\], \[1, H\] or"),
        ({"quant_mode": 1, "scale": torch.ones(1, 3)}, r"scale was of shape \[1, 3\]; allowed: \[1, 2\]"),
        (PAD | {"active_expert_range": [0, 4]}, r"active_expert_range was \[0, 4\]; allowed: \[0, 5\], with drop_pad"),
        (PAD | {"row_idx_type": 1}, "row_idx_type was 1; allowed: 0 "),
        (PAD | {"expert_tokens_num_type": 0}, "expert_tokens_num_type was 0; allowed: 1 "),
        (PAD | {"expert_capacity": 4}, "expert_capacity was 4; allowed: 1 to 3"),
        (PAD | {"expert_capacity": -1}, "expert_capacity was -1"),
    ],
)
def test_rejections(more, message):
    with pytest.raises(OperatorRejected, match=message):
        route(**more)


def test_int64_experts():
    with pytest.raises(OperatorRejected, match="expert_idx was int64; allowed: int32"):
        torch.ops.npu.npu_moe_init_routing_v2(tokens(3), torch.tensor(EXPERTS), expert_num=5)


def test_int4_is_not_simulated():
    with pytest.raises(NotSimulated, match="quant_mode was 13, which is not simulated; simulated: -1, 0 and 1"):
        route(quant_mode=13)
