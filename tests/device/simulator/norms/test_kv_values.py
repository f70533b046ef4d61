"""What ``npu_kv_rmsnorm_rope_cache`` computes, where it rounds, and its int8 caches."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile

DTYPES = [torch.float16, torch.bfloat16]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_float64(kv, dtype):
    inputs = kv.inputs(2, 3, dtype=dtype)
    for epsilon in (1e-5, 0.5):
        both = kv.caches(6, 1, dtype=dtype)
        more = {"cache_mode": "PA", "is_output_kv": True, "epsilon": epsilon}
        rope, latent = kv.call(inputs, range(6), both, "_v2", **more)
        for output, expected in zip((rope, latent), kv.exact(*inputs, epsilon), strict=True):
            assert (output.dtype, output.shape) == (dtype, expected.shape)
            bound = (torch.finfo(dtype).eps / 2 + 1e-6) * expected.abs() + 1e-6
            assert ((output - expected).abs() <= bound).all()


def test_the_default_epsilon(kv):
    inputs = kv.inputs()
    given = kv.outputs(inputs, epsilon=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kv.outputs(inputs), given, strict=True))


def flat_token(dtype, latent, gamma=1.0):
    """One token whose rope part is 0 and whose latent alternates between two numbers."""
    kv = torch.zeros(1, 1, 1, 576, dtype=dtype)
    kv[..., :512] = torch.tensor(latent, dtype=dtype).repeat(256)
    table = torch.zeros(1, 1, 1, 64, dtype=dtype)
    return kv, torch.full((512,), gamma, dtype=dtype), table, table


@pytest.mark.parametrize(
    ("dtype", "gamma", "once"), [(torch.float16, 1.5, 2.099609375), (torch.bfloat16, 129 / 128, 181 / 128)]
)
def test_the_latent_rounds_once(kv, dtype, gamma, once):
    # 7 / 5 is 1.4; rounding it before gamma would give another number (see test_rms_norm).
    _, latent = kv.outputs(flat_token(dtype, [7.0, 1.0], gamma), epsilon=0.0)
    assert latent[0, 0].item() == once


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_the_rope_part_rounds_once_and_to_even(kv, dtype, step):
    inputs = flat_token(dtype, [1.0, 1.0])
    cos, sin = torch.zeros(1, 1, 1, 64, dtype=dtype), torch.zeros(1, 1, 1, 64, dtype=dtype)
    inputs[0][..., 512], inputs[0][..., 513], cos[..., 0], sin[..., 0] = 1 + step, 1 + 2 * step, 1 + step, 1
    assert kv.outputs((*inputs[:2], cos, sin))[0][0, 0].item() == step**2
    inputs[0][..., 512], inputs[0][..., 513], cos[..., 0] = 1, -step / 2, 1
    assert kv.outputs((*inputs[:2], cos, sin))[0][0, 0].item() == 1


def quantised(kv, inputs, rope_scale, latent_scale, mode="PA", **more):
    both = kv.caches(1, 8, dtype=torch.int8)
    scales = {"k_rope_scale": torch.full((64,), rope_scale), "c_kv_scale": torch.full((512,), latent_scale)}
    kv.call(inputs, [0], both, "_v2", cache_mode=mode, **scales, **more)
    return both[0][0, 0, 0].tolist(), both[1][0, 0, 0].tolist()


def test_int8_rounds_half_to_even_and_saturates(kv):
    inputs = flat_token(torch.bfloat16, [1.0, -1.0])
    for scale, expected in [(0.5, 0), (1.5, 2), (2.5, 2), (126.6, 127), (127.5, 127), (1e4, 127), (1e30, 127)]:
        latent = quantised(kv, inputs, 1.0, scale, epsilon=0.0)[1]
        lowest = {127.5: -128, 1e4: -128, 1e30: -128}.get(scale, -expected)
        assert latent[:2] == [expected, lowest]


def test_int8_is_made_of_the_values_before_they_are_rounded(kv):
    # 1.4 * 75.4 is 105.56; the bfloat16 nearest to 1.4 would give 105.44.
    assert quantised(kv, flat_token(torch.bfloat16, [7.0, 1.0]), 1.0, 75.4, epsilon=0.0)[1][0] == 106
    inputs = flat_token(torch.bfloat16, [1.0, 1.0])
    cos, sin = torch.zeros(1, 1, 1, 64).bfloat16(), torch.zeros(1, 1, 1, 64).bfloat16()
    inputs[0][..., 512], inputs[0][..., 513], cos[..., 0], sin[..., 0] = 1, -(2.0**-9), 1, 1
    # 1 + 2**-9 is 1 in bfloat16.
    assert quantised(kv, (*inputs[:2], cos, sin), 100.4, 1.0)[0][0] == 101


def test_the_norm_divides_by_the_root(kv):
    # 41 / 41 is 1, and 41 * (1 / 41) in float32 is a little less.
    assert torch.tensor(41.0) * (1 / torch.tensor(41.0)) < 1
    assert quantised(kv, flat_token(torch.bfloat16, [41.0, -41.0]), 1.0, 1.5, epsilon=0.0)[1][0] == 2


def test_scales_are_per_element(kv):
    inputs = kv.inputs(1, 4)
    both = kv.caches(1, 8, dtype=torch.int8)
    generator = torch.Generator().manual_seed(3)
    scales = [torch.rand(dim, generator=generator) * 60 for dim in (64, 512)]
    more = {"cache_mode": "PA", "k_rope_scale": scales[0], "c_kv_scale": scales[1], "is_output_kv": True}
    *_, rope, latent = kv.call(inputs, range(4), both, **more)
    for cache, expected, scale in zip(both, kv.exact(*inputs), scales, strict=True):
        whole = expected.reshape(4, -1) * scale.double()
        assert ((cache[0, :4, 0] - whole).abs() <= 0.5 + 1e-4).all()
        assert (cache[0, 4:] == kv.MARK).all()
    # The other outputs are not quantised.
    plain = kv.outputs(inputs)
    assert torch.equal(rope.reshape(4, 64), plain[0])
    assert torch.equal(latent.reshape(4, 512), plain[1])


def test_nan_becomes_0_in_int8(kv):
    inputs = flat_token(torch.bfloat16, [float("nan"), 1.0])
    assert quantised(kv, inputs, 1.0, 1.0)[1] == [0] * 512


@pytest.mark.parametrize("given", ["k_rope_scale", "c_kv_scale"])
def test_one_scale(kv, given):
    missing = {"k_rope_scale": "c_kv_scale", "c_kv_scale": "k_rope_scale"}[given]
    inputs, (rope, latent) = kv.inputs(1, 2), kv.caches(2, 16)
    if given == "k_rope_scale":
        rope, dim = rope.to(torch.int8), 64
    else:
        latent, dim = latent.to(torch.int8), 512
    more = {"cache_mode": "PA_NZ", given: torch.full((dim,), 100.0)}
    with pytest.raises(OperatorRejected, match=f"{missing} was None; allowed: a scale for both caches"):
        kv.call(inputs, [0, 1], (rope, latent), **more)
    with changed(kv_rmsnorm_scales="each"):
        kv.call(inputs, [0, 17], (rope, latent), **more)
    # Each cache has fractals of its own width: 16 elements of 16 bits, 32 of int8.
    for cache, expected in zip((rope, latent), kv.outputs(inputs), strict=True):
        width = 32 if cache.dtype == torch.int8 else 16
        tiles = cache.view(2, -1, 16, width)
        for block, row, values in ((0, 0, expected[0]), (1, 1, expected[1])):
            stored = tiles[block, :, row].flatten().float()
            wanted = (values.float() * 100).clamp(-128, 127) if cache.dtype == torch.int8 else values.float()
            assert torch.allclose(stored, wanted, atol=1.0 if cache.dtype == torch.int8 else 0.0)


def test_scales_in_norm_mode(kv):
    inputs, both = kv.inputs(2, 3), kv.caches(2, 4, norm=True, dtype=torch.int8)
    more = {"k_rope_scale": torch.ones(64), "c_kv_scale": torch.ones(512)}
    with pytest.raises(OperatorRejected, match="k_rope_scale was given in cache_mode 'Norm'; allowed: None"):
        kv.call(inputs, [[0, 1, 2]] * 2, both, **more)
    with changed(kv_rmsnorm_scales_in_norm_mode="accepted"):
        kv.call(inputs, [[0, 1, 2]] * 2, both, **more)
    assert both[0][0, 0, 0].tolist() != [kv.MARK] * 64
