"""``_npu_reshape_and_cache`` and its form with one cache."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected
from npudiff.device.simulator.cache.fractal import from_fractal_nz
from npudiff.device.simulator.cache.physical import physical

DTYPES = [torch.float16, torch.bfloat16, torch.int8]
SLOTS = [5, -1, 0, 11, 7]


def put(*arguments):
    return torch.ops.atb._npu_reshape_and_cache(*arguments)


def put_one(*arguments):
    return torch.ops.atb._npu_reshape_and_cache_siso(*arguments)


def slots(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nd_caches_of_different_dims(kit, dtype):
    key, value = kit.tokens(5, 2, 24, dtype), kit.tokens(5, 2, 8, dtype, seed=1)
    k, v = kit.nd_cache(3, 4, 2, 24, dtype), kit.nd_cache(3, 4, 2, 8, dtype)
    expected = kit.written(k, key, SLOTS, nz=False), kit.written(v, value, SLOTS, nz=False)
    assert put(key, value, k, v, slots(*SLOTS)) is None
    assert torch.equal(k, expected[0])
    assert torch.equal(v, expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_caches_in_fractal_nz(kit, dtype):
    """An int8 key has tiles of 32 elements and values of 16 bit; negative and the last slot included."""
    value_dtype = torch.float16 if dtype == torch.int8 else dtype
    where = [17, -1, 0, 47, 33]
    key, value = kit.tokens(5, 2, 32, dtype), kit.tokens(5, 2, 16, value_dtype, seed=1)
    k, v = kit.nz_cache(3, 16, 2, 32, dtype), kit.nz_cache(3, 16, 2, 16, value_dtype)
    expected = kit.written(k, key, where, nz=True), kit.written(v, value, where, nz=True)
    k, v = kit.cast(k), kit.cast(v)
    put(key, value, k, v, slots(*where))
    assert torch.equal(k, expected[0])
    assert torch.equal(v, expected[1])
    assert torch.equal(physical(k).flatten(), expected[0].flatten())


@pytest.mark.parametrize("tagged", ["key", "value"])
def test_one_cache_in_fractal_nz_is_written_as_nd(kit, tagged):
    """[2, 16, 2, 16] in FRACTAL_NZ pads 2 heads to 16 rows: token rows land in the padding, or across blocks."""
    key = kit.tokens(2, 2, 16)
    caches = {"key": kit.nd_cache(2, 16, 2, 16), "value": kit.nd_cache(2, 16, 2, 16)}
    caches[tagged] = kit.cast(caches[tagged])
    memory = physical(caches[tagged]).flatten()
    memory.view(-1, 32)[[8, 9]] = key.view(2, 32)
    put(key, key, caches["key"], caches["value"], slots(8, 9))
    other = caches["value" if tagged == "key" else "key"]
    assert torch.equal(other, kit.written(torch.zeros_like(other), key, [8, 9], nz=False))
    assert torch.equal(caches[tagged], from_fractal_nz(memory.view(2, 16, 1, 1, 16, 16), (2, 16, 2, 16)))
    assert torch.equal(caches[tagged][0, 1], key[0])
    assert caches[tagged].count_nonzero() == 32
    with kit.changed(reshape_and_cache_lone_nz="rejected"), pytest.raises(OperatorRejected) as error:
        put(key, key, caches["key"], caches["value"], slots(8, 9))
    assert error.value.argument == f"{'value' if tagged == 'key' else 'key'}_cache"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_cache(kit, dtype):
    key, k = kit.tokens(5, 1, 40, dtype), kit.nd_cache(3, 4, 1, 40, dtype)
    expected = kit.written(k, key, SLOTS, nz=False)
    assert put_one(key, k, slots(*SLOTS)) is None
    assert torch.equal(k, expected)


def test_one_cache_in_fractal_nz_is_written_as_nd_too(kit):
    key, k = kit.tokens(1, 2, 16), kit.cast(kit.nd_cache(2, 16, 2, 16))
    put_one(key, k, slots(8))
    assert torch.equal(k[0, 1], key[0])
    with kit.changed(reshape_and_cache_lone_nz="rejected"), pytest.raises(OperatorRejected, match="key_cache"):
        put_one(key, k, slots(8))


def test_writes_reach_the_storage_through_views(kit):
    """As sglang's pool: a layer of one allocation, and a view of it as pages."""
    pool = torch.zeros(2, 3 * 4, 1, 16, dtype=torch.float16)
    layer = pool[1]
    key = kit.tokens(1, 1, 16)
    put(key, key, layer.view(3, 4, 1, 16), pool[0].view(3, 4, 1, 16), slots(6))
    assert torch.equal(pool[:, 6], key.expand(2, 1, 16))
    assert pool.count_nonzero() == 32


