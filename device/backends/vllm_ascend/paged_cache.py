"""Writers of vllm-ascend's cache: ``device/device_op.py``, ``reshape_and_cache``."""

from __future__ import annotations

import torch
from vllm_ascend.device.device_op import BaseDeviceAdaptor

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.paged_cache import PagedCacheInputs

Outputs = dict[str, torch.Tensor]

_PAGES: Box = {
    "layout": ("PA_BSND",), "padding": ("slot 0",), "rows": ("contiguous",), "dtype": ("bfloat16", "float16"),
    "slots_dtype": ("int32",),
}  # fmt: skip


@implementation("paged_cache", name="BaseDeviceAdaptor.reshape_and_cache", supports=_PAGES, on_device=True)
def reshape_and_cache(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """BaseDeviceAdaptor.reshape_and_cache, of A2 and A3."""
    BaseDeviceAdaptor.reshape_and_cache(inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, inputs.slots)
    return {"key_cache": inputs.key_cache, "value_cache": inputs.value_cache}
