"""FRACTAL_NZ: the order of the elements, and what a device would have in memory."""

import itertools

import pytest
import torch

from npudiff.device.simulator import NotSimulated
from npudiff.device.simulator.cache.fractal import fractal_shape, from_fractal_nz, tile_width, to_fractal_nz
from npudiff.device.simulator.cache.physical import device_bytes, physical, written_bytes

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.uint16,
]


def random(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())


@pytest.mark.parametrize(
    ("dtype", "c0"),
    [
        (torch.int8, 32),
        (torch.uint8, 32),
        (torch.bool, 32),
        (torch.float16, 16),
        (torch.bfloat16, 16),
        (torch.float32, 16),
        (torch.int32, 16),
        (torch.int64, 16),
    ],
)
def test_c0_counts_at_most_two_bytes(dtype, c0):
    assert tile_width(dtype) == c0


@pytest.mark.parametrize(
    ("sizes", "dtype", "shape"),
    [
        ((32, 64), torch.float16, (4, 2, 16, 16)),
        ((33, 65), torch.float16, (5, 3, 16, 16)),
        ((33, 65), torch.int8, (3, 3, 16, 32)),
        ((1, 1), torch.float32, (1, 1, 16, 16)),
        ((5, 7, 16, 16), torch.bfloat16, (5, 7, 1, 1, 16, 16)),
    ],
)
def test_shapes(sizes, dtype, shape):
    assert fractal_shape(sizes, dtype) == shape


def test_order_of_a_matrix_of_two_by_two_tiles():
    """[32, 32] in 16 bit: tile column 0 whole, then tile column 1; rows of 16."""
    matrix = torch.arange(32 * 32, dtype=torch.int16).view(32, 32)
    rows = to_fractal_nz(matrix).view(64, 16)
    assert rows[0].tolist() == list(range(16))
    assert rows[1].tolist() == list(range(32, 48))
    assert rows[16].tolist() == list(range(16 * 32, 16 * 32 + 16))
    assert rows[32].tolist() == list(range(16, 32))
    assert rows[63].tolist() == list(range(31 * 32 + 16, 31 * 32 + 32))


@pytest.mark.few(16)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 5), (16, 32), (17, 33), (2, 3, 18, 40)])
def test_every_element_has_its_place_and_padding_is_zero(dtype, sizes):
    matrix = random(sizes, dtype)
    tiles = to_fractal_nz(matrix)
    expected = torch.zeros(fractal_shape(sizes, dtype), dtype=torch.float64)
    c0 = tile_width(dtype)
    for batch in itertools.product(*map(range, sizes[:-2])):
        for row, column in itertools.product(range(sizes[-2]), range(sizes[-1])):
            place = (*batch, column // c0, row // 16, row % 16, column % c0)
            expected[place] = matrix[(*batch, row, column)].double()
    assert same(tiles.double(), expected)
    assert tiles.is_contiguous()
    assert same(from_fractal_nz(tiles, sizes), matrix)


def cast(tensor):
    return torch.ops.npu.npu_format_cast(tensor, 29)


def test_physical_of_a_cast_tensor_and_of_its_views():
    matrix = random((17, 40), torch.float16)
    nz = cast(matrix)
    expected = to_fractal_nz(matrix)
    assert same(physical(nz), expected)
    assert same(physical(nz[3:5]), expected)
    assert same(physical(nz.t()), expected)
    nz[16, 39] = 1234
    assert physical(nz)[2, 1, 0, 7] == 1234


def test_physical_of_a_batch_follows_the_shape_at_the_cast():
    stacked = random((4, 16, 32), torch.float16)
    flat = cast(stacked.view(64, 32).clone())
    assert same(physical(cast(stacked)), to_fractal_nz(stacked))
    assert same(physical(flat.view(4, 16, 32)), to_fractal_nz(stacked.view(64, 32)))


def test_physical_reinterprets_bytes_as_the_view_does():
    """As sglang does with int4 weights: int8 to FRACTAL_NZ, then view(int32)."""
    weight = random((16, 64), torch.int8)
    packed = cast(weight).view(torch.int32)
    assert packed.shape == (16, 16)
    assert same(physical(packed), to_fractal_nz(weight).view(torch.int32))
    assert physical(packed).shape == (2, 1, 16, 8)


def test_physical_without_a_cast_is_the_storage_in_order():
    matrix = random((4, 6), torch.float16)
    assert physical(matrix.t()[2:]).tolist() == matrix.flatten().tolist()
    copy = physical(matrix)
    copy.zero_()
    assert matrix.any()


def test_bytes_of_a_plain_tensor_are_its_memory():
    matrix = random((4, 6), torch.float16)
    device_bytes("op", "x", matrix[2:]).zero_()
    assert matrix[:2].any()
    assert not matrix[2:].any()


def test_writing_bytes_into_fractal_nz_reaches_the_tensor_and_its_views():
    nz = cast(torch.zeros(17, 20, dtype=torch.float16))
    view = nz.view(-1)
    with written_bytes("op", "x", nz) as memory:
        rows = memory.view(torch.float16).view(-1, 16)
        rows[1] = 5  # row 1, columns 0 to 15
        rows[32] = 6  # row 0, columns 16 to 31, of which 4 exist
        rows[31] = 7  # row 31 is padding
    assert (view.view(17, 20)[1, :16] == 5).all()
    assert (nz[0, 16:] == 6).all()
    assert nz.sum() == 5 * 16 + 6 * 4


def test_bytes_of_a_view_that_begins_inside_fractal_nz_are_not_simulated():
    with pytest.raises(NotSimulated, match=r"op: x was a view that starts at element 40 of a storage in FRACTAL_NZ"):
        device_bytes("op", "x", cast(random((17, 40), torch.float16))[1:])
