"""Where every byte goes, in every cache mode; addresses are worked out by hand or with plain loops."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

DTYPES = [torch.float16, torch.bfloat16]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def filled(cache, mark, places, values):
    """Return what a cache must hold, flat: the mark, but for each token's elements at ``places[token]``."""
    expected = torch.full((cache.numel(),), mark, dtype=cache.dtype)
    for token, addresses in places.items():
        for element, address in enumerate(addresses):
            expected[address] = values[token][element]
    return expected


def plain(slot, dim):
    return [slot * dim + d for d in range(dim)]


def fractal(slot, dim, block_size, width=16):
    block, row = divmod(slot, block_size)
    base = block * block_size * dim
    return [base + (d // width) * block_size * width + row * width + d % width for d in range(dim)]


def check(kv, inputs, both, places):
    for cache, values, dim in zip(both, kv.outputs(inputs), (64, 512), strict=True):
        where = {token: place(dim) for token, place in places.items()}
        assert torch.equal(cache.flatten(), filled(cache, kv.MARK, where, values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(kv, dtype):
    inputs, both = kv.inputs(2, 3, dtype=dtype), kv.caches(2, 5, norm=True, dtype=dtype)
    kv.call(inputs, [[4, 0, 2], [1, -1, 0]], both)
    # The second sequence begins at row 5; its second token is not written.
    slots = {0: 4, 1: 0, 2: 2, 3: 6, 5: 5}
    check(kv, inputs, both, {t: lambda dim, s=s: plain(s, dim) for t, s in slots.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["PA", "PA_BNSD"])
def test_paged(kv, dtype, mode):
    inputs, both = kv.inputs(2, 3, dtype=dtype), kv.caches(3, 4, dtype=dtype)
    kv.call(inputs, [11, 0, 5, -1, 4, 7], both, cache_mode=mode)
    slots = {0: 11, 1: 0, 2: 5, 4: 4, 5: 7}
    check(kv, inputs, both, {t: lambda dim, s=s: plain(s, dim) for t, s in slots.items()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_fractal(kv, dtype):
    inputs, both = kv.inputs(2, 3, dtype=dtype), kv.caches(3, 4, dtype=dtype)
    kv.call(inputs, [11, 0, 5, -7, 4, 7], both, cache_mode="PA_NZ")
    slots = {0: 11, 1: 0, 2: 5, 4: 4, 5: 7}
    check(kv, inputs, both, {t: lambda dim, s=s: fractal(s, dim, 4) for t, s in slots.items()})


def test_fractal_addresses_by_hand(kv):
    inputs, both = kv.inputs(1, 1), kv.caches(3, 4)
    kv.call(inputs, [5], both, cache_mode="PA_NZ")
    rope, latent = kv.outputs(inputs)
    # Slot 5 is row 1 of block 1. A block of the rope cache has 256 elements, in 4 tiles of 4 rows of 16.
    flat = both[0].flatten()
    for element, address in {0: 272, 15: 287, 16: 336, 17: 337, 32: 400, 48: 464, 63: 479}.items():
        assert flat[address] == rope[0, element]
    # A block of the latent cache has 2,048 elements, in 32 tiles.
    flat = both[1].flatten()
    for element, address in {0: 2064, 16: 2128, 511: 2048 + 31 * 64 + 16 + 15}.items():
        assert flat[address] == latent[0, element]


def test_fractal_addresses_of_int8_by_hand(kv):
    inputs, both = kv.inputs(1, 1), kv.caches(3, 4, dtype=torch.int8)
    scales = {"k_rope_scale": torch.full((64,), 90.0), "c_kv_scale": torch.full((512,), 60.0)}
    kv.call(inputs, [5], both, cache_mode="PA_NZ", **scales)
    straight = kv.caches(3, 4, dtype=torch.int8)
    kv.call(inputs, [5], straight, cache_mode="PA_BNSD", **scales)
    # Rows of a tile have 32 elements: two tiles per block of the rope cache.
    for element, address in {0: 288, 31: 319, 32: 416, 63: 447}.items():
        assert both[0].flatten()[address] == straight[0][1, 1, 0, element]
    for cache, right, dim in zip(both, straight, (64, 512), strict=True):
        assert cache.flatten()[fractal(5, dim, 4, 32)].tolist() == right[1, 1, 0].tolist()
        assert (cache == kv.MARK).sum() >= cache.numel() - dim


BLOCKWISE = {
    # Sequences of 5 with blocks of 4 have two entries each; an entry names a block by its first slot.
    "entries": [8, 0, -1, 12],
    # Token 4 of sequence 0 is row 0 of block 0; tokens 0 to 3 of sequence 1 are not written.
    "slots": {0: 8, 1: 9, 2: 10, 3: 11, 4: 0, 9: 12},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "address"), [("PA_BLK_BNSD", None), ("PA_BLK_NZ", fractal)])
def test_by_blocks(kv, dtype, mode, address):
    inputs, both = kv.inputs(2, 5, dtype=dtype), kv.caches(5, 4, dtype=dtype)
    kv.call(inputs, BLOCKWISE["entries"], both, cache_mode=mode)
    place = (lambda s: lambda dim: fractal(s, dim, 4)) if address else (lambda s: lambda dim: plain(s, dim))
    check(kv, inputs, both, {t: place(s) for t, s in BLOCKWISE["slots"].items()})


@pytest.mark.parametrize("mode", ["PA_BLK_BNSD", "PA_BLK_NZ"])
def test_an_entry_counts_by_its_block(kv, mode):
    inputs, both, other = kv.inputs(1, 3), kv.caches(3, 4), kv.caches(3, 4)
    kv.call(inputs, [4], both, cache_mode=mode)
    kv.call(inputs, [6], other, cache_mode=mode)
    assert all(torch.equal(a, b) for a, b in zip(both, other, strict=True))


@pytest.mark.parametrize(("mode", "shuffle"), [("PA_BLK_NZ", True), ("PA_BLK_BNSD", False), ("PA_NZ", True)])
def test_int8_modes_differ_in_order_only(kv, mode, shuffle):
    inputs, by_token = kv.inputs(1, 6), [8, 9, 10, 11, 0, 1]
    scales = {"k_rope_scale": torch.full((64,), 90.0), "c_kv_scale": torch.full((512,), 60.0)}
    both, straight = kv.caches(3, 4, dtype=torch.int8), kv.caches(3, 4, dtype=torch.int8)
    kv.call(inputs, [8, 0] if "BLK" in mode else by_token, both, cache_mode=mode, **scales)
    kv.call(inputs, by_token, straight, cache_mode="PA", **scales)
    for cache, right in zip(both, straight, strict=True):
        dim = cache.shape[-1]
        if shuffle:
            cache = cache.view(3, dim // 32, 4, 32).permute(0, 2, 1, 3).reshape(right.shape)  # noqa: PLW2901
        assert torch.equal(cache, right)


def test_views_of_a_larger_pool_are_written_where_they_lie(kv):
    pools = [torch.full((4, 3, 4, 1, dim), kv.MARK).bfloat16() for dim in (64, 512)]
    inputs = kv.inputs(1, 2)
    kv.call(inputs, [3, 8], [pool[2] for pool in pools], cache_mode="PA_BNSD")
    for pool, values in zip(pools, kv.outputs(inputs), strict=True):
        assert torch.equal(pool[2, 0, 3, 0], values[0])
        assert torch.equal(pool[2, 2, 0, 0], values[1])
        assert (pool[[0, 1, 3]] == kv.MARK).all()


def test_every_token_may_be_a_batch_of_its_own(kv):
    # As sglang calls it: kv.view(-1, 1, 1, 576), more tokens than blocks.
    inputs, both = kv.inputs(7, 1), kv.caches(2, 4)
    kv.call(inputs, range(1, 8), both, cache_mode="PA_BNSD")
    check(kv, inputs, both, {t: lambda dim, t=t: plain(t + 1, dim) for t in range(7)})


@pytest.mark.parametrize(
    ("mode", "index", "message"),
    [
        ("PA", [0, 12, 1], "index of token 1 is 12, the caches have 12 slots"),
        ("PA_NZ", [0, 1, 99], "index of token 2 is 99"),
        ("PA_BLK_BNSD", [12], "index of token 0 is 12"),
        ("PA_BLK_NZ", [13], "index of token 0 is 13"),
    ],
)
def test_slots_outside_the_caches(kv, mode, index, message):
    both = kv.caches(3, 4)
    with pytest.raises(DeviceFault, match=message):
        kv.call(kv.inputs(1, 3), index, both, cache_mode=mode)
    assert (both[0] == kv.MARK).all()


def test_positions_beyond_the_cache_length(kv):
    inputs, both = kv.inputs(2, 2), kv.caches(2, 4, norm=True)
    with pytest.raises(UndefinedBehaviour, match="index of token 0 is 4, beyond cache length 4: it falls into"):
        kv.call(inputs, [[4, 0], [0, 1]], both)
    with pytest.raises(DeviceFault, match="index of token 3 is 4, the caches have 8 slots"):
        kv.call(inputs, [[3, 0], [0, 4]], both)


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
def test_two_tokens_for_one_slot(kv, mode):
    inputs, both = kv.inputs(1, 4), kv.caches(2, 4)
    kv.call(inputs, [0, 5, 0, 2], both, cache_mode=mode)
    place = (lambda s: lambda dim: fractal(s, dim, 4)) if mode == "PA_NZ" else (lambda s: lambda dim: plain(s, dim))
    for cache, values, dim in zip(both, kv.outputs(inputs), (64, 512), strict=True):
        where = {0: place(0)(dim), 1: place(5)(dim), 3: place(2)(dim)}
        values[0] = unwritten((dim,), torch.bfloat16)
        assert torch.equal(cache.flatten(), filled(cache, kv.MARK, where, values))
    both = kv.caches(2, 4)
    with changed(kv_rmsnorm_duplicate_index="last_token"):
        kv.call(inputs, [0, 5, 0, 2], both, cache_mode=mode)
    check(kv, inputs, both, {1: place(5), 2: place(0), 3: place(2)})
