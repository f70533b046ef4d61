"""What the three forms of ``npu_kv_rmsnorm_rope_cache`` return, write and leave alone."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile
from npudiff.device.simulator.norms.unwritten import POISON_BYTE, unwritten

PAGED = ["PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"]


def index_of(mode):
    return [0] if "BLK" in mode else [0, 1]


def test_version_1_returns_the_caches_that_it_wrote(kv):
    inputs, both = kv.inputs(1, 2), kv.caches(2, 4)
    k_cache, ckv_cache, rope, latent = kv.call(inputs, [0, 1], both, cache_mode="PA", is_output_kv=True)
    assert (k_cache.data_ptr(), ckv_cache.data_ptr()) == (both[0].data_ptr(), both[1].data_ptr())
    # Rope first, in the arguments and in what is returned.
    assert (k_cache.shape[-1], ckv_cache.shape[-1], rope.shape[-1], latent.shape[-1]) == (64, 512, 64, 512)
    assert torch.equal(k_cache[0, :2, 0], rope[0, 0])
    assert torch.equal(ckv_cache[0, :2, 0], latent[0, 0])


def test_version_2_returns_rope_and_latent(kv):
    inputs, both = kv.inputs(1, 2), kv.caches(2, 4)
    rope, latent = kv.call(inputs, [0, 1], both, "_v2", cache_mode="PA", is_output_kv=True)
    assert torch.equal(both[0][0, :2, 0], rope[0, 0])
    assert torch.equal(both[1][0, :2, 0], latent[0, 0])


def test_the_functional_form_returns_updated_copies(kv):
    inputs, both, written = kv.inputs(1, 2), kv.caches(2, 4), kv.caches(2, 4)
    more = {"cache_mode": "PA_NZ", "is_output_kv": True}
    expected = kv.call(inputs, [0, 5], written, "_v2", **more)
    outputs = kv.call(inputs, [0, 5], both, "_v2_functional", **more)
    assert all(torch.equal(a, b) for a, b in zip(outputs, (*expected, *written), strict=True))
    assert all((cache == kv.MARK).all() for cache in both)


def test_the_functional_form_may_update_its_inputs(kv):
    inputs, both, written = kv.inputs(1, 2), kv.caches(2, 4), kv.caches(2, 4)
    expected = kv.call(inputs, [0, 5], written, "_v2", cache_mode="PA", is_output_kv=True)
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", kv_rmsnorm_functional="updates_inputs")):
        outputs = kv.call(inputs, [0, 5], both, "_v2_functional", cache_mode="PA", is_output_kv=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs[:2], expected, strict=True))
    assert all((cache == kv.MARK).all() for cache in outputs[2:])
    assert all(torch.equal(a, b) for a, b in zip(both, written, strict=True))


@pytest.mark.parametrize("mode", PAGED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_that_were_not_asked_for_hold_what_nobody_wrote(kv, mode, dtype):
    inputs = kv.inputs(1, 2, dtype=dtype)
    for version, first in (("", 2), ("_v2", 0), ("_v2_functional", 0)):
        for wanted in (False, True):
            both = kv.caches(2, 4, dtype=dtype)
            outputs = kv.call(inputs, index_of(mode), both, version, cache_mode=mode, is_output_kv=wanted)
            for output, plain in zip(outputs[first : first + 2], kv.outputs(inputs), strict=True):
                assert (output.dtype, tuple(output.shape[:3])) == (dtype, (1, 1, 2))
                if wanted:
                    assert torch.equal(output[0, 0], plain)
                else:
                    assert torch.equal(output, unwritten(output.shape, dtype))


def test_norm_mode_never_writes_the_outputs(kv):
    inputs, both = kv.inputs(1, 2), kv.caches(1, 4, norm=True)
    *_, rope, latent = kv.call(inputs, [[0, 1]], both, is_output_kv=True)
    assert torch.equal(rope, unwritten((1, 1, 2, 64), torch.bfloat16))
    assert torch.equal(latent, unwritten((1, 1, 2, 512), torch.bfloat16))


def test_a_skipped_token_still_has_outputs(kv):
    inputs, both = kv.inputs(1, 2), kv.caches(2, 4)
    *_, rope, latent = kv.call(inputs, [-1, 3], both, cache_mode="PA", is_output_kv=True)
    assert torch.equal(rope[0, 0], kv.outputs(inputs)[0])
    assert torch.equal(latent[0, 0], kv.outputs(inputs)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
def test_what_nobody_wrote_is_finite_and_conspicuous(dtype):
    garbage = unwritten((2, 3), dtype)
    assert (garbage.shape, garbage.dtype) == ((2, 3), dtype)
    assert (garbage.view(torch.uint8) == POISON_BYTE).all()
    assert (garbage.float().square().isfinite() & (garbage.float() >= 90)).all()


def test_inputs_stay(kv):
    inputs = kv.inputs(1, 2)
    before = [t.clone() for t in inputs]
    kv.call(inputs, [0, 1], kv.caches(2, 4), cache_mode="PA")
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_kv_may_be_a_slice(kv):
    inputs = kv.inputs(3, 1)
    wide = torch.cat((torch.zeros(3, 1, 1, 1536).bfloat16(), inputs[0]), -1)[..., 1536:]
    both, other = kv.caches(2, 4), kv.caches(2, 4)
    kv.call(inputs, [0, 1, 2], both, cache_mode="PA")
    kv.call((wide, *inputs[1:]), [0, 1, 2], other, cache_mode="PA")
    assert all(torch.equal(a, b) for a, b in zip(both, other, strict=True))
