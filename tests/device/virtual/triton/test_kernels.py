"""Kernels on ``npu:0`` give what torch gives: exactly, or within what rounding allows."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.triton

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def drawn(*shape, seed=0, scale=3.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 24, 1000, 1024])
def test_a_vector_with_a_ragged_tail(kernels, dtype, count):
    x, y = drawn(count, dtype=dtype), drawn(count, seed=1, dtype=dtype)
    out = torch.full((count + 8,), 7, dtype=dtype, device="npu")
    kernels.add[lambda given: (-(-given["count"] // given["BLOCK"]),)](x.npu(), y.npu(), out, count, BLOCK=24)
    assert torch.equal(out[:count].cpu(), x + y)
    assert (out[count:] == 7).all()


def test_views_begin_where_they_begin(kernels):
    memory = torch.zeros(100, device="npu")
    x = drawn(64).npu()
    kernels.add[(1,)](x[8:], x.view(8, 8)[2], memory[50:], 8, BLOCK=8)
    assert torch.equal(memory[50:58], x[8:16] + x[16:24])
    assert not memory[:50].any()
    assert not memory[58:].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [1, 37, 48])
def test_softmax_of_rows(kernels, dtype, columns):
    x = drawn(4, columns, dtype=dtype)
    out = torch.empty_like(x, device="npu")
    kernels.softmax[(4,)](x.npu(), out, columns, BLOCK=48)
    right = torch.softmax(x.double(), -1)
    kind = torch.finfo(dtype)
    bound = right * (kind.eps / 2 + 1e-6) + kind.smallest_normal * kind.eps / 2  # rounded once, after float32
    assert ((out.cpu().double() - right).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_pages_through_a_block_table(kernels, dtype):
    pages, page, width = 6, 8, 40
    cache = drawn(pages, page, width, scale=50, dtype=dtype)
    table = torch.tensor([[5, 0, 3], [2, 4, 1]], dtype=torch.int32)
    lengths = torch.tensor([17, 24], dtype=torch.int32)
    out = torch.full((2, 3 * page, width), 9, dtype=dtype, device="npu")
    kernels.paged_copy[(2,)](cache.npu(), table.npu(), out, lengths.npu(), 3, PAGE=page, WIDTH=width)
    right = cache[table.long()].view(2, 3 * page, width).clone()
    right[0, 17:] = 0
    assert torch.equal(out.cpu(), right)


def test_blocks_have_any_size(kernels):
    out = torch.empty(72, dtype=torch.int32, device="npu")
    kernels.counted[(1,)](out, BLOCK=24)
    assert torch.equal(out.cpu(), torch.arange(72, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32])
@pytest.mark.parametrize(("begin", "size", "stride"), [(0, 24, 1), (3, 5, 1), (4, 6, 3), (23, 1, 1)])
def test_slices(kernels, dtype, begin, size, stride):
    x = drawn(24, scale=20, dtype=dtype)
    x[1] = 0
    out = torch.empty_like(x, device="npu")
    kernels.sliced[(1,)](x.npu(), out, begin, BLOCK=24, SIZE=size, STRIDE=stride)
    right = x.clone()
    right[:size] = x[begin : begin + (size - 1) * stride + 1 : stride] * 2
    assert torch.equal(out.cpu(), right + x[2])


def test_slices_of_two_axes(kernels):
    x = drawn(5, 7)
    out = torch.empty_like(x, device="npu")
    kernels.tiles[(1,)](x.npu(), out, ROWS=5, COLUMNS=7)
    right = x.clone()
    right[0:3:2, 0:3] = -x[1:3, 2:7:2]
    assert torch.equal(out.cpu(), right)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("beyond", r"elements \[20\] to \[24\] of a block \[24\]"),
        ("strides", r"elements \[0\] to \[24\] of a block \[24\]"),
        ("negative", r"elements \[-1\] to \[3\] of a block \[24\]"),
        ("axes", "extract_slice: 2 offsets, 2 sizes, 2 strides of 1 axes"),
        ("size", r"insert_slice: sub is fp32 \[4\]; allowed: fp32 \[5\]"),
        ("dtype", r"insert_slice: sub is int32 \[4\]; allowed: fp32 \[4\]"),
        ("element", r"get_element: elements \[24\] to \[24\] of a block \[24\]"),
    ],
)
def test_what_is_no_part_of_a_block_is_an_error(kernels, kind, said):
    x = torch.ones(24, device="npu")
    from triton.runtime.errors import InterpreterError

    with pytest.raises(InterpreterError, match=said):
        kernels.misplaced[(1,)](x, x, KIND=kind)


@pytest.mark.parametrize(
    ("operation", "dtype"),
    [*(("add", dtype) for dtype in (*FLOATS, torch.int32)), ("max", torch.float32), ("max", torch.int32)],
)  # Triton has no maximum of 16 bits
def test_atomic_updates_of_equal_addresses(kernels, dtype, operation):
    index = torch.tensor([0, 2, 2, 1, 0, 2, 4, 4], dtype=torch.int32)
    amount = torch.tensor([1, 2, 3, -4, 5, 6, 7, 100]).to(dtype)
    x = torch.tensor([1, 2, 3, 4, 5]).to(dtype).npu()
    kernels.atomically[(1,)](x, index.npu(), amount.npu(), 7, OPERATION=operation, BLOCK=8)
    right = {"add": [7, -2, 14, 4, 12], "max": [5, 2, 6, 4, 7]}[operation]
    assert x.tolist() == right


@pytest.mark.parametrize("dtype", FLOATS)
def test_libdevice(kernels, dtype):
    x = drawn(24, dtype=dtype)
    out = torch.empty_like(x, device="npu")
    kernels.elementwise[(1,)](x.npu(), out, BLOCK=24)
    right = torch.tanh(x.double())
    bound = right.abs() * (torch.finfo(dtype).eps / 2 + 1e-6)
    assert ((out.cpu().double() - right).abs() <= bound).all()


def test_options_of_an_npus_compiler_do_nothing(kernels):
    x, out = drawn(24).npu(), torch.zeros(24, device="npu")
    kernels.loaded_without_care[(1,)](x, out, 20, BLOCK=24, multibuffer=True, num_warps=4, set_workspace_multibuffer=4)
    assert torch.equal(out[:20], x[:20])
    kernels.shared[(1,)](x, out, BLOCK=12)
    assert torch.equal(out, torch.cat([x[:12], x[12:] * 2]))


def test_a_tuned_kernel_runs_once_with_the_first_configuration(kernels):
    x = torch.zeros(48, device="npu")
    kernels.tuned[lambda given: (-(-given["count"] // given["BLOCK"]),)](x, 48)
    assert (x == 24).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 10), (7, 24)])
def test_block_pointers_move_and_look_at_the_border(kernels, dtype, rows, columns):
    x = drawn(rows, columns, dtype=dtype)
    out = torch.full((rows * columns + 8,), 7, dtype=dtype, device="npu")
    kernels.moved_blocks[(-(-rows // 3),)](x.npu(), out, rows, columns, ROWS=3, COLUMNS=5, PADDING="zero")
    assert torch.equal(out[: rows * columns].view(rows, columns).cpu(), x + x)
    assert (out[rows * columns :] == 7).all()


@pytest.mark.parametrize(("padding", "beyond"), [("zero", 0.0), ("nan", float("nan"))])
def test_what_a_block_pointer_reads_beyond_the_border_is_padding(kernels, padding, beyond):
    x, out = drawn(16).npu(), torch.zeros(8, device="npu")
    kernels.padded_block[(1,)](x, out, 5, BLOCK=8, PADDING=padding)
    right = torch.cat([x[2:5].cpu(), torch.full((5,), beyond)])
    torch.testing.assert_close(out.cpu(), right, rtol=0, atol=0, equal_nan=True)


def test_pointers_of_elements_are_read_and_written_as_before(kernels):
    x, out = drawn(16).npu(), torch.zeros(16, device="npu")
    kernels.add[(1,)](x, x, out, 10, BLOCK=16)
    assert torch.equal(out[:10], x[:10] * 2)
    assert not out[10:].any()


def test_the_number_of_a_turn_has_a_dtype(kernels):
    x, out = torch.arange(12).npu(), torch.zeros(4, dtype=torch.int64, device="npu")
    kernels.far_rows[(1,)](x, out, 3, 2**40, BLOCK=4)
    assert out.tolist() == [3 * 2**40 + total for total in (12, 15, 18, 21)]
