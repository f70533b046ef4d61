"""Reading prefixes out of the latent cache of vllm-ascend: ``BaseDeviceAdaptor.kv_cache_load``."""

from __future__ import annotations

import torch
from vllm_ascend.device.device_op import BaseDeviceAdaptor

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.model.constraints import Box
from npudiff.reference.cache_gather import CacheGatherInputs

Outputs = dict[str, torch.Tensor]

_LATENT: Box = {
    "layout": ("PA_BSND",), "page_size": (PAGE,), "kv_heads": (1,), "head_dims": ("512/64", "256/32"),
    "starts": ("none", "page"), "dtype": ("bfloat16", "float16"),
}  # fmt: skip
"""A chunk of a prefix starts at a page."""


@implementation("cache_gather", name="kv_cache_load", supports=_LATENT, on_device=True)
def kv_cache_load(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """BaseDeviceAdaptor.kv_cache_load; it is not called where there is no prefix."""
    if len(inputs.key):
        starts = torch.zeros_like(inputs.lengths) if inputs.starts is None else inputs.starts
        BaseDeviceAdaptor.kv_cache_load(
            inputs.key_cache, inputs.value_cache, inputs.block_table, inputs.lengths, starts, inputs.key, inputs.value
        )
    return {"key": inputs.key, "value": inputs.value}
