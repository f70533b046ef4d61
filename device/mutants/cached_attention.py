"""Wrong ways through the cache."""

from __future__ import annotations

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.cached_attention import attend, converted_pool, seen, written
from npudiff.reference.cached_attention import CachedAttentionInputs


@npudiff.implementation(
    "cached_attention",
    name="layouts_by_two_flags",
    supports=converted_pool.constraints.boxes,
    mutant_of="converted_pool",
    wrong="PKV-06 https://github.com/sgl-project/sglang/pull/14423: writer and reader each follow a flag of their own",
)
def layouts_by_two_flags(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """Read the pool in the reader's layout, whatever the writer left."""
    on_device = inputs.to(target.device)
    return attend(on_device, seen(on_device, *written(on_device)))
