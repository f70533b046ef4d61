"""Wrong ways through the cache."""

from __future__ import annotations

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.cached_attention import attend, converted_pool, seen, written
from npudiff.reference.cached_attention import CachedAttentionInputs


@mutant(converted_pool, "PKV-06 sgl-project/sglang/pull/14423: writer and reader each follow a flag of their own")
def layouts_by_two_flags(inputs: CachedAttentionInputs, target: Target) -> torch.Tensor:
    """Read the pool in the reader's layout, whatever the writer left."""
    return attend(inputs, seen(inputs, *written(inputs)))
