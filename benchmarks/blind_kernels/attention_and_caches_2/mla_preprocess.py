"""Wrong kernels of mla_preprocess; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "mla_preprocess"


def _norm(rows, weight, epsilon):
    return rows * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + epsilon) * weight.to(torch.float64)


def _rotated(rows, cosine, sine):
    first, second = rows[..., 0::2], rows[..., 1::2]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _put(inputs, cache, rows, *, skip=True):
    cache, size, dim = cache.clone().contiguous(), inputs.page_size, rows.shape[-1]
    slots = inputs.slots.to(torch.int64)
    kept = slots >= 0 if skip else torch.ones_like(slots, dtype=torch.bool)
    slots = slots % (cache.numel() // dim)
    page, offset, column = (slots[kept] // size)[:, None], (slots[kept] % size)[:, None], torch.arange(dim)
    if inputs.layout == "PA_NZ":
        width = cache.shape[-1]
        address = ((page * cache.shape[1] + column // width) * size + offset) * width + column % width
    else:
        address = (page * size + offset) * dim + column
    cache.view(-1)[address] = rows[kept].to(cache.dtype)
    return cache


def _all(inputs, *, positions=None, ropes_last=False, skip_ropes=True):
    positions = inputs.positions if positions is None else positions
    hidden, dtype = inputs.hidden.to(torch.float64), inputs.hidden.dtype
    cosine, sine = inputs.cos_sin_cache[positions].to(torch.float64).chunk(2, dim=-1)
    down = _norm(hidden @ inputs.q_a_weight.to(torch.float64), inputs.q_a_norm, inputs.epsilon)
    heads, nope = inputs.heads, inputs.nope_dim
    up = down @ inputs.q_b_weight.to(torch.float64)
    if ropes_last:
        parts = up[:, : heads * nope].reshape(len(up), heads, nope), up[:, heads * nope :].reshape(len(up), heads, -1)
    else:
        up = up.reshape(len(up), heads, -1)
        parts = up[..., :nope], up[..., nope:]
    absorbed = torch.einsum("thn,hnl->thl", parts[0], inputs.k_up_weight.to(torch.float64))
    rope = _rotated(parts[1], cosine.unsqueeze(1), sine.unsqueeze(1))
    compressed = hidden @ inputs.kv_a_weight.to(torch.float64)
    latent = _norm(compressed[:, : inputs.latent_dim], inputs.kv_a_norm, inputs.epsilon)
    key = _rotated(compressed[:, inputs.latent_dim :], cosine, sine)
    return {
        "query_nope": absorbed.to(dtype),
        "query_rope": rope.to(dtype),
        "rope_cache": _put(inputs, inputs.rope_cache, key, skip=skip_ropes),
        "latent_cache": _put(inputs, inputs.latent_cache, latent),
    }


@npudiff.implementation(NAME, name="c_mla_preprocess_01_positions_of_the_first_tile", on_device=True)
def c01(inputs, target):
    """Cosines and sines are gathered for a tile of 32 tokens, and those of the first tile serve the later ones as well."""
    token = torch.arange(len(inputs.hidden))
    return _all(inputs, positions=inputs.positions[token % 32] if WRONG else inputs.positions)


@npudiff.implementation(NAME, name="c_mla_preprocess_02_ropes_behind_all_heads", on_device=True)
def c02(inputs, target):
    """Columns of the up-projection are taken for nope parts of all heads, then rope parts of all heads."""
    return _all(inputs, ropes_last=WRONG)


@npudiff.implementation(NAME, name="c_mla_preprocess_03_rope_key_of_skipped_tokens", on_device=True)
def c03(inputs, target):
    """The latent of a token with slot -1 is left out; its rope key goes to the last slot."""
    return _all(inputs, skip_ropes=not WRONG)
