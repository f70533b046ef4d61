from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from npudiff.reference.format_cast import VIEWS, FormatCastInputs, addresses, format_cast, part_of, tile_width, tiles

LAWS = settings(max_examples=100, derandomize=True, database=None, deadline=None)
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32]


def numbered(*shape, dtype=torch.int32):
    return torch.arange(1, math.prod(shape) + 1).reshape(shape).to(dtype)


def cast(tensor, view="whole"):
    return {name: expected.value for name, expected in format_cast(FormatCastInputs(tensor, view)).items()}


@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.int8, 32), (torch.bfloat16, 16), (torch.float16, 16), (torch.float32, 16), (torch.int32, 16)],
)
def test_four_bytes_count_as_two(dtype, width):
    assert tile_width(dtype) == width


# Tiles of 16 x 16: one, two across, two down, two both ways (the tiles begin at 0, 256 down, 512 across, 768).
BY_HAND = {
    ((3, 5), torch.bfloat16): {(0, 0): 0, (0, 4): 4, (1, 0): 16, (2, 4): 36},
    ((2, 20), torch.float16): {(0, 15): 15, (0, 16): 256, (0, 19): 259, (1, 15): 31, (1, 16): 272, (1, 19): 275},
    ((18, 2), torch.float32): {(15, 1): 241, (16, 0): 256, (16, 1): 257, (17, 0): 272, (17, 1): 273},
    ((17, 17), torch.bfloat16): {(15, 15): 255, (16, 0): 256, (0, 16): 512, (15, 16): 752, (16, 16): 768},
    # Tiles of 16 x 32: two down are 1,024.
    ((17, 33), torch.int8): {(0, 31): 31, (1, 31): 63, (16, 0): 512, (0, 32): 1024, (15, 32): 1504, (16, 32): 1536},
    ((20, 20), torch.int8): {(1, 16): 48, (15, 19): 499, (16, 0): 512, (19, 19): 627},
    # Three across and two down of 16 x 16: tile (down 1, across 2) is the sixth and begins at 1,280.
    ((32, 48), torch.int32): {(16, 16): 768, (0, 32): 1024, (16, 32): 1280, (31, 47): 1535},
}  # fmt: skip


@pytest.mark.parametrize(("shape", "dtype"), BY_HAND, ids=str)
def test_addresses_worked_by_hand(shape, dtype):
    table = addresses(*shape, dtype)
    assert tuple(table.shape) == shape
    for place, address in BY_HAND[shape, dtype].items():
        assert int(table[place]) == address, place


def test_a_whole_table_worked_by_hand():
    """18 rows of 3 columns: rows 16 and 17 are in the second tile."""
    rows = [[16 * row, 16 * row + 1, 16 * row + 2] for row in range(16)]
    assert addresses(18, 3, torch.int32).tolist() == [*rows, [256, 257, 258], [272, 273, 274]]


def test_storage_worked_by_hand():
    storage = cast(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32))["storage"]
    assert storage.tolist() == [1, 2, 3] + 13 * [0] + [4, 5, 6] + 13 * [0] + 224 * [0]
    wide = cast(numbered(2, 18))["storage"]
    assert wide[:32].tolist() == [*range(1, 17), *range(19, 35)]
    assert wide[256:258].tolist() == [17, 18]
    assert wide[272:274].tolist() == [35, 36]
    assert int(wide.count_nonzero()) == 36
    assert len(wide) == 512


@pytest.mark.parametrize(
    ("shape", "dtype", "storage"),
    [
        ((33, 65), torch.float16, (5, 3, 16, 16)),  # 7,680 bytes, as torch_npu allocates for it
        ((33, 65), torch.int8, (3, 3, 16, 32)),
        ((1, 1), torch.float32, (1, 1, 16, 16)),
        ((16, 32), torch.int8, (1, 1, 16, 32)),
        ((2112, 7168), torch.int8, (224, 132, 16, 32)),  # the fused query and latent weight of DeepSeek-V3's MLA
    ],
)
def test_shapes_worked_by_hand(shape, dtype, storage):
    assert tiles(*shape, dtype) == storage


def test_matrices_lie_one_after_the_other():
    tensor = numbered(2, 3, 17, 5)
    storage = cast(tensor)["storage"].view(2, 3, 512)
    for first in range(2):
        for second in range(3):
            assert torch.equal(storage[first, second], cast(tensor[first, second].clone())["storage"])


@LAWS
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(DTYPES))
def test_every_element_has_an_address_of_its_own_inside_the_tiles(rows, columns, dtype):
    found = addresses(rows, columns, dtype).flatten()
    assert len(found.unique()) == rows * columns
    assert int(found.max()) < math.prod(tiles(rows, columns, dtype))


@LAWS
@given(
    st.lists(st.integers(1, 3), max_size=2), st.integers(1, 70), st.integers(1, 70), st.sampled_from(DTYPES)
)  # fmt: skip
def test_it_is_what_torch_makes_by_padding_and_permuting(leading, rows, columns, dtype):
    """[..., H, W] -> [..., H1, 16, W1, C0] -> [..., W1, H1, 16, C0]."""
    tensor = (numbered(*leading, rows, columns) % 120 + 1).to(dtype)
    across, down, height, width = tiles(rows, columns, dtype)
    padded = functional.pad(tensor, (0, across * width - columns, 0, down * height - rows))
    grid = padded.view(-1, down, height, across, width).permute(0, 3, 1, 2, 4)
    assert torch.equal(cast(tensor)["storage"], grid.reshape(-1))


@pytest.mark.parametrize(
    ("view", "part"),
    [("whole", [[1, 2, 3], [4, 5, 6]]), ("rows", [[4, 5, 6]]), ("columns", [[2, 3], [5, 6]]),
     ("transposed", [[1, 4], [2, 5], [3, 6]])],
)  # fmt: skip
def test_a_view_is_read_as_it_was_and_its_whole_storage_is_cast(view, part):
    tensor = numbered(2, 3)
    whole, viewed = cast(tensor), cast(tensor, view)
    assert viewed["values"].tolist() == part
    assert torch.equal(viewed["storage"], whole["storage"])
    assert viewed["restored"].tolist() == [1, 2, 3, 4, 5, 6]
    assert viewed["format"].tolist() == [29]
    assert part_of(tensor, view).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_a_tensor_of_one_row_has_views_too():
    assert all(part_of(numbered(1, 1), view).tolist() == [[1]] for view in VIEWS)


def test_every_bit_counts():
    tensor = torch.tensor([[torch.nan, -0.0, torch.inf]])
    expected = format_cast(FormatCastInputs(tensor))
    assert torch.equal(expected["storage"].value[:3].view(torch.int32), tensor[0].view(torch.int32))
    assert not any(bool(output.bound.any()) for output in expected.values())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (FormatCastInputs(numbered(5)), "contiguous, \\[..., rows, columns\\], got \\(5,\\)"),
        (FormatCastInputs(numbered(3, 5).t()), "contiguous"),
        (FormatCastInputs(numbered(3, 5), "diagonal"), "view is one of whole, rows, columns, transposed, got diagonal"),
    ],
)
def test_what_cannot_be_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        format_cast(inputs)


def test_a_copy_for_a_device_can_be_written_without_a_trace():
    inputs = FormatCastInputs(numbered(2, 3), "columns")
    there = inputs.to("cpu")
    there.part.fill_(7)
    assert inputs.tensor.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert there.tensor.tolist() == [[1, 7, 7], [4, 7, 7]]
