"""Calls of ``npu_kv_rmsnorm_rope_cache``: inputs of any shape, caches full of a mark, values in float64."""

from types import SimpleNamespace

import pytest
import torch

MARK = 9  # what caches hold before a call; no value of the inputs below comes near it


def kv_inputs(batch=2, length=3, *, dtype=torch.bfloat16, seed=0):
    """Return kv, gamma, cos and sin."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator).mul_(2).sub_(1).to(dtype)

    return draw(batch, 1, length, 576), draw(512), draw(batch, 1, length, 64), draw(batch, 1, length, 64)


def caches(first, second, *, norm=False, dtype=torch.bfloat16):
    """Return the rope and the latent cache: [blocks, block size, 1, D], or [B, 1, length, D]."""
    return tuple(
        torch.full((first, 1, second, dim) if norm else (first, second, 1, dim), MARK, dtype=dtype) for dim in (64, 512)
    )


def exact(kv, gamma, cos, sin, epsilon=1e-5):
    """Return rope [B, 1, S, 64] and latent [B, 1, S, 512] in float64."""
    kv, gamma, cos, sin = (t.double() for t in (kv, gamma, cos, sin))
    first, last = kv[..., :512], kv[..., 512:]
    latent = first * (first.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * gamma
    rope = torch.empty_like(last)
    for i in range(32):
        real, imaginary = last[..., 2 * i], last[..., 2 * i + 1]
        rope[..., i] = real * cos[..., i] - imaginary * sin[..., i]
        rope[..., i + 32] = imaginary * cos[..., i + 32] + real * sin[..., i + 32]
    return rope, latent


def call(inputs, index, both, version="", **more):
    operator = getattr(torch.ops.npu, f"npu_kv_rmsnorm_rope_cache{version}")
    return operator(*inputs, torch.as_tensor(index), *both, **more)


def outputs(inputs, **more):
    """Return rope and latent as the operator computes them, one row per token."""
    batch, _, length, _ = inputs[0].shape
    both = caches(batch * length, 1, dtype=inputs[0].dtype)
    index = torch.arange(batch * length)
    rope, latent = call(inputs, index, both, "_v2", cache_mode="PA", is_output_kv=True, **more)
    return rope.reshape(-1, 64), latent.reshape(-1, 512)


@pytest.fixture(scope="session")
def kv():
    return SimpleNamespace(inputs=kv_inputs, caches=caches, exact=exact, call=call, outputs=outputs, MARK=MARK)
