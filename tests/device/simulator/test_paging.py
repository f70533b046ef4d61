"""Pages: what is read, what is not, and what happens outside the cache."""

import math

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected

TND, BSND = "TND", "BSND"


def poisoned(lab, query_lengths, key_lengths, block_size, *, rank=3):
    """Pack so that every slot beyond the keys, and every block outside the table, is NaN."""
    sequences = lab.ragged(query_lengths, key_lengths)
    return sequences, lab.pack(sequences, TND, block_size=block_size, rank=rank, fill=math.nan)


@pytest.mark.few(32)
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("block_size", [16, 48, 128, 1024])
@pytest.mark.parametrize("key_length", [1, 15, 16, 17, 511, 512, 513, 1025])
def test_nothing_beyond_the_actual_length_is_read(lab, block_size, key_length, rank):
    _, arguments = poisoned(lab, [1], [key_length], block_size, rank=rank)
    output, lse = lab.call(arguments)
    assert torch.isfinite(output).all()
    assert torch.isfinite(lse).all()


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD", "TND"])
def test_nothing_beyond_the_actual_length_is_read_without_pages(lab, layout):
    sequences = lab.ragged([2, 3], [4, 700])
    output, _ = lab.call(lab.pack(sequences, layout, fill=math.nan))
    assert torch.isfinite(output).all()


def test_a_poisoned_value_that_is_seen_reaches_its_key_head_only(lab):
    sequences, arguments = poisoned(lab, [2], [40], 128)
    sequences.values[0][1, 7] = math.nan
    arguments = lab.pack(sequences, TND, block_size=128)
    output, _ = lab.call(arguments)
    assert output[:, :2].isfinite().all()
    assert output[:, 2:].isnan().all()


def test_a_poisoned_key_that_a_mask_hides_does_no_harm(lab):
    """Hidden scores are replaced, whatever they were."""
    sequences = lab.ragged([1], [40])
    sequences.keys[0][:, 7] = math.nan
    hidden = torch.zeros(1, 1, 40, dtype=torch.bool)
    hidden[..., 7] = True
    output, _ = lab.call(lab.pack(sequences, BSND) | {"atten_mask": hidden})
    assert output.isfinite().all()


def test_a_poisoned_value_that_a_mask_hides_is_multiplied_by_zero(lab):
    """The tile is loaded and multiplied: 0 * NaN is NaN on hardware too, and large numbers vanish."""
    hidden = torch.zeros(1, 1, 40, dtype=torch.bool)
    hidden[..., 7] = True
    for poison, finite in ((math.nan, False), (3e38, True)):
        sequences = lab.ragged([1], [40])
        sequences.values[0][:, 7] = poison
        output, _ = lab.call(lab.pack(sequences, BSND) | {"atten_mask": hidden})
        assert output.isfinite().all() == finite


def test_tiles_that_only_a_mask_hides_are_multiplied_too(lab):
    hidden = torch.zeros(1, 1, 1100, dtype=torch.bool)
    hidden[..., :600] = True
    sequences = lab.ragged([1], [1100])
    sequences.values[0][:, 5] = math.nan
    output, _ = lab.call(lab.pack(sequences, BSND) | {"atten_mask": hidden})
    assert output.isnan().all()