def test_tokens_may_have_gaps_and_caches_may_not(kit):
    both = kit.tokens(3, 2, 16)
    k, v = kit.nd_cache(2, 4, 1, 16), kit.nd_cache(2, 4, 1, 16)
    put(both[:, :1], both[:, 1:], k, v, torch.tensor([3, 9, 1, 9, 6], dtype=torch.int32)[::2])
    assert torch.equal(k.view(8, 16)[[3, 1, 6]], both[:, 0])
    gap = torch.zeros(2, 4, 2, 16, dtype=torch.float16)[:, :, :1]
    with pytest.raises(OperatorRejected, match=r"value_cache was not contiguous.*\[ERR01003\]"):
        put(both[:, :1], both[:, 1:], k, gap, slots(0, 1, 2))


def test_equal_slots_keep_the_last_and_bits_are_not_changed(kit):
    bits = torch.tensor([[0x7E01], [0x7C01], [-0x8000]], dtype=torch.int16)  # two NaNs and -0.0
    key = bits.view(torch.float16).view(3, 1, 1).expand(3, 1, 16).contiguous()
    k, v = kit.nd_cache(1, 4, 1, 16), kit.nd_cache(1, 4, 1, 16)
    put(key, key, k, v, slots(2, 1, 2))
    assert k.view(torch.int16)[0, :, 0, 0].tolist() == [0, 0x7C01, -0x8000, 0]


def test_slots_beyond_the_cache_fault_and_nothing_is_written(kit):
    key, k, v = kit.tokens(2, 1, 16), kit.nd_cache(2, 4, 1, 16), kit.nd_cache(2, 4, 1, 16)
    with pytest.raises(DeviceFault, match=r"slot_indices\[1\] is 8, key_cache has 8 slots"):
        put(key, key, k, v, slots(0, 8))
    with pytest.raises(DeviceFault, match=r"_siso: slot_indices\[0\] is 99, key_cache has 8 slots"):
        put_one(key, k, slots(99, 0))
    assert not k.any()
    assert not v.any()


def test_nz_slots_beyond_the_smaller_cache_fault(kit):
    key = kit.tokens(1, 1, 16)
    k, v = kit.cast(kit.nz_cache(3, 16, 1, 16)), kit.cast(kit.nz_cache(2, 16, 1, 16))
    put(key, key, k, v, slots(31))
    with pytest.raises(DeviceFault, match=r"slot_indices\[0\] is 32, value_cache has 32 slots"):
        put(key, key, k, v, slots(32))


def test_more_slots_than_tokens_are_ignored_and_fewer_fault(kit):
    key, k, v = kit.tokens(2, 1, 16), kit.nd_cache(2, 4, 1, 16), kit.nd_cache(2, 4, 1, 16)
    put(key, key, k, v, slots(0, 1, 99))
    assert k.count_nonzero() == 32
    with pytest.raises(DeviceFault, match="slot_indices has 1 slots for 2 tokens"):
        put(key, key, k, v, slots(0))
    with pytest.raises(OperatorRejected, match=r"slot_indices was of shape \[3\]; allowed: \[2\], one slot per token"):
        put_one(key, k, slots(0, 1, 2))


def case(kit, **changes):
    """Return arguments of a call that is good but for the changes."""
    good = {
        "key": kit.tokens(2, 2, 16),
        "value": kit.tokens(2, 2, 32),
        "key_cache": kit.nd_cache(3, 4, 2, 16),
        "value_cache": kit.nd_cache(3, 4, 2, 32),
        "slot_indices": slots(0, 1),
    }
    return list((good | changes).values())


