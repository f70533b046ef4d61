"""``npu_gather_pa_kv_cache`` and its functional form."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected, UndefinedBehaviour

DTYPES = [torch.float16, torch.bfloat16, torch.int8]
TABLE = [[4, 2, 0], [1, 3, 5]]


def gather(*arguments, **options):
    return torch.ops.npu.npu_gather_pa_kv_cache(*arguments, **options)


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def pages(blocks, block_size, heads, dim, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 120, (blocks, block_size, heads, dim), generator=generator).to(dtype)


def as_nz(cache):
    """Return [blocks, heads * dim / C0, block size, C0] with the same tokens."""
    blocks, block_size, heads, dim = cache.shape
    c0 = 32 // cache.itemsize
    return (
        cache.view(blocks, block_size, heads * dim // c0, c0)
        .transpose(1, 2)
        .clone(memory_format=torch.contiguous_format)
    )


def expected(cache, table, lengths, starts):
    """Return the tokens of sequences that begin at blocks."""
    rows = []
    for blocks, length, start in zip(table, lengths, starts, strict=True):
        rows += [cache[blocks[start + t // cache.shape[1]], t % cache.shape[1]] for t in range(length)]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize(
    ("lengths", "offset", "starts"),
    [([9, 5], None, [0, 0]), ([5, 8], [4, 0], [1, 0]), ([0, 3], [3, 7], [0, 1]), ([1, 0], [8, 0], [2, 0])],
)
def test_nd(dtype, cumulative, lengths, offset, starts):
    """Offsets count tokens and are rounded down to blocks of 4; rows behind the last token stay."""
    k, v = pages(6, 4, 2, 16, dtype), pages(6, 4, 2, 8, dtype, seed=1)
    key, value = torch.zeros(15, 2, 16, dtype=dtype), torch.zeros(15, 2, 8, dtype=dtype)
    seq_lens = int32([0, lengths[0], sum(lengths)] if cumulative else lengths)
    options = {} if offset is None else {"seq_offset": int32(offset)}
    assert gather(k, v, int32(TABLE), seq_lens, key, value, is_seq_lens_cumsum=cumulative, **options) is None
    total = sum(lengths)
    assert torch.equal(key[:total], expected(k, TABLE, lengths, starts))
    assert torch.equal(value[:total], expected(v, TABLE, lengths, starts))
    assert not key[total:].any()
    assert not value[total:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("offset", "starts"), [(None, [0, 0]), ([17, 0], [1, 0])])
def test_a_key_cache_in_fractal_nz_selects_nz(kit, dtype, offset, starts):
    k, v = pages(6, 16, 2, 32, dtype), pages(6, 16, 2, 64, dtype, seed=1)
    key, value = torch.zeros(40, 64, dtype=dtype), torch.zeros(40, 128, dtype=dtype)
    lengths = [21, 19]
    options = {} if offset is None else {"seq_offset": int32(offset)}
    gather(kit.cast(as_nz(k)), kit.cast(as_nz(v)), int32(TABLE), int32(lengths), key, value, **options)
    assert torch.equal(key, expected(k, TABLE, lengths, starts).flatten(1))
    assert torch.equal(value, expected(v, TABLE, lengths, starts).flatten(1))


def test_the_value_cache_needs_no_tag_and_decides_nothing(kit):
    k = pages(6, 16, 2, 16)
    key, value = torch.zeros(3, 32, dtype=torch.float16), torch.zeros(3, 32, dtype=torch.float16)
    gather(kit.cast(as_nz(k)), as_nz(k), int32(TABLE), int32([2, 1]), key, value)
    assert torch.equal(key, value)
    assert torch.equal(key, expected(k, TABLE, [2, 1], [0, 0]).flatten(1))
    rows = torch.zeros(3, 2, 16, dtype=torch.float16)
    gather(k, kit.cast(torch.zeros_like(k)), int32(TABLE), int32([2, 1]), rows, torch.ones_like(rows))
    assert torch.equal(rows, expected(k, TABLE, [2, 1], [0, 0]))


def test_nz_offsets_can_count_blocks(kit):
    k = pages(6, 16, 1, 16)
    key, value = torch.zeros(2, 16, dtype=torch.float16), torch.zeros(2, 16, dtype=torch.float16)
    with kit.changed(gather_pa_nz_offset="blocks"):
        nz = kit.cast(as_nz(k))
        gather(nz, nz, int32(TABLE), int32([1, 1]), key, value, seq_offset=int32([2, 1]))
    assert torch.equal(key, expected(k, TABLE, [1, 1], [2, 1]).flatten(1))


def test_functional_leaves_the_outputs_alone():
    k = pages(6, 4, 2, 16)
    key, value = torch.zeros(7, 2, 16, dtype=torch.float16), torch.ones(7, 2, 16, dtype=torch.float16)
    arguments = (k, k, int32(TABLE), int32([3, 2]), key, value)
    result = torch.ops.npu.npu_gather_pa_kv_cache_functional(*arguments)
    assert not key.any()
    gather(*arguments)
    assert torch.equal(result[0], key)
    assert torch.equal(result[1], value)
    assert (value[5:] == 1).all()


def test_gathering_undoes_scattering(kit):
    key, value = kit.tokens(20, 2, 16), kit.tokens(20, 2, 32, seed=1)
    k, v = kit.nd_cache(6, 4, 2, 16), kit.nd_cache(6, 4, 2, 32)
    slots = [4 * TABLE[s][t // 4] + t % 4 for s, length in enumerate([11, 9]) for t in range(length)]
    torch.ops.npu.npu_scatter_pa_kv_cache(key, value, k, v, torch.tensor(slots), cache_mode="Norm")
    out = torch.zeros_like(key), torch.zeros_like(value)
    gather(k, v, int32(TABLE), int32([11, 9]), *out)
    assert torch.equal(out[0], key)
    assert torch.equal(out[1], value)


def case(**changes):
    good = {
        "key_cache": pages(6, 4, 2, 16),
        "value_cache": pages(6, 4, 2, 16),
        "block_tables": int32(TABLE),
        "seq_lens": int32([5, 4]),
        "key": torch.zeros(9, 2, 16, dtype=torch.float16),
        "value": torch.zeros(9, 2, 16, dtype=torch.float16),
    }
    return (good | changes).values()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"block_tables": int32([[4, 6, 0], TABLE[1]])}, {}, r"block_tables\[0, 1\] is 6, and the cache has 6 blocks"),
        ({"block_tables": int32([TABLE[0], [-1, 3, 5]])}, {}, r"block_tables\[1, 0\] is -1, and the cache"),
        ({"block_tables": int32([[4], [1]])}, {}, r"block_tables\[0, 1\] is read, and the table has 1 columns"),
        ({}, {"seq_offset": int32([0, 12])}, r"block_tables\[1, 3\] is read, and the table has 3 columns"),
        ({}, {"seq_offset": int32([-4, 0])}, r"block_tables\[0, -1\] is read"),
        ({"seq_lens": int32([5, 5])}, {}, r"seq_lens has 10 tokens, and key has 9 rows"),
    ],
)
def test_faults(changes, options, message):
    with pytest.raises(DeviceFault, match=f"npu_gather_pa_kv_cache: {message}"):
        gather(*case(**changes), **options)


def test_missing_blocks_can_be_zeros(kit):
    arguments = list(case(block_tables=int32([[4, 6], [-1, 3]])))
    arguments[4].fill_(9)
    with kit.changed(gather_pa_missing_block="zeros"):
        gather(*arguments)
    assert torch.equal(arguments[4][:4], arguments[0][4])
    assert not arguments[4][4:].any()


def test_unused_columns_of_the_table_are_not_read():
    gather(*case(block_tables=int32([[4, 2, 99], [1, -7, 99]])))


@pytest.mark.parametrize(
    ("seq_lens", "cumulative", "message"),
    [
        ([5, -1], False, "the length of sequence 1 is -1"),
        ([0, 5, 4], True, "the length of sequence 1 is -1"),
        ([1, 5, 9], True, "seq_lens is cumulative and begins with 1, not with 0"),
    ],
)
def test_undefined_lengths(seq_lens, cumulative, message):
    with pytest.raises(UndefinedBehaviour, match=message):
        gather(*case(seq_lens=int32(seq_lens)), is_seq_lens_cumsum=cumulative)


def half(*shape):
    return torch.zeros(shape, dtype=torch.float16)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"block_tables": int32([1, 2])}, {}, r"block_tables was of rank 1"),
        ({"block_tables": torch.tensor(TABLE)}, {}, r"block_tables was int64; allowed: int32"),
        ({"block_tables": torch.zeros(2, 0, dtype=torch.int32)}, {}, r"block_tables was empty, of shape \[2, 0\]"),
        ({"seq_lens": int32([5])}, {}, r"seq_lens was of shape \[1\]; allowed: \[2\], as block_tables"),
        ({}, {"is_seq_lens_cumsum": True}, r"seq_lens was of shape \[2\]; allowed: \[3\], as block_tables"),
        ({"seq_lens": torch.tensor([5, 4])}, {}, r"seq_lens was int64; allowed: int32"),
        ({}, {"seq_offset": torch.tensor([0, 4])}, r"seq_offset was int64; allowed: int32"),
        ({}, {"seq_offset": int32([0])}, r"seq_offset was of shape \[1\]; allowed: \[2\], one per sequence"),
        ({"key_cache": pages(6, 4, 2, 16, torch.float32)}, {}, r"key_cache was float32; allowed: int8 or float16"),
        ({"value": torch.zeros(9, 2, 16)}, {}, r"value was float32; allowed: float16, as key_cache"),
        ({"key": half(9, 32)}, {}, r"key was of rank 2, .*rank 3, \[tokens, kv heads, dim\]"),
        ({"key": half(9, 2, 8)}, {}, r"key_cache was of shape \[6, 4, 2, 16\]; allowed: \[6, 4, 2, 8\]"),
        ({"value": half(8, 2, 16)}, {}, r"value was of shape \[8, 2, 16\]; allowed: \[9, any, any\], as many tokens"),
        ({"value_cache": half(5, 4, 2, 16)}, {}, r"value_cache was of shape \[5, 4, 2, 16\]; allowed: \[6, 4, 2, 16\]"),
        ({"key_cache": half(24, 2, 16)}, {}, r"key_cache was of rank 3"),
        ({"key": half(0, 2, 16)}, {}, r"key was empty"),
    ],
)
def test_refusals(changes, options, message):
    with pytest.raises(OperatorRejected, match=message):
        gather(*case(**changes), **options)


def test_refusals_in_fractal_nz(kit):
    k = kit.cast(as_nz(pages(6, 16, 2, 16)))
    with pytest.raises(OperatorRejected, match=r"key was of rank 3, .*\[tokens, kv heads \* dim\] for a key cache"):
        gather(*case(key_cache=k, value_cache=k))
    with pytest.raises(OperatorRejected, match=r"key_cache was of shape \[6, 2, 16, 16\]; allowed: \[6, 1, 16, 16\]"):
        gather(*case(key_cache=k, value_cache=k, key=half(9, 16), value=half(9, 32)))
    with pytest.raises(OperatorRejected, match="key was of 40 elements per token; allowed: a multiple of 16"):
        gather(*case(key_cache=k, value_cache=k, key=half(9, 40), value=half(9, 40)))


@pytest.mark.parametrize("position", range(6))
def test_gaps_are_undefined(position):
    arguments = list(case())
    arguments[position] = arguments[position].repeat_interleave(2, -1)[..., ::2]
    with pytest.raises(UndefinedBehaviour, match="is not contiguous, strides"):
        gather(*arguments)
