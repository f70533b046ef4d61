"""Kernels of the tests of Triton on the virtual NPU. Import it where Triton is, after the virtual NPU has it."""

from __future__ import annotations

import triton
import triton.language as tl
import triton.language.extra.cann.extension as cann
import triton.language.extra.cann.libdevice as cann_math


@triton.jit
def add(x, y, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(out + place, tl.load(x + place, mask=inside) + tl.load(y + place, mask=inside), mask=inside)


@triton.jit
def computed(x, y, out, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    a = tl.load(x + place)
    b = tl.load(y + place)
    if OPERATION == "subtract":
        r = a - b
    elif OPERATION == "multiply":
        r = a * b
    elif OPERATION == "divide":
        r = a / b
    elif OPERATION == "negate":
        r = -a
    elif OPERATION == "abs":
        r = tl.abs(a)
    elif OPERATION == "maximum":
        r = tl.maximum(a, b)
    elif OPERATION == "where":
        r = tl.where(a < b, a, b)
    elif OPERATION == "clamp":
        r = tl.clamp(a, -1.0, 1.0)
    elif OPERATION == "fma":
        r = tl.fma(a, b, a)
    elif OPERATION == "scalar":
        r = a * 0.3
    elif OPERATION == "full":
        r = tl.full((BLOCK,), 1.7, a.dtype) + a
    elif OPERATION == "integer":
        r = a.to(tl.int32).to(a.dtype)
    tl.store(out + place, r)


@triton.jit
def exponential(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.exp(tl.load(x + place)))


@triton.jit
def bounded(x, out, largest, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, min(max(tl.load(x + place), 0), largest))


@triton.jit
def reduced(x, out, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    a = tl.load(x + tl.arange(0, BLOCK))
    if OPERATION == "sum":
        r = tl.sum(a, 0)
    elif OPERATION == "max":
        r = tl.max(a, 0)
    elif OPERATION == "min":
        r = tl.min(a, 0)
    elif OPERATION == "argmax":
        r = tl.argmax(a, 0)
    tl.store(out, r)


@triton.jit
def summed(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.cumsum(tl.load(x + place), 0))


@triton.jit
def converted(x, out, MODE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place)
    kind = out.dtype.element_ty
    r = value.to(kind) if MODE == "default" else value.to(kind, fp_downcast_rounding=MODE)
    tl.store(out + place, r)


@triton.jit
def product(a, b, out, KIND: tl.constexpr, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    rows, inner, columns = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = tl.load(a + rows[:, None] * K + inner[None, :])
    right = tl.load(b + inner[:, None] * N + columns[None, :])
    r = tl.dot(left, right, out_dtype=KIND)
    tl.store(out + rows[:, None] * N + columns[None, :], r)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < columns
    value = tl.load(x + row * columns + place, mask=inside, other=-float("inf")).to(tl.float32)
    weight = tl.exp(value - tl.max(value, axis=0))
    r = (weight / tl.sum(weight, axis=0)).to(out.dtype.element_ty)
    tl.store(out + row * columns + place, r, mask=inside)


@triton.jit
def paged_copy(cache, table, out, length, pages, PAGE: tl.constexpr, WIDTH: tl.constexpr):
    request = tl.program_id(0)
    tokens = tl.load(length + request)
    for page in range(pages):
        number = tl.load(table + request * pages + page)
        rows = tl.arange(0, PAGE)
        inside = (page * PAGE + rows < tokens)[:, None]
        columns = tl.arange(0, WIDTH)[None, :]
        value = tl.load(cache + (number * PAGE + rows)[:, None] * WIDTH + columns, mask=inside, other=0)
        tl.store(out + ((request * pages + page) * PAGE + rows)[:, None] * WIDTH + columns, value)


@triton.jit
def counted(out, BLOCK: tl.constexpr):
    table = tl.zeros((3, BLOCK), tl.int32) + tl.arange(0, 3)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + table, table)


@triton.jit
def sliced(x, out, begin, BLOCK: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    block = tl.load(x + tl.arange(0, BLOCK))
    part = cann.extract_slice(block, (begin,), (SIZE,), (STRIDE,))
    first = tl.load(x + 1).to(tl.int32)
    whole = cann.insert_slice(block, part * 2, (first,), (SIZE,), (1,))
    tl.store(out + tl.arange(0, BLOCK), whole + cann.get_element(block, (first + 2,)))


@triton.jit
def tiles(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    block = tl.load(x + place)
    corner = cann.extract_slice(block, (1, 2), (2, 3), (1, 2))
    tl.store(out + place, cann.insert_slice(block, -corner, (0, 0), (2, 3), (2, 1)))


@triton.jit
def misplaced(x, out, KIND: tl.constexpr):
    block = tl.load(x + tl.arange(0, 24))
    if KIND == "beyond":
        r = cann.extract_slice(block, (20,), (5,), (1,))
    elif KIND == "strides":
        r = cann.extract_slice(block, (0,), (5,), (6,))
    elif KIND == "negative":
        r = cann.extract_slice(block, (-1,), (5,), (1,))
    elif KIND == "axes":
        r = cann.extract_slice(block, (0, 0), (5, 1), (1, 1))
    elif KIND == "size":
        r = cann.insert_slice(block, cann.extract_slice(block, (0,), (4,), (1,)), (0,), (5,), (1,))
    elif KIND == "dtype":
        r = cann.insert_slice(block, cann.extract_slice(block, (0,), (4,), (1,)).to(tl.int32), (0,), (4,), (1,))
    elif KIND == "element":
        r = cann.get_element(block, (24,))
    tl.store(out, tl.sum(r, 0))


@triton.jit
def atomically(x, index, amount, count, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    inside = place < count
    where = x + tl.load(index + place, mask=inside, other=0)
    value = tl.load(amount + place, mask=inside, other=0)
    if OPERATION == "add":
        tl.atomic_add(where, value, mask=inside)
    elif OPERATION == "max":
        tl.atomic_max(where, value, mask=inside)


@triton.jit
def through_addresses(addresses, out, count, BLOCK: tl.constexpr):
    source = tl.load(addresses + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    place = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * count + place, tl.load(source + place, mask=place < count), mask=place < count)


@triton.jit
def elementwise(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, cann_math.tanh(tl.load(x + place)))


@triton.jit
def loaded_without_care(x, out, count, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count, other=7.0, care_padding=False)
    tl.store(out + place, value, mask=place < count)


@triton.jit
def shared(x, out, BLOCK: tl.constexpr):
    for half in tl.parallel(0, 2, bind_sub_block=True):
        place = half * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + place, tl.load(x + place) * (half + 1))


@triton.autotune(
    configs=[
        triton.Config({"BLOCK": 24}, num_warps=1, multibuffer=True),
        triton.Config({"BLOCK": 48, "multibuffer": 1}),
    ],
    key=["count"],
)
@triton.jit
def tuned(x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + place, tl.load(x + place, mask=place < count) + BLOCK, mask=place < count)


@triton.jit
def masked_by_a_number(x, out, first, count, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    active = first < count  # of a number: it becomes a mask of all elements
    tl.store(out + place, tl.load(x + place, mask=active & (place < count), other=5.0))


@triton.jit
def failing(x, SIZE: tl.constexpr):
    tl.store(x, 1.0)
    tl.static_assert(SIZE > 5, "too small")


@triton.jit
def moved_blocks(source, target, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDING: tl.constexpr):
    """Copy an array block by block, as block pointers have them, twice as large; beyond the border there is padding."""
    shape, strides = (rows, columns), (columns, 1)
    read = tl.make_block_ptr(source, shape, strides, (tl.program_id(0) * ROWS, 0), (ROWS, COLUMNS), (1, 0))
    write = tl.make_block_ptr(target, shape, strides, (tl.program_id(0) * ROWS, 0), (ROWS, COLUMNS), (1, 0))
    for _ in range(0, columns, COLUMNS):
        block = tl.load(read, boundary_check=(0, 1), padding_option=PADDING)
        tl.store(write, (block + block).to(write.dtype.element_ty), boundary_check=(0, 1))
        read, write = tl.advance(read, (0, COLUMNS)), tl.advance(write, (0, COLUMNS))


@triton.jit
def padded_block(source, out, count, BLOCK: tl.constexpr, PADDING: tl.constexpr):
    """Keep all of a block that reaches beyond its array."""
    read = tl.make_block_ptr(source, (count,), (1,), (2,), (BLOCK,), (0,))
    tl.store(out + tl.arange(0, BLOCK), tl.load(read, boundary_check=(0,), padding_option=PADDING))


@triton.jit
def far_rows(x, out, rows, stride, BLOCK: tl.constexpr):
    """Add up rows whose places are more than int32 has, as products of a loop's number and a stride."""
    total = tl.zeros([BLOCK], dtype=tl.int64)
    for row in range(rows):
        total += row.to(tl.int64) * stride + tl.load(x + row * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + tl.arange(0, BLOCK), total)
