from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.properties.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheCase, build_inputs
from npudiff.reference.kv_rmsnorm_rope_cache import kv_rmsnorm_rope_cache

SMALL = KvRmsnormRopeCacheCase(2, 3, latent_dim=32, rope_dim=32, page_size=4)


def by_hand(inputs):
    """Latents and rope keys in plain Python floats, as nested lists per token."""
    latents, ropes = [], []
    table = inputs.cos_sin_cache.double().tolist()
    weight = inputs.weight.double().tolist()
    half = inputs.rope_dim // 2
    for row, position in zip(
        inputs.kv.double().flatten(0, 1).tolist(), inputs.positions.flatten().tolist(), strict=True
    ):
        latent, key = row[: inputs.latent_dim], row[inputs.latent_dim :]
        mean = math.fsum(x * x for x in latent) / len(latent)
        latents.append([x / math.sqrt(mean + inputs.epsilon) * w for x, w in zip(latent, weight, strict=True)])
        cosine, sine = table[position][:half], table[position][half:]
        first = [key[2 * i] * cosine[i] - key[2 * i + 1] * sine[i] for i in range(half)]
        second = [key[2 * i + 1] * cosine[i] + key[2 * i] * sine[i] for i in range(half)]
        ropes.append(first + second)
    return latents, ropes


@pytest.mark.parametrize("recipe", ["gaussian", "outlier", "tiny", "large"])
def test_latents_and_rope_keys_equal_plain_arithmetic(recipe):
    inputs = build_inputs(replace(SMALL, recipe=recipe, epsilon=1e-5))
    latents, ropes = by_hand(inputs)
    expected = kv_rmsnorm_rope_cache(inputs)
    for name, right in (("latent", latents), ("rope", ropes)):
        value = expected[name].value.flatten(0, 1)
        assert torch.allclose(value, torch.tensor(right, dtype=torch.float64), rtol=1e-12, atol=1e-300)
        assert expected[name].dtype == inputs.kv.dtype


@pytest.mark.parametrize("layout", ["PA_BSND", "PA_NZ"])
def test_caches_hold_both_at_their_slots_and_keep_the_rest(layout):
    inputs = build_inputs(replace(SMALL, layout=layout))
    expected = kv_rmsnorm_rope_cache(inputs)
    for name, dim in (("latent", 32), ("rope", 32)):
        cache, before = expected[f"{name}_cache"], getattr(inputs, f"{name}_cache").double()
        rows = expected[name].value.reshape(-1, dim)
        seen = torch.zeros_like(before, dtype=torch.bool)
        for slot, row in zip(inputs.slots.flatten().tolist(), rows, strict=True):
            page, offset = divmod(slot, 4)
            for element in range(dim):
                place = (page, element // 16, offset, element % 16) if layout == "PA_NZ" else (page, offset, 0, element)
                assert cache.value[place] == row[element]
                assert cache.bound[place] > 0
                seen[place] = True
        assert torch.equal(cache.value[~seen], before[~seen])
        assert not cache.bound[~seen].any()


def test_int8_caches_hold_scaled_and_rounded_values_or_their_neighbours():
    inputs = build_inputs(replace(SMALL, quantised=True, layout="PA_NZ"))
    expected = kv_rmsnorm_rope_cache(inputs)
    latents, ropes = by_hand(inputs)
    for name, rows in (("latent", latents), ("rope", ropes)):
        cache, scale = expected[f"{name}_cache"], getattr(inputs, f"{name}_scale").double().tolist()
        assert cache.dtype == torch.int8
        for slot, row in zip(inputs.slots.flatten().tolist(), rows, strict=True):
            page, offset = divmod(slot, 4)
            right = [min(127, max(-128, round(x * s))) for x, s in zip(row, scale, strict=True)]
            assert cache.value[page, 0, offset].tolist() == right
        written = cache.bound > 0
        assert set(cache.bound.unique().tolist()) <= {0.0, 1.0, 2.0}
        assert float((cache.bound == 2).double().mean()) < 0.01
        assert 0.02 < float(written.double().mean()) < 0.5


def test_where_an_interval_of_values_crosses_no_half_an_int8_is_exact():
    inputs = build_inputs(replace(SMALL, quantised=True))
    inputs = replace(inputs, kv=torch.full_like(inputs.kv, 2.0), weight=torch.ones_like(inputs.weight), epsilon=1e-12,
                     latent_scale=torch.full((32,), 100.25), rope_scale=torch.full((32,), 1.0))  # fmt: skip
    expected = kv_rmsnorm_rope_cache(inputs)["latent_cache"]
    page, offset = divmod(int(inputs.slots[0, 0]), 4)
    assert expected.value[page, offset, 0].tolist() == [100.0] * 32
    halves = kv_rmsnorm_rope_cache(replace(inputs, latent_scale=torch.full((32,), 100.5)))["latent_cache"]
    assert halves.bound[page, offset, 0].tolist() == [1.0] * 32


def test_tokens_for_no_slot_are_written_nowhere_and_slot_0_is_not_specified():
    skipped = build_inputs(replace(SMALL, padded_tokens=2, padding="slot -1"))
    expected = kv_rmsnorm_rope_cache(skipped)["rope_cache"]
    assert torch.equal(expected.value[0], skipped.rope_cache[0].double())
    assert not expected.bound[0].any()
    dummy = build_inputs(replace(SMALL, padded_tokens=2))
    expected = kv_rmsnorm_rope_cache(dummy)["rope_cache"]
    assert torch.isposinf(expected.bound[0, 0]).all()
    assert not expected.bound[0, 1:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": torch.full((2, 3), 10**6)}, "each -1 or in 0"),
        ({"slots": torch.zeros(6, dtype=torch.int64)}, r"slots must be \[2, 3\], got \[6\]"),
        ({"weight": torch.ones(31)}, "kv must be 31 [+] 32 wide, got 64"),
        ({"rope_scale": torch.ones(32)}, "scales are given for both caches"),
        ({"layout": "PA_NZ"}, "a PA_NZ cache of torch.bfloat16 must be "),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        kv_rmsnorm_rope_cache(replace(build_inputs(SMALL), **changes))
