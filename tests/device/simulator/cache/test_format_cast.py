"""Format casts: what is returned, who shares what, and what the storage remembers."""

import gc
import itertools
import weakref

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.cache.formats import Format, format_of, noted_format
from npudiff.device.simulator.cache.fractal import to_fractal_nz
from npudiff.device.simulator.cache.layouts import storage_shape
from npudiff.device.simulator.cache.physical import physical

ND, NCHW, NHWC, NZ, NCDHW = 2, 0, 1, 29, 30
NC1HWC0, FRACTAL_Z, NDHWC, NDC1HWC0, FRACTAL_Z_3D = 3, 4, 27, 32, 33


def cast(tensor, target, **options):
    return torch.ops.npu.npu_format_cast(tensor, target, **options)


def cast_(tensor, target, **options):
    return torch.ops.npu.npu_format_cast_(tensor, target, **options)


def number(tensor):
    return torch.ops.npu.get_npu_format(tensor)


def matrix(*sizes, dtype=torch.float16):
    return torch.arange(torch.Size(sizes).numel()).view(sizes).to(dtype)


def shares(left, right):
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


@pytest.mark.parametrize(("rank", "expected"), [(0, ND), (1, ND), (2, ND), (3, ND), (4, NCHW), (5, NCDHW), (6, ND)])
def test_new_tensors_have_the_format_of_their_rank(rank, expected):
    assert number(torch.zeros([2] * rank)) == expected


def test_a_view_has_the_format_of_what_it_is_a_view_of():
    assert number(torch.zeros(2, 3, 4, 5).view(6, 20)) == NCHW
    assert number(torch.zeros(6, 20).view(2, 3, 4, 5)) == ND


def test_formats_have_the_numbers_of_torch_npu():
    assert {int(f): f.name for f in Format}[29] == "FRACTAL_NZ"
    assert [int(f) for f in Format] == [-1, 0, 1, 2, 3, 4, 12, 16, 27, 29, 30, 32, 33, 35, 47, 50, 51, 52, 53, 54]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32, torch.uint8])
@pytest.mark.parametrize("sizes", [(16, 32), (17, 33), (2, 5, 7), (2, 3, 16, 16), (1, 2, 3, 4, 5)])
def test_a_round_trip_is_exact_and_changes_nothing_that_torch_sees(dtype, sizes):
    tensor = matrix(*sizes, dtype=dtype)
    nz = cast(tensor, NZ)
    assert number(nz) == NZ
    assert (nz.shape, nz.stride(), nz.dtype) == (tensor.shape, tensor.stride(), dtype)
    assert torch.equal(nz, tensor)
    assert not shares(nz, tensor)
    assert number(tensor) != NZ
    back = cast(nz, ND)
    assert torch.equal(back, tensor)
    assert not shares(back, nz)
    assert number(back) == (NCHW if len(sizes) == 4 else ND)
    assert torch.equal(physical(back), tensor.flatten())


def test_the_same_format_returns_the_tensor_itself():
    tensor = matrix(4, 4)
    assert cast(tensor, ND) is tensor
    nz = cast(tensor, NZ)
    assert cast(nz, NZ) is nz
    assert cast_(nz, NZ) is nz


@pytest.mark.parametrize("form", [cast, cast_])
def test_a_base_format_renames_the_storage_and_returns_the_tensor_itself(form):
    tensor = matrix(2, 3, 4, 5)
    view = tensor.view(6, 20)
    assert form(tensor, NHWC) is tensor
    assert number(tensor) == number(view) == NHWC
    assert form(view, ND) is view
    assert number(tensor) == ND
    assert torch.equal(tensor, matrix(2, 3, 4, 5))


def test_rank_1_stays_nd_in_a_copy():
    tensor = matrix(40)
    copy = cast(tensor, NZ)
    assert number(copy) == ND
    assert torch.equal(copy, tensor)
    assert not shares(copy, tensor)
    assert number(cast(torch.tensor(3.0), NZ)) == ND


def test_casting_a_view_casts_the_whole_storage_and_keeps_the_view():
    tensor = matrix(4, 16, 32)
    part = cast(tensor[1:3, :, 4:], NZ)
    assert (part.storage_offset(), part.stride(), part.shape) == (16 * 32 + 4, (512, 32, 1), (2, 16, 28))
    assert torch.equal(part, tensor[1:3, :, 4:])
    assert torch.equal(physical(part), to_fractal_nz(tensor))


def test_transposed_views_keep_their_strides():
    tensor = matrix(8, 20)
    nz = cast(tensor.t(), NZ)
    assert torch.equal(nz, tensor.t())
    assert nz.stride() == (1, 20)
    assert torch.equal(physical(nz), to_fractal_nz(tensor))