@pytest.mark.parametrize("mode", [3, 4])
def test_tiles_outside_the_band_are_not_touched(lab, mode):
    """Evicted pages: their values may be NaN and their ids may point anywhere."""
    sequences = lab.ragged([1, 2], [1600, 1024])
    arguments = lab.pack(sequences, TND, block_size=128, fill=9.0)
    clean, _ = lab.call(arguments | band(lab, 4))
    for batch, length in ((0, 1600), (1, 1024)):
        first = (length - 2 - 20) // 512 * 512
        arguments["block_table"][batch, : first // 128] = 10_000
    if mode == 4:
        output, _ = lab.call(arguments | band(lab, 4))
        assert torch.equal(output, clean)
    else:
        with pytest.raises(DeviceFault):
            lab.call(arguments | band(lab, 3))


def band(lab, mode, pre=20):
    return {"sparse_mode": mode, "pre_tokens": pre, "next_tokens": 0, "atten_mask": lab.template()}


def test_future_tiles_of_a_causal_prefill_are_not_touched(lab):
    """Row tiles are 128 rows: rows 0 to 127 of 1024 never load the second key tile."""
    sequences = lab.ragged([1024], [1024], heads=2, kv_heads=1)
    clean, _ = lab.call(lab.pack(sequences, TND) | band(lab, 3))
    sequences.values[0][:, 512:] = math.nan
    output, _ = lab.call(lab.pack(sequences, TND) | band(lab, 3))
    assert torch.equal(output[:512], clean[:512])
    assert output[512:].isnan().all()


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("block", [-1, 9, 2**31 - 1])
def test_a_block_outside_the_cache_is_a_fault_that_names_it(lab, block, rank):
    _, arguments = poisoned(lab, [1, 1], [10, 300], 128, rank=rank)
    arguments["block_table"][1, 2] = block
    blocks = arguments["key"].shape[0]
    if block == 9:
        arguments["block_table"][1, 2] = block = blocks
    with pytest.raises(
        DeviceFault, match=rf"block_table\[1, 2\] is {block}, and the cache has {blocks} blocks .*507035"
    ):
        lab.call(arguments)


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("key_lengths", [(10, 300), (128, 384), (1, 257)])
def test_table_entries_beyond_the_length_are_not_looked_at(lab, key_lengths, rank):
    _, arguments = poisoned(lab, [1, 1], key_lengths, 128, rank=rank)
    clean, _ = lab.call(arguments)
    arguments["block_table"][0, 1:] = -7
    arguments["block_table"][1, 3:] = 2**30
    assert torch.equal(lab.call(arguments)[0], clean)


def test_sequences_may_share_blocks(lab):
    sequences = lab.ragged([1, 1], [128, 128])
    shared = sequences.keys[0]
    sequences.keys[1][:], sequences.values[1][:] = shared, sequences.values[0]
    arguments = lab.pack(sequences, TND, block_size=128)
    apart, _ = lab.call(arguments)
    arguments["block_table"][1] = arguments["block_table"][0]
    assert torch.equal(lab.call(arguments)[0], apart)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_cache_with_gaps_between_blocks(lab, rank):
    _, arguments = poisoned(lab, [1, 1], [10, 300], 128, rank=rank)
    clean, _ = lab.call(arguments)
    for name in ("key", "value"):
        both = torch.stack([arguments[name], torch.full_like(arguments[name], math.nan)], 1)
        arguments[name] = both[:, 0]
        assert not arguments[name].is_contiguous()
    assert torch.equal(lab.call(arguments)[0], clean)


@pytest.mark.parametrize("name", ["key", "value"])
def test_a_cache_with_gaps_inside_of_its_blocks_is_refused(lab, name):
    """Keys and values that lie side by side in one pool: the operator addresses blocks, and copies none."""
    arguments = lab.pack(lab.ragged([2, 3], [40, 70]), TND, block_size=16, rank=3, fill=9.0)
    cache = arguments[name]
    wide = torch.full((*cache.shape[:-1], 2 * cache.shape[-1]), 9.0, dtype=cache.dtype)
    wide[..., : cache.shape[-1]] = cache
    with pytest.raises(OperatorRejected, match=f"{name} was not contiguous"):
        lab.call(arguments | {name: wide[..., : cache.shape[-1]]})


def test_a_cache_may_have_gaps_between_its_blocks(lab):
    arguments = lab.pack(lab.ragged([2, 3], [40, 70]), TND, block_size=16, rank=3, fill=9.0)
    expected, _ = lab.call(arguments)
    apart = {name: torch.stack([arguments[name]] * 2, dim=1)[:, 0] for name in ("key", "value")}
    assert not apart["key"].is_contiguous()
    assert torch.equal(lab.call(arguments | apart)[0], expected)
