"""What attention of all backends here has in common: pages as they keep them, and rows as the component has them."""

from __future__ import annotations

import torch

from npudiff.model.constraints import Box
from npudiff.reference.sliding_attention import SlidingAttentionInputs

PAGE = 128
"""Tokens of a page, which is what both backends here give fused attention by default."""

PAGES: Box = {
    "layout": ("PA_BSND",),
    "page_size": (PAGE,),
    "rows": ("contiguous",),
    "group": range(1, 65),
    "poison": ("large",),
    "fully_masked_rows": ("none",),
    "far_pool": (False,),
}
"""Cases that a scheduler makes: each request has as many keys as rows at least, and rows follow each other."""


def real_rows(answer: torch.Tensor, inputs: SlidingAttentionInputs) -> torch.Tensor:
    """Return what a backend answered as ``[tokens, heads, value_head_dim]``, with zeros for padding.

    Parameters
    ----------
    answer : torch.Tensor
        ``[rows, heads * value_head_dim]`` or ``[rows, heads, value_head_dim]``; rows behind the real ones may be any.
    inputs : SlidingAttentionInputs
        The case.
    """
    tokens, heads, _ = inputs.query.shape
    real = sum(inputs.query_lengths)
    output = answer.reshape(-1, heads, inputs.kv.value_head_dim)[:real]
    return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, tokens - real))
