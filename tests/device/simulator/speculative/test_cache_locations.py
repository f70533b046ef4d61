"""``cache_loc_update`` of sgl-kernel-npu: slots of tokens, exactly; what stays; what is refused."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected, UndefinedBehaviour

POOL = torch.arange(400, dtype=torch.int32).view(4, 100) * 7


def update(**spoil):
    call = {
        "req_indices": torch.tensor([2, 0, 2]),
        "token_pool": POOL.clone(),
        "start_offset": torch.tensor([5, 90, 0]),
        "end_offset": torch.tensor([9, 100, 0]),
        "out_cache_loc": torch.full((16,), -1, dtype=torch.int32),
    } | spoil
    out = torch.ops.npu.cache_loc_update(*call.values())
    assert out.data_ptr() == call["out_cache_loc"].data_ptr()
    assert torch.equal(call["token_pool"], POOL)
    return out.tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_are_packed(dtype):
    assert update(req_indices=torch.tensor([2, 0, 2], dtype=dtype)) == [
        *((205 + i) * 7 for i in range(4)), *((90 + i) * 7 for i in range(10)), -1, -1,
    ]  # fmt: skip


def test_sixteen_tokens_are_the_most():
    given = {"start_offset": torch.tensor([0, 0, 0]), "out_cache_loc": torch.zeros(40, dtype=torch.int32)}
    update(end_offset=torch.tensor([16, 0, 0]), **given)
    for ends in ([17, 0, 0], [-1, 0, 0]):
        with pytest.raises(UndefinedBehaviour, match="allowed: 0 to 16 of them"):
            update(end_offset=torch.tensor(ends), **given)


@pytest.mark.parametrize(
    "spoil",
    [
        {"req_indices": torch.tensor([2, 4, 2])},
        {"end_offset": torch.tensor([9, 101, 0])},
        {"start_offset": torch.tensor([5, 90, -1])},
        {"out_cache_loc": torch.zeros(13, dtype=torch.int32)},
    ],
)
def test_what_is_outside_is_a_fault(spoil):
    with pytest.raises(DeviceFault):
        update(**spoil)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("req_indices", torch.tensor([2.0, 0, 2])),
        ("token_pool", POOL.long()),
        ("start_offset", torch.tensor([5, 90, 0]).int()),
        ("end_offset", torch.tensor([9, 100, 0]).int()),
        ("out_cache_loc", torch.zeros(16, dtype=torch.int64)),
    ],
)
def test_dtypes(name, value):
    with pytest.raises(OperatorRejected, match=f"{name} was .*Only support inputTensor combo1"):
        update(**{name: value})


def test_what_is_not_checked_is_undefined():
    with pytest.raises(UndefinedBehaviour, match="2 and 3 offsets for 3 requests"):
        update(start_offset=torch.tensor([5, 90]))
    with pytest.raises(UndefinedBehaviour, match="start_offset is not contiguous"):
        update(start_offset=torch.tensor([5, 0, 90, 0, 0, 0])[::2])