@pytest.mark.parametrize(
    ("argument", "shape", "message"),
    [
        ("key", (2, 32), r"key was of rank 2, \[2, 32\]; allowed: rank 3, \[tokens, kv heads, dim\]"),
        (
            "value",
            (3, 2, 32),
            r"value was of shape \[3, 2, 32\]; allowed: \[2, 2, any\], the tokens and kv heads of key",
        ),
        ("value", (2, 1, 32), r"value was of shape \[2, 1, 32\]"),
        ("key_cache", (12, 2, 16), r"key_cache was of rank 3"),
        ("key_cache", (3, 4, 1, 16), r"key_cache was of shape \[3, 4, 1, 16\]; allowed: \[any, any, 2, 16\]"),
        ("key_cache", (3, 4, 2, 32), r"key_cache was of shape"),
        ("value_cache", (2, 4, 2, 32), r"value_cache was of shape \[2, 4, 2, 32\]; allowed: \[3, 4, 2, 32\]"),
        ("value_cache", (3, 8, 2, 32), r"value_cache was of shape"),
        ("value_cache", (3, 4, 2, 16), r"value_cache was of shape"),
    ],
)
def test_refused_shapes(kit, argument, shape, message):
    with pytest.raises(OperatorRejected, match=message + r".*\[aclnn 561002\]"):
        put(*case(kit, **{argument: torch.zeros(shape, dtype=torch.float16)}))


def test_refused_slots_and_dtypes(kit):
    def refused(match, **changes):
        with pytest.raises(OperatorRejected, match=match):
            put(*case(kit, **changes))

    refused(r"slot_indices was of rank 2, \[2, 1\]; allowed: rank 1", slot_indices=slots(0, 1).view(2, 1))
    refused(r"slot_indices was int64; allowed: int32 \[aclnn 161002\]", slot_indices=torch.tensor([0, 1]))
    refused(r"key was float32; allowed: float16 or bfloat16 or int8", key=kit.tokens(2, 2, 16, torch.float32))
    refused(r"key_cache was int8; allowed: float16, as key", key_cache=kit.nd_cache(3, 4, 2, 16, torch.int8))
    refused(
        r"value was bfloat16; allowed: float16, as key",
        value=kit.tokens(2, 2, 32, torch.bfloat16),
        value_cache=kit.nd_cache(3, 4, 2, 32, torch.bfloat16),
    )
    with pytest.raises(NotSimulated, match="key was empty"):
        put(*case(kit, key=torch.zeros(0, 2, 16, dtype=torch.float16)))


@pytest.mark.parametrize(
    ("key", "key_cache", "message"),
    [
        ((1, 1, 16), (2, 1, 8, 16), "key_cache was of block size 8 in FRACTAL_NZ; allowed: a multiple of 16"),
        ((1, 1, 24), (2, 1, 16, 16), r"key was of 1 kv heads \* 24 in FRACTAL_NZ; allowed: a multiple of 16 per token"),
        ((1, 2, 16), (2, 1, 16, 16), r"key_cache was of shape \[2, 1, 16, 16\]; allowed: \[any, 2, 16, 16\]"),
        ((1, 2, 16), (2, 2, 16, 32), r"key_cache was of shape"),
    ],
)
def test_refused_shapes_in_fractal_nz(kit, key, key_cache, message):
    value = kit.tokens(1, key[1], 16)
    v = kit.cast(kit.nz_cache(2, 16, key[1], 16))
    with pytest.raises(OperatorRejected, match=message):
        put(kit.tokens(*key), value, kit.cast(torch.zeros(key_cache, dtype=torch.float16)), v, slots(0))


def test_int8_values_are_refused_in_fractal_nz(kit):
    key = kit.tokens(1, 1, 32, torch.int8)
    cache = kit.cast(kit.nz_cache(1, 16, 1, 32, torch.int8))
    with pytest.raises(OperatorRejected, match="value was int8; allowed: float16 or bfloat16"):
        put(key, key, cache, kit.cast(kit.nz_cache(1, 16, 1, 32, torch.int8)), slots(0))