def test_a_transposed_tensor_of_unknown_origin_has_the_order_of_its_memory():
    with torch.inference_mode():
        nz = cast(matrix(8, 20).t(), NZ)
        assert torch.equal(physical(nz), to_fractal_nz(matrix(8, 20)))
    assert torch.equal(physical(cast(matrix(8, 20).t().clone(), NZ)), to_fractal_nz(matrix(8, 20)))


def test_a_part_of_an_unknown_storage_is_not_simulated():
    with torch.inference_mode():
        part = torch.zeros(4, 8)[1:]
        with pytest.raises(
            NotSimulated, match=r"npu_format_cast: input was \[3, 8\].*part of a storage of unknown shape"
        ):
            cast(part, NZ)
        whole = torch.zeros(4, 8).view(2, 16)
        assert number(cast(whole, NZ)) == NZ


def test_in_place_gives_a_new_storage_and_older_views_keep_the_old_one():
    tensor = matrix(4, 20)
    view = tensor.view(-1)
    assert cast_(tensor, NZ) is tensor
    assert (number(tensor), number(view)) == (NZ, ND)
    assert torch.equal(tensor, matrix(4, 20))
    tensor.zero_()
    assert view.any()
    assert cast_(tensor, ND) is tensor
    assert number(tensor) == ND


def test_in_place_works_on_parameters_and_their_data():
    parameter = torch.nn.Parameter(matrix(16, 16, dtype=torch.float32))
    assert cast_(parameter, NZ) is parameter
    assert number(parameter) == NZ
    parameter.data = cast(parameter.data, ND)
    assert number(parameter) == ND
    parameter.data = cast(parameter.data, NZ)
    assert number(parameter) == number(parameter.data) == NZ


def test_the_overload_with_a_tensor_takes_its_format():
    nz, plain = cast(matrix(4, 4), NZ), matrix(2, 2)
    assert number(torch.ops.npu.npu_format_cast(plain, nz)) == NZ
    assert torch.ops.npu.npu_format_cast(plain, matrix(3)) is plain


def test_in_place_with_a_tensor_copies_its_values_and_keeps_the_format():
    nz, plain = cast(matrix(4, 4), NZ), matrix(4, 4) + 1
    view = nz.view(16)
    assert torch.ops.npu.npu_format_cast_(nz, plain) is nz
    assert number(nz) == NZ
    assert torch.equal(view, plain.flatten())
    other = torch.zeros(4, 4, dtype=torch.float16)
    torch.ops.npu.npu_format_cast_(other, plain[2])
    assert torch.equal(other, plain[2].expand(4, 4))


def test_in_place_with_a_tensor_can_be_told_to_take_the_format(kit):
    plain = matrix(4, 4)
    with kit.changed(format_cast_from_tensor="takes_format"):
        torch.ops.npu.npu_format_cast_(plain, cast(matrix(4, 4) + 1, NZ))
    assert number(plain) == NZ
    assert torch.equal(plain, matrix(4, 4))


def test_in_place_with_another_shape_and_format_is_not_simulated():
    message = (
        r"npu_format_cast_: src was torch.float16 \[4\] in another format.*simulated: torch.float16 \[4, 4\], as input"
    )
    with pytest.raises(NotSimulated, match=message):
        torch.ops.npu.npu_format_cast_(cast(matrix(4, 4), NZ), matrix(4))


@pytest.mark.parametrize("form", [cast, cast_])
@pytest.mark.parametrize("given", [-1, 5, 31, 99])
def test_unknown_formats_are_refused(form, given):
    with pytest.raises(
        OperatorRejected, match=rf"acl_format was {given}; allowed: 0 NCHW, 1 NHWC, 2 ND,.*\[ERR01003\]"
    ):
        form(matrix(4, 4), given)


@pytest.mark.parametrize("given", [12, 16, 35, 47, 50, 51, 52, 53, 54])
def test_other_formats_are_not_simulated(given):
    with pytest.raises(NotSimulated, match=rf"acl_format was {given} .*simulated: 0 NCHW, 1 NHWC, 2 ND, 3 NC1HWC0, "):
        cast(matrix(4, 4), given)


IMAGES = [
    (NC1HWC0, (2, 17, 3, 5)),
    (NC1HWC0, (40, 3)),
    (NC1HWC0, (20,)),
    (NC1HWC0, (5, 3, 2)),
    (FRACTAL_Z, (18, 17, 2, 3)),
]
VOLUMES = [(NDHWC, (2, 3, 4, 5, 6)), (NDC1HWC0, (2, 17, 2, 3, 4)), (FRACTAL_Z_3D, (17, 18, 2, 1, 3))]


