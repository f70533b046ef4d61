"""Where ``npu_mla_prolog`` writes: by address, in place, and nowhere else."""

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault
from npudiff.device.simulator.norms.unwritten import unwritten

pytestmark = pytest.mark.usefixtures("free")
VERSIONS = ["", "_v2", "_v3", "_v3_functional"]


def marked(cache):
    return torch.full_like(cache, 9.0)


def test_addresses_of_nz_by_hand(mla):
    """Blocks of 4, latents of two tiles: slot 5 has rows 9 and 13 of 16 elements, its rope key row 5."""
    given, both = mla.inputs((1,)), mla.caches()
    mla.call(given, [5], both, cache_mode="PA_NZ")
    wanted = mla.expected(given)
    latent, rope = (cache.view(-1, 16) for cache in both)
    assert (latent != mla.MARK).any(1).nonzero().flatten().tolist() == [9, 13]
    assert latent[[9, 13]].flatten().tolist() == wanted.latent[0]
    assert (rope != mla.MARK).any(1).nonzero().flatten().tolist() == [5]
    assert rope[5].tolist() == wanted.rope[0]


def test_addresses_of_nd_by_hand(mla):
    given, both = mla.inputs((1,)), mla.caches()
    mla.call(given, [5], both)
    for cache, dim in zip(both, (32, 16), strict=True):
        changed = (cache.flatten() != mla.MARK).nonzero().flatten()
        assert changed.min() >= 5 * dim
        assert changed.max() < 6 * dim


@pytest.mark.parametrize("version", ["", "_v2"])
def test_versions_1_and_2_return_the_caches_that_they_were_given(mla, version):
    both = mla.caches()
    result = mla.call(mla.inputs(), range(3), both, version)
    for returned, cache in zip((result.kv_cache, result.kr_cache), both, strict=True):
        assert returned.data_ptr() == cache.data_ptr()
        assert (cache[0, :3] != mla.MARK).any()


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_the_functional_form_leaves_the_caches_alone(mla, mode):
    given, both, kept = mla.inputs(), mla.caches(), mla.caches()
    in_place = mla.call(given, [6, 0, 3], both, "_v3", cache_mode=mode)
    result = mla.call(given, [6, 0, 3], kept, "_v3_functional", cache_mode=mode)
    assert all(torch.equal(cache, marked(cache)) for cache in kept)
    assert torch.equal(result.kv_cache, both[0])
    assert torch.equal(result.kr_cache, both[1])
    assert torch.equal(result.query, in_place.query)


def test_views_of_a_larger_pool_are_written_where_they_lie(mla):
    pools = [torch.full((3, 2, 4, 1, dim), 9.0).bfloat16() for dim in (32, 16)]
    both = mla.caches()
    mla.call(mla.inputs(), [1, 4, 6], both)
    mla.call(mla.inputs(), [1, 4, 6], [pool[1] for pool in pools])
    for pool, cache in zip(pools, both, strict=True):
        assert torch.equal(pool[1], cache)
        assert torch.equal(pool[[0, 2]], marked(pool[[0, 2]]))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("index", "token"), [([0, 8, 1], 1), ([0, 1, 2**40], 2)])
def test_slots_beyond_the_caches(mla, version, index, token):
    both = mla.caches()
    operator = f"npu_mla_prolog{version}"
    message = f"{operator}: cache_index of token {token} is {index[token]}, the caches have 8 slots .*507035"
    with pytest.raises(DeviceFault, match=message):
        mla.call(mla.inputs(), index, both, version)
    assert all(torch.equal(cache, marked(cache)) for cache in both)


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_negative_slots(mla, mode):
    given, both, index = mla.inputs((2, 2)), mla.caches(), [[3, -1], [-(2**40), 6]]
    result = mla.call(given, index, both, cache_mode=mode)
    wanted = mla.expected(given)
    assert both[0].flatten().tolist() == mla.placed(both[0], wanted.latent, [3, None, None, 6], nz=mode == "PA_NZ")
    assert both[1].flatten().tolist() == mla.placed(both[1], wanted.rope, [3, None, None, 6], nz=mode == "PA_NZ")
    assert result.query.flatten(0, 1).tolist() == wanted.query
    both = mla.caches()
    message = "cache_index of token 1 is -1, the caches have 8 slots"
    with mla.changed(mla_negative_slot="fault"), pytest.raises(DeviceFault, match=message):
        mla.call(given, index, both, cache_mode=mode)
    assert all(torch.equal(cache, marked(cache)) for cache in both)
    assert PROFILES["8.5"].mla_negative_slot == "skipped"
    assert PROFILES["pessimistic"].mla_negative_slot == "fault"


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_two_tokens_for_one_slot(mla, mode):
    given = mla.inputs((4,))
    wanted = mla.expected(given)
    nobody = {dim: unwritten((dim,), torch.bfloat16).tolist() for dim in (32, 16)}
    for choice in ("last_token", "unpredictable"):
        both = mla.caches()
        with mla.changed(mla_duplicate_slot=choice):
            mla.call(given, [2, 5, 2, 0], both, cache_mode=mode)
        for cache, rows, dim in ((both[0], wanted.latent, 32), (both[1], wanted.rope, 16)):
            of_slot_2 = rows[2] if choice == "last_token" else nobody[dim]
            placed = mla.placed(cache, [rows[1], of_slot_2, rows[3]], [5, 2, 0], nz=mode == "PA_NZ")
            assert cache.flatten().tolist() == placed
    assert PROFILES["8.5"].mla_duplicate_slot == "unpredictable"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tokens", [(0,), (0, 3), (3, 0)])
def test_no_tokens(mla, version, tokens):
    both = mla.caches()
    result = mla.call(mla.inputs(tokens), torch.zeros(tokens, dtype=torch.int64), both, version)
    assert result.query.shape == (*tokens, 2, 32)
    assert result.query_rope.shape == (*tokens, 2, 16)
    assert all(torch.equal(cache, marked(cache)) for cache in both)


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_caches_without_blocks_are_not_written_and_the_query_is(mla, mode):
    given = mla.inputs()
    expected = mla.call(given, range(3), mla.caches(), cache_mode=mode)
    result = mla.call(given, [5, -1, 2**40], mla.caches(0), cache_mode=mode)
    assert torch.equal(result.query, expected.query)
    assert torch.equal(result.query_rope, expected.query_rope)
    assert result.kv_cache.shape == (0, 4, 1, 32)


def test_what_was_written_in_nz_is_read_by_fused_attention(mla):
    """Latents of 512 as keys and values of one head: the order of the caches does not show."""
    given = mla.inputs((1, 9), latent=512, rope=64, hidden=32)
    index = [[130, 5, 0, 64, 255, 131, 9, 12, 200]]
    outputs = []
    for mode, shape in (("PA_BSND", (2, 128, 512)), ("PA_NZ", (2, 1, 32, 128, 16))):
        cache, rope = torch.zeros(2, 128, 1, 512).bfloat16(), torch.zeros(2, 128, 1, 64).bfloat16()
        result = mla.call(given, index, (cache, rope), "_v3", cache_mode=mode)
        outputs.append(
            torch.ops.npu.npu_fused_infer_attention_score_v2(
                result.query,
                cache.view(shape),
                cache.view(shape),
                num_query_heads=2,
                num_key_value_heads=1,
                input_layout="BSND",
                block_table=torch.tensor([[1, 0]], dtype=torch.int32),
                block_size=128,
                actual_seq_kvlen=[200],
                softmax_scale=0.01,
            )[0]
        )
    assert torch.equal(*outputs)
    assert outputs[0].float().abs().max() > 0.01
