"""Calls of ``npu_mla_prolog`` with int8, which no adapter makes: what each version quantises.

For tests that compare the simulator with torch_npu's shape functions, and the virtual NPU with the simulator.
"""

from __future__ import annotations

from functools import cache

import torch

TOKENS, HIDDEN, RANK, NOPE, LATENT, ROPE = 2, 7168, 1536, 128, 512, 64


@cache
def _int8(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-100, 101, shape, generator=generator, dtype=torch.int8)


@cache
def _normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).bfloat16()


def _call(version, weights, cache):
    full, v3 = weights == 2, "v3" in version
    lowered = _int8 if full else _normal
    tensors = [
        lowered(TOKENS, HIDDEN),
        lowered(HIDDEN, RANK),
        _int8(RANK, NOPE + ROPE),
        _normal(1, NOPE, LATENT),
        lowered(HIDDEN, LATENT + ROPE),
        _normal(RANK),
        _normal(LATENT),
        _normal(TOKENS, ROPE),
        _normal(TOKENS, ROPE) / 2,
    ]
    row = 656 if cache == 3 else LATENT
    caches = [
        torch.zeros(2, 16, 1, row, dtype=torch.int8 if cache else torch.bfloat16),
        torch.zeros(2, 16, 1, ROPE, dtype=torch.int8 if cache == 2 else torch.bfloat16),
    ]
    scales = {"dequant_scale_w_uq_qr": torch.full((1, NOPE + ROPE), 0.01), "smooth_scales_cq": torch.ones(1, RANK) / 2}
    if full:
        scales["dequant_scale_x"] = torch.tensor([[0.02]] * TOKENS)
        scales |= {"dequant_scale_w_dq": torch.full((1, RANK), 0.01)}
        scales |= {"dequant_scale_w_dkv_kr": torch.full((1, LATENT + ROPE), 0.01)}
    if cache in (1, 2):
        scales["quant_scale_ckv"] = torch.full((1,) if v3 and cache == 1 else (1, LATENT), 30.0)
    if cache == 2:
        scales["quant_scale_ckr"] = torch.full((1, ROPE), 30.0)
    if cache == 3:
        scales["k_nope_clip_alpha"] = torch.tensor([0.9])
    index = torch.tensor([19, 4])
    if not v3:
        return f"npu_mla_prolog{version}", (*tensors, index, *caches), scales
    modes = {
        "cache_index": index,
        "query_norm_flag": True,
        "weight_quant_mode": weights,
        "kv_cache_quant_mode": cache,
        "query_quant_mode": int(cache == 1),
        "ckvkr_repo_mode": int(cache == 3),
        "quant_scale_repo_mode": int(cache == 3),
    }
    return f"npu_mla_prolog{version}", (*tensors, *caches), scales | modes


@cache
def forms():
    """Return calls by a name that says what they are: operator, positional and keyword arguments."""
    v1, v2 = ((1, 0), (1, 2)), ((1, 0), (2, 0), (2, 1))
    v3 = ((1, 2), (1, 3), (2, 0), (2, 1), (2, 3))
    scenes = {"": v1, "_v2": v2, "_v3": v3, "_v3_functional": ((2, 1),)}
    return {
        f"mla_prolog{version} weights {weights}, cache {cache}": _call(version, weights, cache)
        for version, modes in scenes.items()
        for weights, cache in modes
    }
