"""``npu_scatter_pa_kv_cache`` and its functional form."""

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, NotSimulated, OperatorRejected, UndefinedBehaviour
from npudiff.device.simulator.cache.physical import physical

DTYPES = [torch.float16, torch.bfloat16, torch.int8]
OTHER_DTYPES = [torch.float32, torch.uint8, torch.int16, torch.int32, torch.float8_e4m3fn]
SLOTS = [5, -1, 0, 11, 7]


def scatter(*arguments, **options):
    return torch.ops.npu.npu_scatter_pa_kv_cache(*arguments, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("mode", ["Norm", "", None])
def test_norm(kit, dtype, slot_dtype, mode):
    key, value = kit.tokens(5, 2, 24, dtype), kit.tokens(5, 2, 7, dtype, seed=1)
    k, v = kit.nd_cache(3, 4, 2, 24, dtype), kit.nd_cache(3, 4, 2, 7, dtype)
    expected = kit.written(k, key, SLOTS, nz=False), kit.written(v, value, SLOTS, nz=False)
    assert scatter(key, value, k, v, torch.tensor(SLOTS, dtype=slot_dtype), cache_mode=mode) is None
    assert torch.equal(k, expected[0])
    assert torch.equal(v, expected[1])


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("block_size", [4, 16])
def test_pa_nz_is_the_default_and_the_storage_format_plays_no_part(kit, dtype, slot_dtype, tagged, block_size):
    where = [5, -1, 0, 3 * block_size - 1, 7]
    key, value = kit.tokens(5, 2, 64, dtype), kit.tokens(5, 2, 32, dtype, seed=1)
    k, v = kit.nz_cache(3, block_size, 2, 64, dtype), kit.nz_cache(3, block_size, 2, 32, dtype)
    expected = kit.written(k, key, where, nz=True), kit.written(v, value, where, nz=True)
    if tagged and block_size == 16:
        k, v = kit.cast(k), kit.cast(v)
    scatter(key, value, k, v, torch.tensor(where, dtype=slot_dtype))
    assert torch.equal(k, expected[0])
    assert torch.equal(v, expected[1])


def test_pa_nz_in_bytes(kit):
    """Blocks of 4, D = 32: slot 5 has rows 9 and 13 of 16 elements, slot 0 rows 0 and 4, slot 7 rows 11 and 15."""
    key = torch.arange(1, 3 * 32 + 1, dtype=torch.float16).view(3, 1, 32)
    k, v = kit.nz_cache(2, 4, 1, 32), kit.nz_cache(2, 4, 1, 32)
    scatter(key, key, k, v, torch.tensor([5, 0, 7]))
    rows = k.view(-1, 16)
    assert rows.any(1).nonzero().flatten().tolist() == [0, 4, 9, 11, 13, 15]
    assert rows[9].tolist() == list(range(1, 17))
    assert rows[13].tolist() == list(range(17, 33))
    assert rows[4].tolist() == list(range(49, 65))


def test_pa_nz_in_bytes_of_int8(kit):
    """Tiles of 32: two heads of 32, blocks of 2, slot 3: rows 5 and 7 of 32."""
    key = torch.arange(1, 65, dtype=torch.int8).view(1, 2, 32)
    k, v = kit.nz_cache(2, 2, 2, 32, torch.int8), kit.nz_cache(2, 2, 2, 32, torch.int8)
    scatter(key, key, k, v, torch.tensor([3]))
    assert k.view(-1, 32).any(1).nonzero().flatten().tolist() == [5, 7]
    assert v.view(-1, 32)[7].tolist() == list(range(33, 65))


def test_pa_nz_takes_the_view_with_five_axes(kit):
    key, value = kit.tokens(3, 2, 64, torch.int8), kit.tokens(3, 2, 32, torch.int8)
    flat = kit.nz_cache(2, 4, 2, 64, torch.int8), kit.nz_cache(2, 4, 2, 32, torch.int8)
    folded = flat[0].clone().view(2, 2, 2, 4, 32), flat[1].clone().view(2, 2, 1, 4, 32)
    scatter(key, value, *flat, torch.tensor([6, 1, 4]))
    scatter(key, value, *folded, torch.tensor([6, 1, 4]))
    assert torch.equal(folded[0].flatten(), flat[0].flatten())
    assert torch.equal(folded[1].flatten(), flat[1].flatten())


def test_leaving_out_the_mode_on_an_nd_cache_is_refused(kit):
    key = kit.tokens(1, 2, 32)
    k, v = kit.nd_cache(3, 4, 2, 32), kit.nd_cache(3, 4, 2, 32)
    message = r"key_cache was of shape \[3, 4, 2, 32\]; allowed: \[any, 4, 2, 16\]"
    with pytest.raises(OperatorRejected, match=message):
        scatter(key, key, k, v, torch.tensor([5]))
    assert not k.any()
    assert not v.any()


def test_leaving_out_the_mode_scrambles_an_nd_cache_where_shapes_are_not_checked(kit):
    """[3, 4, 2, 32]: the last but one axis, 2 heads, is taken for the block size; slot 5 is row 1 of block 2.

    A token has 4 tiles, so its rows of 16 are (2 * 2 * 4) + 1 + (0, 2, 4, 6). In ND they are 20 to 23.
    """
    key = kit.tokens(1, 2, 32)
    k, v = kit.nd_cache(3, 4, 2, 32), kit.nd_cache(3, 4, 2, 32)
    with kit.changed(scatter_pa_nz_shapes="unchecked"):
        scatter(key, key, k, v, torch.tensor([5]))
    assert k.view(-1, 16).any(1).nonzero().flatten().tolist() == [17, 19, 21, 23]
    assert torch.equal(k.view(-1, 16)[[17, 19, 21, 23]], key.view(4, 16))
    assert not torch.equal(k, kit.written(torch.zeros_like(k), key, [5], nz=False))


def test_norm_on_fractal_nz_writes_rows_across_the_tiles(kit):
    """The mode decides: bytes behind the address are written as ND, whatever the format says."""
    key = kit.tokens(1, 2, 16)
    k, v = kit.cast(kit.nd_cache(2, 16, 2, 16)), kit.nd_cache(2, 16, 2, 16)
    scatter(key, key, k, v, torch.tensor([8]), cache_mode="Norm")
    assert torch.equal(physical(k).view(-1, 32)[8], key.flatten())
    assert torch.equal(k[0, 1], key[0])
    assert torch.equal(v[0, 8], key[0])


def test_int8_keys_with_values_of_16_bit(kit):
    key, value = kit.tokens(2, 1, 64, torch.int8), kit.tokens(2, 1, 32, torch.bfloat16)
    k, v = kit.nz_cache(2, 4, 1, 64, torch.int8), kit.nz_cache(2, 4, 1, 32, torch.bfloat16)
    expected = kit.written(k, key, [3, 6], nz=True), kit.written(v, value, [3, 6], nz=True)
    scatter(key, value, k, v, torch.tensor([3, 6]))
    assert torch.equal(k, expected[0])
    assert torch.equal(v, expected[1])
    message = "value was bfloat16; allowed: int8, as key"
    with kit.changed(scatter_pa_mixed_dtypes="rejected"), pytest.raises(OperatorRejected, match=message):
        scatter(key, value, k, v, torch.tensor([3, 6]))
    message = "value was int8; allowed: bfloat16, the dtype of key, which is not int8"
    with pytest.raises(OperatorRejected, match=message):
        scatter(value, key, v, k, torch.tensor([3, 6]))


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
def test_dtypes_of_other_cards(kit, dtype, mode):
    nz = mode == "PA_NZ"
    key = kit.tokens(3, 1, 64, dtype)
    make = kit.nz_cache if nz else kit.nd_cache
    k, v = make(2, 4, 1, 64, dtype), make(2, 4, 1, 64, dtype)
    arguments = (key, key, k, v, torch.tensor([6, 0, 3]))
    with pytest.raises(OperatorRejected, match=r"key was .*; allowed: float16 or bfloat16 or int8 \[aclnn 161002\]"):
        scatter(*arguments, cache_mode=mode)
    with kit.changed(scatter_pa_dtypes=(str(dtype).removeprefix("torch."),)):
        scatter(*arguments, cache_mode=mode)
    expected = kit.written(torch.zeros_like(k), key, [6, 0, 3], nz=nz)
    assert torch.equal(k.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(v.view(torch.uint8), expected.view(torch.uint8))


def test_functional_leaves_the_caches_alone(kit):
    key, value = kit.tokens(2, 2, 16), kit.tokens(2, 2, 32)
    k, v = kit.nd_cache(2, 4, 2, 16), kit.nd_cache(2, 4, 2, 32)
    slots = torch.tensor([5, 2])
    result = torch.ops.npu.npu_scatter_pa_kv_cache_functional(key, value, k, v, slots, cache_mode="Norm")
    assert not k.any()
    assert not v.any()
    scatter(key, value, k, v, slots, cache_mode="Norm")
    assert torch.equal(result[0], k)
    assert torch.equal(result[1], v)


def test_writes_reach_the_storage_through_views(kit):
    pool = torch.zeros(2, 12, 1, 16, dtype=torch.float16)
    key = kit.tokens(1, 1, 16)
    scatter(key, key, pool[0].view(3, 4, 1, 16), pool[1].view(3, 4, 1, 16), torch.tensor([6]), cache_mode="Norm")
    assert torch.equal(pool[:, 6], key.expand(2, 1, 16))
    assert pool.count_nonzero() == 32


def test_equal_slots_keep_the_last_token(kit):
    key = kit.tokens(64, 1, 16)
    k, v = kit.nd_cache(2, 64, 1, 16), kit.nd_cache(2, 64, 1, 16)
    scatter(key, key, k, v, torch.tensor([3, 7] * 32), cache_mode="Norm")
    assert torch.equal(k.view(-1, 16)[[3, 7]], key[-2:, 0])
    assert k.count_nonzero() == 32


@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
def test_slots_beyond_the_cache_fault_and_nothing_is_written(kit, mode):
    key = kit.tokens(2, 1, 16)
    make = kit.nz_cache if mode == "PA_NZ" else kit.nd_cache
    k, v = make(2, 4, 1, 16), make(2, 4, 1, 16)
    with pytest.raises(DeviceFault, match=r"npu_scatter_pa_kv_cache: slot_mapping\[1\] is 8, key_cache has 8 slots"):
        scatter(key, key, k, v, torch.tensor([0, 8]), cache_mode=mode)
    assert not k.any()
    assert not v.any()


def test_more_slots_than_tokens_are_ignored_and_fewer_fault(kit):
    key, k, v = kit.tokens(2, 1, 16), kit.nd_cache(2, 4, 1, 16), kit.nd_cache(2, 4, 1, 16)
    scatter(key, key, k, v, torch.tensor([0, 1, 99]), cache_mode="Norm")
    with pytest.raises(DeviceFault, match="slot_mapping has 1 slots for 2 tokens"):
        scatter(key, key, k, v, torch.tensor([0]), cache_mode="Norm")


@pytest.mark.parametrize("argument", ["key", "value", "key_cache", "value_cache", "slot_mapping"])
def test_gaps_are_undefined(kit, argument):
    arguments = case(kit)
    arguments[argument] = arguments[argument].repeat_interleave(2, -1)[..., ::2]
    assert not arguments[argument].is_contiguous()
    with pytest.raises(UndefinedBehaviour, match=f"{argument} is not contiguous, strides"):
        scatter(*arguments.values(), cache_mode="Norm")


def case(kit, **changes):
    good = {
        "key": kit.tokens(2, 2, 16),
        "value": kit.tokens(2, 2, 32),
        "key_cache": kit.nd_cache(3, 4, 2, 16),
        "value_cache": kit.nd_cache(3, 4, 2, 32),
        "slot_mapping": torch.tensor([0, 1]),
    }
    return good | changes


@pytest.mark.parametrize(
    ("argument", "shape", "message"),
    [
        ("key", (2, 32), r"key was of rank 2, \[2, 32\]; allowed: rank 3, \[tokens, kv heads, dim\]"),
        ("key", (13, 2, 16), r"value was of shape \[2, 2, 32\]; allowed: \[13, 2, any\]"),
        ("key", (0, 2, 16), r"key was empty, \[0, 2, 16\]; allowed: at least one token"),
        (
            "value",
            (2, 1, 32),
            r"value was of shape \[2, 1, 32\]; allowed: \[2, 2, any\], the tokens and kv heads of key",
        ),
        ("value", (2, 2, 0), r"value was empty"),
        ("key_cache", (12, 2, 16), r"key_cache was of rank 3.*rank 4, \[blocks, block size, kv heads, dim\]"),
        ("key_cache", (3, 4, 2, 1, 16), r"key_cache was of rank 5"),
        ("key_cache", (3, 4, 1, 16), r"key_cache was of shape \[3, 4, 1, 16\]; allowed: \[3, 4, 2, 16\]"),
        ("value_cache", (3, 4, 2, 16), r"value_cache was of shape \[3, 4, 2, 16\]; allowed: \[3, 4, 2, 32\]"),
        ("value_cache", (3, 8, 2, 32), r"value_cache was of shape"),
        ("value_cache", (2, 4, 2, 32), r"value_cache was of 2 blocks; allowed: the 3 blocks of key_cache"),
    ],
)
def test_refused_shapes(kit, argument, shape, message):
    arguments = case(kit, **{argument: torch.zeros(shape, dtype=torch.float16)})
    with pytest.raises(OperatorRejected, match=f"npu_scatter_pa_kv_cache: {message}") as error:
        scatter(*arguments.values(), cache_mode="Norm")
    assert "561002" in str(error.value)


def test_more_tokens_than_slots_are_refused(kit):
    arguments = case(kit, key=kit.tokens(13, 2, 16), value=kit.tokens(13, 2, 32), slot_mapping=torch.arange(13))
    message = "key_cache was of 12 slots; allowed: at least one for each of 13 tokens"
    with pytest.raises(OperatorRejected, match=message):
        scatter(*arguments.values(), cache_mode="Norm")


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_BNSD", "norm", "NZ", "('Norm',)"])
def test_refused_modes(kit, mode):
    with pytest.raises(OperatorRejected, match=r"cache_mode was .*; allowed: 'PA_NZ', 'Norm', '' or None"):
        scatter(*case(kit).values(), cache_mode=mode)


def test_refused_dtypes(kit):
    def refused(match, **changes):
        with pytest.raises(OperatorRejected, match=match):
            scatter(*case(kit, **changes).values(), cache_mode="Norm")

    refused("slot_mapping was int16; allowed: int32 or int64", slot_mapping=torch.tensor([0, 1], dtype=torch.int16))
    refused("slot_mapping was of rank 2", slot_mapping=torch.tensor([[0], [1]]))
    refused("key_cache was int8; allowed: float16, as key", key_cache=kit.nd_cache(3, 4, 2, 16, torch.int8))
    refused("value_cache was int8; allowed: float16, as value", value_cache=kit.nd_cache(3, 4, 2, 32, torch.int8))
    refused("value was int32", value=kit.tokens(2, 2, 32, torch.int32))


def test_nz_heads_fill_tiles(kit):
    key = kit.tokens(1, 2, 24)
    k = torch.zeros(2, 3, 4, 16, dtype=torch.float16)
    message = "key was of head dim 24 in float16, 48 bytes; allowed: a multiple of 32 bytes in cache_mode PA_NZ"
    with pytest.raises(OperatorRejected, match=message):
        scatter(key, key, k, k.clone(), torch.tensor([0]))
    with pytest.raises(OperatorRejected, match="value was of head dim 48 in int8, 48 bytes"):
        scatter(
            kit.tokens(1, 1, 32, torch.int8),
            kit.tokens(1, 1, 48, torch.int8),
            kit.nz_cache(1, 4, 1, 32, torch.int8),
            kit.nz_cache(1, 4, 1, 64, torch.int8),
            torch.tensor([0]),
        )


def test_nz_blocks_have_at_most_65535_tokens(kit):
    key = kit.tokens(1, 1, 16)
    k = kit.nz_cache(1, 65536, 1, 16)
    with pytest.raises(OperatorRejected, match="key_cache was of block size 65536; allowed: 1 to 65535"):
        scatter(key, key, k, k.clone(), torch.tensor([0]))


def test_nz_shapes(kit):
    key, value = kit.tokens(1, 2, 32), kit.tokens(1, 2, 16)
    k, v = kit.nz_cache(2, 4, 2, 32), kit.nz_cache(2, 4, 2, 16)
    scatter(key, value, k, v, torch.tensor([0]))
    wide, folded = k.clone(), k.clone().view(2, 1, 4, 4, 16)
    refused = {
        r"value_cache was of shape \[2, 4, 4, 16\]; allowed: \[any, 2, 4, 16\]": (k, wide),
        r"key_cache was of shape \[2, 1, 4, 4, 16\]; allowed: \[any, 2, 2, 4, 16\]": (folded, v),
    }
    for message, both in refused.items():
        with pytest.raises(OperatorRejected, match=message):
            scatter(key, value, *both, torch.tensor([0]))
        with kit.changed(scatter_pa_nz_shapes="unchecked"):
            scatter(key, value, *both, torch.tensor([0]))
    for name in PROFILES:
        assert PROFILES[name].scatter_pa_nz_shapes == "checked"


@pytest.mark.parametrize("argument", ["compress_lens", "compress_seq_offsets", "seq_lens"])
def test_the_compression_scene_is_not_simulated(kit, argument):
    with pytest.raises(NotSimulated, match=f"{argument} was given, which is not simulated"):
        scatter(*case(kit).values(), **{argument: torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(NotSimulated, match="key was of rank 4, the compression scene"):
        scatter(*case(kit, key=torch.zeros(1, 2, 2, 16, dtype=torch.float16)).values())
