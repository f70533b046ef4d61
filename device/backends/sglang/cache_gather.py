"""Readers of sglang's pools: pages of MLA before they are projected, and what a request takes along to the host."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.hardware_backend.npu.attention.mla_cache import gather_mla_cache_pages

from npudiff import Target, implementation
from npudiff.device.ascend.cache_gather import places
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.pool_world import NZ, buffers, of_mha, of_mla
from npudiff.model.constraints import Box, Joined
from npudiff.reference.cache_gather import CacheGatherInputs

Outputs = dict[str, torch.Tensor]

_POOL: Box = {"page_size": (PAGE,), "dtype": ("bfloat16", "float16"), "far_pool": (False,)}
_ONE_DIM, _OF_MODELS = Joined((range(1, 1025),)), ("192/128", "512/64")
"""Head dims of keys and values: one for both, or two as models have them."""
_LATENT: Box = {**_POOL, "kv_heads": (1,), "head_dims": ("512/64", "256/32")}
_ORDERS: tuple[Box, ...] = ({NZ: ("0",), "layout": ("PA_BSND",)}, {NZ: ("1",), "layout": ("PA_NZ",)})
_WHOLE_PAGES: Box = {**_LATENT, "starts": ("none",), "length": range(0, 2**20 + 1, PAGE)}


def _packed(inputs: CacheGatherInputs, key: torch.Tensor, value: torch.Tensor) -> Outputs:
    """Put what was read into the packed rows of the case, of which there may be more."""
    outputs = {"key": inputs.key, "value": inputs.value}
    for rows, said in zip(outputs.values(), (key, value), strict=True):
        rows[: len(said)] = said.to(rows.device)
    return outputs


@implementation(
    "cache_gather",
    name="gather_mla_cache_pages",
    supports=[{**_WHOLE_PAGES, **order} for order in _ORDERS],
    options={NZ: ("0", "1")},
    on_device=True,
)
def gather_pages(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """gather_mla_cache_pages of prefixes, which are whole pages."""
    pool = of_mla(inputs.key_cache, inputs.value_cache, PAGE, inputs)
    lengths = inputs.lengths.tolist()
    pages = torch.cat([row[: length // PAGE] for row, length in zip(inputs.block_table, lengths, strict=True)])
    is_nz = inputs.layout == "PA_NZ"
    key, value = (gather_mla_cache_pages(cache, pages, is_nz=is_nz) for cache in buffers(pool, 1))
    return _packed(inputs, key.flatten(0, 1), value.flatten(0, 1))


def _on_host(pool: Any, inputs: CacheGatherInputs) -> Outputs:  # noqa: ANN401 - sglang's
    """Copy the tokens of the case to the host, as a request that is retracted has it done, in chunks."""
    pool.cpu_offloading_chunk_size = PAGE
    page, offset = places(inputs)
    layers = pool.get_cpu_copy(page * PAGE + offset)
    key, value = ([chunk[which] for chunk in layers[1]] for which in (0, 1))
    return _packed(inputs, torch.cat(key), torch.cat(value)) if key else _packed(inputs, inputs.key, inputs.value)


@implementation(
    "cache_gather",
    name="get_cpu_copy",
    supports=[{**_POOL, "layout": ("PA_BSND",), "head_dims": dims} for dims in (_ONE_DIM, _OF_MODELS)],
    options={"ASCEND_USE_FIA": ("1", "0")},
    on_device=True,
)
def get_cpu_copy(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """NPUMHATokenToKVPool.get_cpu_copy."""
    return _on_host(of_mha(inputs.key_cache, inputs.value_cache, inputs), inputs)


@implementation("cache_gather", name="get_cpu_copy_mla", supports={**_LATENT, "layout": ("PA_BSND",)}, on_device=True)
def get_cpu_copy_mla(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """NPUMLATokenToKVPool.get_cpu_copy of pages that lie in ND; in NZ it is not said what it returns."""
    return _on_host(of_mla(inputs.key_cache, inputs.value_cache, PAGE, inputs), inputs)
