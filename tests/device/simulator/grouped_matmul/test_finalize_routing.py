"""``npu_grouped_matmul_finalize_routing``: sums per token in fractions, shared input, int4, and what is refused."""

from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected


def finalize(**more):
    return torch.ops.npu.npu_grouped_matmul_finalize_routing(**more)


def good(gmm, rows=6):
    """Return a call whose factors are powers of two, so that float32 makes no error."""
    return {
        "x": gmm.integers(rows, 16),
        "w": gmm.integers(3, 16, 8, seed=1),
        "group_list": torch.tensor([2, 0, 3]),
        "scale": 2.0 ** gmm.integers(3, 8, low=-3, high=0, seed=2).float(),
        "pertoken_scale": 2.0 ** gmm.integers(rows, low=-3, high=0, seed=3).float(),
        "logit": 2.0 ** gmm.integers(rows, low=-3, high=0, seed=4).float(),
        "row_index": torch.tensor([1, 0, 1, 2, 0, 99]),
        "output_bs": 4,
    }


def in_fractions(gmm, call):
    output = [[Fraction(0)] * 8 for _ in range(4)]
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        sums = gmm.python_product(call["x"][row : row + 1], call["w"][expert])[0]
        for column, total in enumerate(sums):
            factor = Fraction(call["scale"][expert, column].item()) * Fraction(call["pertoken_scale"][row].item())
            token = int(call["row_index"][row])
            output[token][column] += total * factor * Fraction(call["logit"][row].item())
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_in_fractions(gmm, dtype, index):
    call = good(gmm)
    call["scale"], call["row_index"] = call["scale"].to(dtype), call["row_index"].to(index)
    output = finalize(**call)
    assert output.dtype == torch.float32
    # The last row belongs to nobody, and its token is no token.
    assert [[Fraction(value) for value in row] for row in output.tolist()] == in_fractions(gmm, call)
    assert output[3].tolist() == [0] * 8
    ends = call | {"group_list": torch.tensor([2, 2, 5])}
    assert torch.equal(finalize(**ends, group_list_type=0), output)


def test_without_a_scale_per_row_it_is_1(gmm):
    call = good(gmm)
    ones = finalize(**call | {"pertoken_scale": torch.ones(6)})
    assert torch.equal(finalize(**call | {"pertoken_scale": None}), ones)
    assert not torch.equal(finalize(**call), ones)


def test_as_many_rows_as_x(gmm):
    assert finalize(**good(gmm) | {"output_bs": 0}).shape == (6, 8)


@pytest.mark.parametrize("order", ["shared_first", "shared_last"])
def test_shared_input(gmm, order):
    call = good(gmm)
    shared = gmm.integers(2, 8, seed=5).bfloat16()
    with gmm.changed(gmm_finalize_order=order):
        output = finalize(**call, shared_input=shared, shared_input_weight=0.5, shared_input_offset=1)
    plain = finalize(**call)
    assert torch.equal(output[1:3], plain[1:3] + shared.float() * 0.5)
    assert torch.equal(output[::3], plain[::3])


def test_the_order_of_the_shared_input(gmm):
    call = {
        "x": torch.ones(1, 1, dtype=torch.int8).repeat(2, 1),
        "w": torch.tensor([[[1]], [[-1]]], dtype=torch.int8),
        "group_list": torch.tensor([1, 1]),
        "scale": torch.full((2, 1), 2.0**25),
        "pertoken_scale": torch.ones(2),
        "logit": torch.ones(2),
        "row_index": torch.zeros(2).long(),
        "output_bs": 1,
        "shared_input": torch.ones(1, 1).bfloat16(),
    }
    assert finalize(**call).item() == 0
    with gmm.changed(gmm_finalize_order="shared_last"):
        assert finalize(**call).item() == 1


def test_int4(gmm):
    call = good(gmm)
    call["w"] = gmm.integers(3, 16, 8, low=-8, high=7, seed=1)
    expected = in_fractions(gmm, call)
    assist = 8 * (call["w"].float() * call["scale"][:, None]).sum(1)
    packed = call | {"w": gmm.pack(call["w"]), "scale": gmm.bits(call["scale"][:, None]), "bias": assist}
    output = finalize(**packed)
    assert [[Fraction(value) for value in row] for row in output.tolist()] == expected
    with pytest.raises(OperatorRejected, match=r"bias was None; allowed: float32 \[E, N\], with w of int4"):
        finalize(**packed | {"bias": None})
    with pytest.raises(OperatorRejected, match="scale was float32; allowed: int64 or uint64"):
        finalize(**packed | {"scale": call["scale"]})


