"""Pools of sglang with the pages of a case in them: keys and values, the latent of MLA, and those of hybrid models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.memory_pool_npu import NPUMHATokenToKVPool, NPUMLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from npudiff.device.backends.sglang.world import configured, environment, flags_of

DEVICE = "npu"

NZ = "SGLANG_USE_FIA_NZ"
"""Whether pages of MLA lie in strips of 16 columns, which the pool reads when it is made."""


def mha_pool(key: torch.Tensor, value: torch.Tensor, *, layers: int = 1, page_size: int | None = None) -> Any:  # noqa: ANN401
    """Build the pool of layers with keys and values like these pages, ``[pages, page_size, heads, dim]``, all zeros."""
    configured()
    pages, size, heads, dim = key.shape
    return NPUMHATokenToKVPool(
        size=(pages - 1) * size, page_size=page_size or size, dtype=key.dtype, head_num=heads, head_dim=dim,
        v_head_dim=value.shape[3], layer_num=layers, device=DEVICE, enable_memory_saver=False,
    )  # fmt: skip


def mla_pool(pages: int, page_size: int, dims: Sequence[int], dtype: torch.dtype, *, layers: int = 1) -> Any:  # noqa: ANN401
    """Build the pool of MLA layers, all zeros: a latent of ``dims[0]`` elements, and a rotated key of ``dims[1]``."""
    configured()
    return NPUMLATokenToKVPool(
        size=(pages - 1) * page_size, page_size=page_size, dtype=dtype, kv_lora_rank=dims[0], qk_rope_head_dim=dims[1],
        layer_num=layers, device=DEVICE, enable_memory_saver=False,
    )  # fmt: skip


def swa_pool(full: tuple[torch.Tensor, torch.Tensor], *, slots: int, sliding_slots: int, page_size: int) -> SWAKVPool:
    """Build the pools of a hybrid model: layer 0 sees all keys, layer 1 has a window.

    Parameters
    ----------
    full : tuple of torch.Tensor
        Pages of keys and of values, of which heads, dims and dtype are taken.
    slots, sliding_slots : int
        Tokens of each pool, without those of page 0.
    page_size : int
        Tokens per page.
    """
    configured()
    (_, _, heads, dim), value_dim = full[0].shape, full[1].shape[3]
    return SWAKVPool(
        size=slots, size_swa=sliding_slots, page_size=page_size, dtype=full[0].dtype, head_num=heads, head_dim=dim,
        v_head_dim=value_dim, swa_attention_layer_ids=[1], full_attention_layer_ids=[0], device=DEVICE,
        token_to_kv_pool_class=NPUMHATokenToKVPool,
    )  # fmt: skip


def of_mha(key: torch.Tensor, value: torch.Tensor, inputs: object, *, layers: int = 3) -> Any:  # noqa: ANN401
    """Build a pool of several layers by the flags of a case, with these pages in its second layer."""
    with environment(flags_of(inputs)):
        pool = mha_pool(key, value, layers=layers)
    fill(pool, 1, key, value)
    return pool


def of_mla(
    latent: torch.Tensor, rope: torch.Tensor, page_size: int, inputs: object, *, layer: int = 1
) -> NPUMLATokenToKVPool:
    """Build a pool of MLA with three layers by the flags of a case, and these pages, as they lie, in one of them."""
    dims = [cache[0].numel() // page_size for cache in (latent, rope)]
    with environment(flags_of(inputs)):
        pool = mla_pool(len(latent), page_size, dims, latent.dtype, layers=3)
    fill(pool, layer, latent, rope)
    return pool


def fill(pool: Any, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:  # noqa: ANN401 - sglang's
    """Put pages into the first pages of a layer, byte by byte."""
    for buffer, pages in zip(buffers(pool, layer), (key, value), strict=True):
        buffer.view(-1)[: pages.numel()].copy_(pages.reshape(-1))


def buffers(pool: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 - sglang's
    """Return what the two buffers of a layer hold."""
    return pool.get_key_buffer(layer), pool.get_value_buffer(layer)
