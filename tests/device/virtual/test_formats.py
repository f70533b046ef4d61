"""FRACTAL_NZ is physical: where each element lies is worked out here by hand, from the raw bytes of the device."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from npudiff.device.simulator.profiles import active_profile, use_profile

pytestmark = pytest.mark.virtual

ND, NZ = 2, 29


@pytest.fixture(autouse=True)
def tiles_are_allowed(virtual_npu):
    """Allow internal formats, as backends do when they start, and forbid them again."""
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def raw(tensor):
    """Copy a storage as it lies, past every conversion."""
    storage = tensor.untyped_storage()
    shared = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(shared).clone()


def place(row, column, rows, width):
    """Index of an element of a matrix: tiles of 16 rows by ``width`` columns lie column of tiles by column of tiles."""
    tiles_down = (rows + 15) // 16
    tile = (column // width) * tiles_down + row // 16
    return (tile * 16 + row % 16) * width + column % width


def format_of(tensor):
    return torch.ops.npu.get_npu_format(tensor)


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.int8, 32), (torch.float32, 16)]
)
@pytest.mark.parametrize("shape", [(33, 65), (16, 32), (1, 1), (5, 40)])
def test_elements_change_places(shape, dtype, width):
    matrix = (torch.arange(shape[0] * shape[1]) % 113 + 1).view(shape).to(dtype)
    cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    memory = raw(cast)
    padded = -(-shape[0] // 16) * 16 * -(-shape[1] // width) * width
    assert len(memory) == padded
    expected = torch.zeros(padded, dtype=dtype)
    for row in range(shape[0]):
        for column in range(shape[1]):
            expected[place(row, column, shape[0], width)] = matrix[row, column]
    assert torch.equal(memory, expected)
    assert format_of(cast) == NZ
    assert (cast.shape, cast.stride(), cast.dtype) == (matrix.shape, matrix.stride(), matrix.dtype)
    assert torch.equal(cast.cpu(), matrix)


def test_torch_npu_gives_the_size_and_we_fill_it():
    made = torch.ops.npu.empty_with_format((33, 65), dtype=torch.float16, device="npu", acl_format=NZ)
    assert made.untyped_storage().nbytes() == 7680  # 48 x 80 elements of two bytes, torch_npu's own sum
    made.copy_(torch.arange(33 * 65).view(33, 65).half())
    assert raw(made)[place(32, 64, 33, 16)] == torch.tensor(33 * 65 - 1).half()


def test_aten_operators_see_values():
    """torch_npu converts tensors for them."""
    matrix = torch.arange(20 * 24.0).view(20, 24).half()
    cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    assert torch.equal((cast + 1).cpu(), matrix + 1)
    assert torch.equal((cast @ cast.t()).cpu(), matrix @ matrix.t())
    assert torch.equal(cast[17:, 3:9].cpu(), matrix[17:, 3:9])
    assert torch.equal(cast.t().contiguous().cpu(), matrix.t())
    assert format_of(cast + 1) == ND


def test_what_is_written_goes_into_tiles_and_padding_stays():
    matrix = torch.ones(17, 20, dtype=torch.half)
    cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    storage = cast.untyped_storage()
    shared = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    memory = torch.empty(0, dtype=torch.half).set_(shared)
    memory[place(16, 16, 17, 16) + 5] = 9  # column 21: there is none
    cast.mul_(3)
    cast[16, 2:4] = 7
    assert memory[place(16, 16, 17, 16) + 5] == 9
    assert memory[place(16, 3, 17, 16)] == 7
    assert memory[place(0, 19, 17, 16)] == 3
    assert format_of(cast) == NZ


def test_an_operator_that_knows_no_tiles_reads_their_bytes_as_they_lie():
    matrix = (torch.arange(32 * 64) % 31 - 15).view(32, 64).half()
    cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    garbage = torch.ops.npu.npu_swiglu(cast).cpu()
    assert torch.equal(garbage, torch.ops.npu.npu_swiglu(raw(cast).view(32, 64)))
    assert not torch.equal(garbage, torch.ops.npu.npu_swiglu(matrix))


def test_an_operator_that_knows_tiles_reads_and_writes_them():
    cache = torch.zeros(2, 2, 32, 16, dtype=torch.half)  # blocks, strips of 16 columns, block size, 16
    tokens = torch.arange(64.0).view(2, 1, 32).half()
    slots = torch.tensor([3, 50], dtype=torch.int32)
    key, value = (torch.ops.npu.npu_format_cast(cache.npu(), NZ) for _ in range(2))
    torch.ops.atb._npu_reshape_and_cache(tokens.npu(), tokens.npu(), key, value, slots.npu())
    on_host = [torch.ops.npu.npu_format_cast(cache.clone(), NZ) for _ in range(2)]
    torch.ops.atb._npu_reshape_and_cache(tokens, tokens, *on_host, slots)
    assert format_of(key) == NZ
    assert torch.equal(key.cpu(), on_host[0])
    assert torch.equal(value.cpu(), on_host[1])
    assert key.cpu().any()


def test_a_cast_of_a_part_casts_the_whole_storage():
    whole = torch.arange(40 * 32.0).view(40, 32).half()
    part = torch.ops.npu.npu_format_cast(whole.npu()[3:7], NZ)
    assert torch.equal(part.cpu(), whole[3:7])
    assert part.untyped_storage().nbytes() == 48 * 32 * 2
    back = torch.ops.npu.npu_format_cast(part, ND)
    assert torch.equal(raw(back), whole.flatten())
    assert torch.equal(back.cpu(), whole[3:7])


def test_a_cast_in_place_gives_the_tensor_another_storage():
    matrix = torch.arange(20 * 20.0).view(20, 20).half()
    tensor = matrix.npu()
    shared = tensor.view(-1)
    assert torch.ops.npu.npu_format_cast_(tensor, NZ) is tensor
    assert (format_of(tensor), format_of(shared)) == (NZ, ND)
    assert torch.equal(tensor.cpu(), matrix)
    assert tensor.untyped_storage().data_ptr() != shared.untyped_storage().data_ptr()


@pytest.mark.filterwarnings("ignore:Device do not support double dtype now")  # torch shows tensors to an overload
def test_a_cast_from_another_tensor_copies_across_formats():
    source = torch.arange(20 * 20.0).view(20, 20).half()
    target = torch.ops.npu.npu_format_cast(torch.zeros_like(source).npu(), NZ)
    torch.ops.npu.npu_format_cast_(target, source.npu())
    assert format_of(target) == NZ
    assert torch.equal(target.cpu(), source)
    assert format_of(torch.ops.npu.npu_format_cast(source.npu(), target)) == NZ


def test_base_formats_only_change_the_name():
    tensor = torch.zeros(2, 3, 4, 5).npu()
    assert format_of(tensor) == 0
    renamed = torch.ops.npu.npu_format_cast(tensor, ND)
    assert renamed is tensor
    assert format_of(tensor) == ND


def test_where_tiles_are_not_allowed_there_are_none():
    """torch_npu's own default, with its own warning."""
    torch.npu.config.allow_internal_format = False
    matrix = torch.arange(6.0).view(2, 3)
    cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    assert format_of(cast) == ND
    assert torch.equal(cast.cpu(), matrix)
    torch.npu.config.allow_internal_format = True
    tiles = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
    torch.npu.config.allow_internal_format = False
    again = torch.ops.npu.npu_format_cast(tiles, NZ)  # of the same format: the tensor itself, as torch_npu has it
    assert again is tiles
    assert torch.equal(again.cpu(), matrix)
    layer = torch.nn.Conv2d(3, 4, 3).to("npu")  # torch_npu casts its weights
    assert layer(torch.ones(1, 3, 5, 5, device="npu")).shape == (1, 4, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize(
    ("acl_format", "sizes"),
    [
        (3, (2, 17, 3, 5)), (3, (40, 3)), (3, (20,)), (4, (18, 17, 2, 3)), (4, (5, 40)), (27, (2, 3, 4, 5, 6)),
        (32, (2, 17, 2, 3, 4)), (33, (17, 18, 2, 1, 3)),
    ],
)  # fmt: skip
def test_images_and_volumes_lie_as_the_simulator_says_in_storages_that_torch_npu_makes(acl_format, sizes, dtype):
    """Where each element is to lie, the simulator's tests spell out; how many bytes there are, torch_npu says."""
    from npudiff.device.simulator.cache.physical import physical

    values = (torch.arange(torch.Size(sizes).numel()) % 100 + 1).view(sizes).to(dtype)
    cast = torch.ops.npu.npu_format_cast(values.npu(), acl_format)
    assert format_of(cast) == acl_format
    assert (cast.shape, cast.stride(), cast.dtype) == (values.shape, values.stride(), dtype)
    made = torch.ops.npu.empty_with_format(sizes, dtype=dtype, device="npu", acl_format=acl_format)
    assert cast.untyped_storage().nbytes() == made.untyped_storage().nbytes()
    on_host = torch.ops.npu.npu_format_cast(values, acl_format)
    assert torch.equal(raw(cast), physical(on_host).flatten())
    assert torch.equal(cast.cpu(), values)
    assert torch.equal((cast + cast).cpu(), values + values)
    made.copy_(values)  # the padding stays as it was
    assert torch.equal(raw(made)[raw(cast) != 0], raw(cast)[raw(cast) != 0])
    cast.mul_(3)
    back = torch.ops.npu.npu_format_cast(cast, ND)
    assert torch.equal(back.cpu(), values * 3)
    assert torch.equal(raw(back), (values * 3).flatten())


@pytest.mark.parametrize("sizes", [(15, 17), (4, 15, 17), (16, 8)])
def test_tiles_of_eight_words_lie_as_the_simulator_says(sizes):
    from npudiff.device.simulator.cache.physical import physical

    words = torch.arange(torch.Size(sizes).numel(), dtype=torch.int32).view(sizes) + 1
    with use_profile(dataclasses.replace(active_profile(), format_cast_path="aclnn")):
        cast = torch.ops.npu.npu_format_cast(words.npu(), NZ, customize_dtype=3)
        in_place = words.npu()
        torch.ops.npu.npu_format_cast_(in_place, NZ, customize_dtype=3)
        on_host = torch.ops.npu.npu_format_cast(words, NZ, customize_dtype=3)
    assert (format_of(cast), cast.shape, cast.stride()) == (NZ, words.shape, words.stride())
    assert torch.equal(raw(cast), physical(on_host).flatten())
    assert torch.equal(raw(in_place), raw(cast))
    assert torch.equal(cast.cpu(), words)
    cast[..., 3:5].mul_(-1)
    expected = words.clone()
    expected[..., 3:5] *= -1
    back = torch.ops.npu.npu_format_cast(cast, ND)
    assert torch.equal(back.cpu(), expected)


def test_aclnn_makes_tiles_whether_they_are_allowed_or_not():
    torch.npu.config.allow_internal_format = False
    matrix = torch.arange(6.0).view(2, 3)
    with use_profile(dataclasses.replace(active_profile(), format_cast_path="aclnn")):
        cast = torch.ops.npu.npu_format_cast(matrix.npu(), NZ)
        image = torch.ops.npu.npu_format_cast(torch.zeros(1, 2, 3, 4).npu(), 3)
    assert (format_of(cast), format_of(image)) == (NZ, 0)
    assert torch.equal(cast.cpu(), matrix)
    assert format_of(torch.ops.npu.npu_format_cast(matrix.npu(), NZ)) == ND


def test_other_formats_are_refused_by_name():
    from npudiff.device.simulator import NotSimulated

    with pytest.raises(NotSimulated, match="acl_format was 50 FRACTAL_NZ_C0_16, which is not simulated"):
        torch.ops.npu.npu_format_cast(torch.zeros(16, 16).npu(), 50)
    with pytest.raises(
        RuntimeError, match="a tensor in format FRACTAL_NZ_C0_16: the virtual NPU has base formats and "
    ):
        torch.ops.npu.empty_with_format((16, 16), dtype=torch.half, device="npu", acl_format=50) + 1


def test_a_part_of_tiles_that_nobody_described_is_refused():
    made = torch.ops.npu.empty_with_format((32, 32), dtype=torch.float16, device="npu", acl_format=NZ)
    with pytest.raises(RuntimeError, match=r"a part \[3, 32\] of a storage in FRACTAL_NZ whose own shape is not known"):
        made[2:5] + 1


def test_a_cast_from_another_tensor_takes_its_format_where_the_documentation_is_right():
    source = torch.arange(20 * 20.0).view(20, 20).half()
    plain, tiles = source.npu(), torch.ops.npu.npu_format_cast(torch.zeros_like(source).npu(), NZ)
    profile = dataclasses.replace(active_profile(), format_cast_from_tensor="takes_format")
    with use_profile(profile):
        torch.ops.npu.npu_format_cast_(plain, tiles)
    assert format_of(plain) == NZ
    assert torch.equal(plain.cpu(), source)
    with use_profile(profile):  # of one format, values are copied
        torch.ops.npu.npu_format_cast_(plain, tiles)
    assert format_of(plain) == NZ
    assert not plain.cpu().any()