@pytest.mark.parametrize("groups", [1, 2])
def test_int4_with_offsets(gmm, groups):
    """A weight that is ``w * scale + offset``, with numbers that float32 sums exactly."""
    call, inner = good(gmm), 256 * groups
    call |= {"x": gmm.integers(6, inner), "w": gmm.integers(3, inner, 8, low=-8, high=7, seed=1)}
    scale = (2.0 ** gmm.integers(3, groups, 8, low=-3, high=0, seed=2)).float()
    offset = gmm.integers(3, groups, 8, low=-9, high=9, seed=6).float() / 4
    rows = [one.repeat_interleave(inner // groups, 1) for one in (scale, offset)]
    whole = call["w"].double() * rows[0] + rows[1]
    assist = (8 * call["w"].double() * rows[0]).sum(1).float()
    packed = call | {"w": gmm.pack(call["w"]), "scale": gmm.bits(scale), "bias": assist, "offset": offset}
    with gmm.changed(gmm_a8w4_group_products="float32"):
        output = finalize(**packed)
    expected = torch.zeros(4, 8, dtype=torch.float64)
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        factor = call["pertoken_scale"][row].double() * call["logit"][row]
        expected[int(call["row_index"][row])] += call["x"][row].double() @ whole[expert] * factor
    torch.testing.assert_close(output.double(), expected, rtol=1e-6, atol=1e-6)
    for wrong in (offset.half(), offset[:, :, :7], offset[:, 0]):
        with pytest.raises(OperatorRejected, match="offset was"):
            finalize(**packed | {"offset": wrong})


def test_tokens_that_do_not_exist(gmm):
    call = good(gmm)
    call["row_index"][4] = 4
    with pytest.raises(DeviceFault, match=r"row_index\[4\] is 4, there are 4 rows of the output"):
        finalize(**call)
    call["row_index"][4] = -1
    with pytest.raises(DeviceFault, match=r"row_index\[4\] is -1"):
        finalize(**call)


SHARED = torch.zeros(2, 8).bfloat16()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"group_list_type": 2}, "group_list_type was 2; allowed: 0 or 1"),
        ({"x": torch.zeros(16, dtype=torch.int8)}, "x was of rank 1"),
        ({"x": torch.zeros(6, 16)}, "x was float32; allowed: int8"),
        ({"w": torch.zeros(16, 8, dtype=torch.int8)}, "w was of rank 2"),
        ({"w": torch.zeros(3, 15, 8, dtype=torch.int8)}, r"w was of shape \[3, 15, 8\]; allowed: \[3, 16, 8\]"),
        ({"w": torch.zeros(3, 16, 8)}, "w was float32; allowed: int8 or int32"),
        ({"dtype": torch.bfloat16}, "dtype was torch.bfloat16; allowed: torch.float32"),
        ({"w_dtype": 290}, "w_dtype was 290; allowed: None"),
        ({"group_list": torch.zeros(4).long()}, r"group_list was of shape \[4\]; allowed: \[3\]"),
        ({"scale": torch.zeros(3, 8).half()}, "scale was float16; allowed: float32 or bfloat16"),
        ({"scale": torch.zeros(3, 1, 8)}, r"scale was of shape \[3, 1, 8\]; allowed: \[3, 8\]"),
        ({"pertoken_scale": torch.zeros(5)}, r"pertoken_scale was of shape \[5\]; allowed: \[6\]"),
        ({"logit": torch.zeros(6).half()}, "logit was float16; allowed: float32"),
        ({"row_index": torch.zeros(6)}, "row_index was float32; allowed: int64 or int32"),
        ({"offset": torch.zeros(3, 1, 8)}, "offset was a tensor with w of int8; allowed: None"),
        ({"shared_input": SHARED.float()}, "shared_input was float32; allowed: bfloat16"),
        ({"shared_input": SHARED[:, :7]}, r"shared_input was of shape \[2, 7\]; allowed: \[2, 8\]"),
        ({"shared_input": SHARED, "shared_input_offset": 3}, "shared_input_offset was 3; allowed: 0 to 2: 2 rows of 4"),
    ],
)
def test_rejections(gmm, other, message):
    with pytest.raises(OperatorRejected, match=message):
        finalize(**good(gmm) | other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"bias": torch.zeros(3, 8)}, "bias was a tensor with w of int8, which is not simulated"),
        ({"scale": None}, "scale was None, which is not simulated"),
        ({"logit": None}, "logit was None"),
        ({"row_index": None}, "row_index was None"),
    ],
)
def test_not_simulated(gmm, other, message):
    with pytest.raises(NotSimulated, match=message):
        finalize(**good(gmm) | other)


def test_weights_in_tiles_are_whole_tiles(gmm):
    call = good(gmm)
    tiled = torch.ops.npu.npu_format_cast(call["w"], 29)
    with pytest.raises(
        OperatorRejected, match=r"w was of shape .* in FRACTAL_NZ; allowed: multiples of 16 rows and 32"
    ):
        finalize(**call | {"w": tiled})
    with gmm.changed(gmm_unaligned_tiles="padded"):
        assert torch.equal(finalize(**call | {"w": tiled}), finalize(**call))