def place(target, sizes, index):
    """Where an element lies: each format spelled out, for sizes of an image or a volume."""
    if target == FRACTAL_Z:
        (count, _, height, width), (n, c, h, w) = sizes, index
        row = (c // 16 * height + h) * width + w
        return ((row * -(-count // 16) + n // 16) * 16 + n % 16) * 16 + c % 16
    if target == NC1HWC0:
        (_, channels, height, width), (n, c, h, w) = sizes, index
        return (((n * -(-channels // 16) + c // 16) * height + h) * width + w) * 16 + c % 16
    (count, channels, depth, height, width), (n, c, d, h, w) = sizes, index
    if target == NDHWC:
        return (((n * depth + d) * height + h) * width + w) * channels + c
    if target == NDC1HWC0:
        return ((((n * depth + d) * -(-channels // 16) + c // 16) * height + h) * width + w) * 16 + c % 16
    row = ((d * -(-channels // 16) + c // 16) * height + h) * width + w
    return ((row * -(-count // 16) + n // 16) * 16 + n % 16) * 16 + c % 16


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize(("target", "sizes"), [*IMAGES, *VOLUMES])
def test_channels_lie_in_blocks_of_sixteen(target, sizes, dtype):
    tensor = (torch.arange(torch.Size(sizes).numel()) % 100 + 1).view(sizes).to(dtype)
    laid = cast(tensor, target)
    assert (number(laid), laid.shape, laid.stride()) == (target, tensor.shape, tensor.stride())
    assert torch.equal(laid, tensor)
    memory = physical(laid).flatten()
    full = tensor.view({1: (1, -1, 1, 1), 2: (1, *sizes, 1), 3: (1, *sizes)}.get(len(sizes), sizes))
    for index in itertools.product(*map(range, full.shape)):
        assert memory[place(target, full.shape, index)] == full[index]
    assert (memory != 0).sum() == tensor.numel()  # all else is padding
    back = cast(laid, ND)
    assert torch.equal(back, tensor)
    assert number(back) == {4: NCHW}.get(len(sizes), ND)


@pytest.mark.parametrize(
    ("target", "sizes", "shape"),
    [
        (NC1HWC0, (2, 17, 3, 5), (2, 2, 3, 5, 16)),
        (FRACTAL_Z, (18, 17, 2, 3), (12, 2, 16, 16)),
        (NDC1HWC0, (2, 17, 2, 3, 4), (2, 2, 2, 3, 4, 16)),
        (FRACTAL_Z_3D, (17, 18, 2, 1, 3), (12, 2, 16, 16)),
        (NZ, (15, 17), (2, 1, 16, 16)),
    ],
)
def test_shapes_of_storages_are_those_of_torch_npu(target, sizes, shape):
    laid = cast(matrix(*sizes), target)
    assert physical(laid).shape == storage_shape(noted_format(laid)) == shape


def test_a_cast_between_formats_of_images_needs_no_base_format_and_others_do():
    image = cast(matrix(2, 17, 3, 5), NC1HWC0)
    weight = cast(image, FRACTAL_Z)
    assert number(weight) == FRACTAL_Z
    assert torch.equal(weight, image)
    with pytest.raises(OperatorRejected, match="unsupported cast from FRACTAL_Z to FRACTAL_NZ"):
        cast(weight, NZ)
    assert number(cast(cast(weight, NCHW), NZ)) == NZ


@pytest.mark.parametrize("target", [NDHWC, NDC1HWC0, FRACTAL_Z_3D])
def test_formats_of_volumes_need_five_axes(target):
    with pytest.raises(OperatorRejected, match=r"dim \(\[4, 4\]\) cannot convert to "):
        cast(matrix(4, 4), target)
    with pytest.raises(NotSimulated, match="input was of 6 axes"):
        cast(torch.zeros([2] * 6), target)


def test_formats_of_images_have_at_most_four_axes_and_numbers_have_none():
    with pytest.raises(NotSimulated, match="input was of 5 axes for NC1HWC0"):
        cast(torch.zeros([2] * 5), NC1HWC0)
    assert number(cast(torch.tensor(3.0), NC1HWC0)) == ND


@pytest.mark.parametrize("form", [cast, cast_])
@pytest.mark.parametrize("option", ["customize_dtype", "input_dtype"])
def test_dtype_options_need_cann_9_1_where_a_storage_is_made(kit, form, option):
    tensor = matrix(4, 4, dtype=torch.int32)
    words = "customize_dtype is not supported by the current soc version."
    with pytest.raises(
        OperatorRejected, match=rf"{option} was 3; allowed: None, before CANN 9.1 \[ERR01003\]: {words}"
    ):
        form(tensor, NZ, **{option: 3})
    assert form(tensor, ND, **{option: 3}) is tensor
    with kit.changed(format_cast_path="aclnn"), pytest.raises(NotSimulated, match=f"{option} was 1 for torch.int32"):
        form(tensor, NZ, **{option: 1})
    with kit.changed(format_cast_path="aclnn"), pytest.raises(NotSimulated, match=f"{option} was 3 for torch.int8"):
        form(tensor.char(), NZ, **{option: 3})


@pytest.mark.parametrize("form", [cast, cast_])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
@pytest.mark.parametrize("sizes", [(15, 17), (4, 15, 17), (16, 8)])
def test_words_lie_in_tiles_of_eight_where_a_call_asks_for_it(kit, form, dtype, sizes):
    tensor = matrix(*sizes, dtype=dtype) + 1
    with kit.changed(format_cast_path="aclnn"):
        tiles = form(tensor.clone(), NZ, customize_dtype=3)
        back = cast(tiles, ND)
    memory = physical(tiles)
    assert memory.shape == (*sizes[:-2], -(-sizes[-1] // 8), 1, 16, 8)
    for index in itertools.product(*map(range, sizes)):
        *batch, row, column = index
        assert memory[(*batch, column // 8, 0, row, column % 8)] == tensor[index]
    assert (memory != 0).sum() == tensor.numel()
    assert torch.equal(back, tensor)
    assert physical(cast(tensor, NZ)).shape[-1] == 16


def test_the_width_of_tiles_is_ignored_where_aclnn_is_not_asked(kit):
    tensor = matrix(16, 32, dtype=torch.int32)
    for profile in ("aclop", "aclnn"):
        with kit.changed(format_cast_path=profile):
            for view in (tensor[:, 4:], tensor.t(), tensor.view(-1, 16)):
                assert physical(cast(view, NZ, customize_dtype=3)).shape[-1] == 16
            assert physical(cast(cast(tensor, NZ).t(), ND, customize_dtype=3)).dim() == 1
    with kit.changed(format_cast_path="aclnn"):
        assert physical(cast(matrix(2, 2, 4, 4, dtype=torch.int32), NZ, customize_dtype=3)).shape[-1] == 16
        assert number(cast(matrix(2, 2, 4, 4, dtype=torch.int32), NC1HWC0, customize_dtype=3)) == NC1HWC0


@pytest.mark.parametrize(("path", "expected"), [("aclop", ND), ("aclnn", NZ)])
def test_aclnn_does_not_look_whether_a_program_allows_internal_formats(kit, path, expected):
    with kit.changed(internal_format="replaced_by_base_format", format_cast_path=path):
        assert number(cast(matrix(4, 4), NZ)) == expected
        assert number(cast(matrix(2, 4, 4), NZ)) == expected
        assert number(cast(matrix(4, 4)[1:], NZ)) == ND
        assert number(cast(matrix(1, 2, 4, 4), NZ)) == NCHW
        assert number(cast(matrix(1, 2, 4, 4), NC1HWC0)) == NCHW


def test_programs_that_do_not_allow_internal_formats_get_a_base_format(kit):
    with kit.changed(internal_format="replaced_by_base_format"):
        copy = cast(matrix(4, 4), NZ)
        image = cast(matrix(1, 2, 3, 4), NZ)
    assert (number(copy), number(image)) == (ND, NCHW)
    assert torch.equal(copy, matrix(4, 4))


@pytest.mark.parametrize(
    ("rank", "target", "expected"),
    [(2, NCHW, ND), (2, NCDHW, ND), (3, ND, ND), (4, ND, NCHW), (4, NCDHW, NCHW), (5, NCDHW, NCDHW), (5, ND, ND)],
)
def test_base_formats_are_corrected_to_the_rank(rank, target, expected):
    assert number(cast(cast(torch.zeros([2] * rank), NZ), target)) == expected


def test_copies_forget_and_views_remember():
    nz = cast(matrix(16, 16), NZ)
    assert number(nz.clone()) == number(nz + 0) == ND
    assert number(nz[2:]) == number(nz.t()) == number(nz.view(torch.int16)) == number(nz.detach()) == NZ


@pytest.mark.slow
def test_the_note_lives_as_long_as_the_storage_and_no_longer():
    nz = cast(matrix(16, 16), NZ)
    noted = weakref.ref(noted_format(nz))
    view = nz.view(-1)
    del nz
    gc.collect()
    assert number(view) == NZ
    assert noted() is not None
    del view
    gc.collect()
    assert noted() is None


def test_a_note_on_a_storage_that_was_resized_is_void():
    nz = cast(matrix(16, 16), NZ)
    nz.untyped_storage().resize_(1024)
    assert format_of(nz) is Format.ND


def test_meta_tensors_keep_sizes_and_strides():
    tensor = torch.empty(4, 6, dtype=torch.bfloat16, device="meta").t()
    result = cast(tensor, NZ)
    assert (result.shape, result.stride(), result.dtype, result.device.type) == ((6, 4), (1, 6), torch.bfloat16, "meta")
    assert cast_(tensor, NZ) is tensor
    assert number(tensor) == ND
