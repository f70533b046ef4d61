"""Weights in FRACTAL_NZ whose bytes are real: views of their tiles, and int4 in them, give what rows give."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map_only

pytestmark = pytest.mark.virtual

NZ = 29


@pytest.fixture(autouse=True)
def tiles_are_allowed(virtual_npu):
    """Allow internal formats, as backends do when they start, and forbid them again."""
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def integers(*shape, low=-8, high=8, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def moved(tree):
    return tree_map_only(torch.Tensor, lambda tensor: tensor.npu(), tree)


def packed(values):
    """Have the device put eight int4 into a word; what is in tiles stays in tiles."""
    return torch.ops.npu.npu_quantize(values, torch.ones(1, device=values.device), None, torch.quint4x2, -1, False)


def same(left, right):
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.cpu(), other.cpu())


def swiglu(x, weight, scale, rows, **more):
    ends = torch.tensor([3, rows])
    call = {"x": x, "weight": [weight], "weight_scale": [scale], "x_scale": torch.ones(rows), "group_list": ends} | more
    return torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(**moved(call))


def test_int8_in_five_axes():
    x, weight, scale = integers(5, 32), integers(2, 32, 64, low=-128, high=128, seed=1), torch.ones(2, 64)
    cast = torch.ops.npu.npu_format_cast(weight.npu(), NZ).view(2, 2, 2, 16, 32)
    assert torch.ops.npu.get_npu_format(cast) == NZ
    by_hand = weight.view(2, 2, 16, 2, 32).permute(0, 3, 1, 2, 4).contiguous()
    plain = swiglu(x, weight, scale, 5)
    same(swiglu(x, cast, scale, 5), plain)
    same(swiglu(x, by_hand, scale, 5), plain)


def int4_call():
    x, weight = integers(5, 32), integers(2, 32, 128, seed=1)
    bits = torch.ones(2, 128).view(torch.int32).to(torch.int64)
    tiled = packed(torch.ops.npu.npu_format_cast(weight.float().npu(), NZ))
    assert torch.ops.npu.get_npu_format(tiled) == NZ
    return packed(x.float().npu()), packed(weight.float().npu()), tiled, bits


def test_int4_in_five_axes():
    x, weight, tiled, bits = int4_call()
    smooth = {"smooth_scale": torch.full((2,), 0.5)}
    plain = swiglu(x, weight, bits, 5, **smooth)
    same(swiglu(x, tiled, bits, 5, **smooth), plain)
    same(swiglu(x, tiled.view(2, 2, 2, 16, 8), bits, 5, **smooth), plain)


def test_int4_by_int4_in_tiles():
    x, weight, tiled, bits = int4_call()
    more = {"group_list": torch.tensor([3, 5]), "split_item": 3, "group_type": 0, "output_dtype": torch.float16}
    more = moved(more | {"scale": [bits]})
    same(*(torch.ops.npu.npu_grouped_matmul([x], [kind], **more) for kind in (tiled, weight)))


def test_int4_lies_in_tiles_of_64():
    values = integers(1, 16, 128, seed=2)
    tiled = packed(torch.ops.npu.npu_format_cast(values.float().npu(), NZ))
    storage = tiled.untyped_storage()
    shared = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    memory = torch.empty(0, dtype=torch.int32).set_(shared).clone()
    tiles = values.view(1, 1, 16, 2, 64).permute(0, 3, 1, 2, 4).contiguous()
    assert torch.equal(memory, packed(tiles.float().npu()).cpu().flatten())


def test_an_item_is_what_lies_there():
    """torch_npu copies bytes for it, as for elements of a storage; a tensor that is copied is in its logical order."""
    weight = torch.arange(32 * 32, dtype=torch.int32).view(32, 32)
    cast = torch.ops.npu.npu_format_cast(weight.npu(), NZ)
    tiles = weight.view(2, 16, 2, 16).permute(2, 0, 1, 3).flatten()
    places = (0, 7, 8, 200, 1023)
    assert [cast.view(-1)[place].item() for place in places] == tiles[list(places)].tolist()
    assert torch.equal(cast.cpu(), weight)
    assert weight.npu()[3, 5].item() == weight[3, 5]
