"""Wrong kernels of kv_rmsnorm_rope_cache; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "kv_rmsnorm_rope_cache"


def _latent(inputs, columns=None):
    rows = inputs.kv[..., : inputs.latent_dim].to(torch.float64)
    mean = rows.square().sum(dim=-1, keepdim=True) / (columns or inputs.latent_dim)
    return rows * torch.rsqrt(mean + inputs.epsilon) * inputs.weight.to(torch.float64)


def _rope(inputs):
    rows = inputs.kv[..., inputs.latent_dim :].to(torch.float64)
    cosine, sine = inputs.cos_sin_cache[inputs.positions].to(torch.float64).chunk(2, dim=-1)
    first, second = rows[..., 0::2], rows[..., 1::2]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _int8(rows, scale):
    return (rows * scale.to(torch.float64)).round().clamp(-128, 127).to(torch.int8)


def _put(inputs, cache, rows, slots):
    """A cache with rows [tokens, dim] at slots; negative ones are skipped."""
    cache, dim, size = cache.clone().contiguous(), rows.shape[-1], inputs.page_size
    kept = slots >= 0
    page, offset = (slots[kept] // size)[:, None], (slots[kept] % size)[:, None]
    column = torch.arange(dim)
    if inputs.layout == "PA_NZ":
        width = cache.shape[-1]
        address = ((page * cache.shape[1] + column // width) * size + offset) * width + column % width
    else:
        address = (page * size + offset) * dim + column
    flat = cache.view(-1)
    inside = address < flat.numel()
    flat[address[inside]] = rows[kept][inside]
    return cache


def _all(inputs, *, latent=None, slots=None, rope_scale=None, neighbours=False):
    batch, length, _ = inputs.kv.shape
    dtype = inputs.kv.dtype
    slots = (inputs.slots if slots is None else slots).flatten().to(torch.int64)
    outputs = {"rope": _rope(inputs), "latent": _latent(inputs) if latent is None else latent}
    scales = {"rope": inputs.rope_scale if rope_scale is None else rope_scale, "latent": inputs.latent_scale}
    result = {}
    for name, rows in outputs.items():
        result[name] = rows.to(dtype)
        if neighbours and name == "rope":
            rows = torch.stack(rows.chunk(2, dim=-1), dim=-1).flatten(-2)
        stored = rows.to(dtype) if scales[name] is None else _int8(rows, scales[name])
        result[name + "_cache"] = _put(inputs, getattr(inputs, name + "_cache"), stored.flatten(0, 1), slots)
    return result


@npudiff.implementation(NAME, name="c_kv_rmsnorm_rope_cache_01_neighbours_in_the_cache", on_device=True)
def c01(inputs, target):
    """What is returned has the rotated pairs as halves; the cache is written before they are put in that order."""
    return _all(inputs, neighbours=WRONG)


@npudiff.implementation(NAME, name="c_kv_rmsnorm_rope_cache_02_slots_run_on", on_device=True)
def c02(inputs, target):
    """Tokens of one request are written behind its first slot, as if its slots were consecutive."""
    slots = inputs.slots.to(torch.int64)
    if WRONG and slots.shape[1]:
        slots = torch.where(slots[:, :1] < 0, -1, slots[:, :1] + torch.arange(slots.shape[1]))
    return _all(inputs, slots=slots)


@npudiff.implementation(NAME, name="c_kv_rmsnorm_rope_cache_03_slot_zero_is_padding", on_device=True)
def c03(inputs, target):
    """Slot 0 is taken for padding, and left out, also where page 0 is one like the others."""
    slots = inputs.slots.to(torch.int64)
    skipped = slots == 0 if WRONG else torch.zeros_like(slots, dtype=torch.bool)
    return _all(inputs, slots=slots.masked_fill(skipped, -1))


@npudiff.implementation(NAME, name="c_kv_rmsnorm_rope_cache_04_mean_over_512", on_device=True)
def c04(inputs, target):
    """The sum of squares is multiplied by 1/512, DeepSeek's latent dim, whatever the latent dim is."""
    return _all(inputs, latent=_latent(inputs, 512 if WRONG else None))


@npudiff.implementation(NAME, name="c_kv_rmsnorm_rope_cache_05_scales_before_the_halves", on_device=True)
def c05(inputs, target):
    """Scales of rope elements are in the order of what is cached, and are applied in the order of what is read: pair by
    pair."""
    scale = inputs.rope_scale
    if scale is not None and WRONG:
        scale = torch.cat([scale[0::2], scale[1::2]])
    return _all(inputs, rope_scale=scale)
