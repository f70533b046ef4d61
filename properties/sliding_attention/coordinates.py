"""Where an element of an output is: which request, row, position and head."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.pattern import NOWHERE
from npudiff.reference.sliding_attention import SlidingAttentionInputs


def coordinates(inputs: SlidingAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``output`` (``[tokens, heads, dim]``) or ``lse`` (``[tokens, heads]``).

    A padded row is nowhere. ``kv position`` is the position of the row in its request.
    """
    tokens, heads, _ = inputs.query.shape
    request, row, position, length = (torch.full((tokens,), NOWHERE) for _ in range(4))
    start = 0
    for index, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows = slice(start, start + new)
        request[rows], length[rows] = index, new
        row[rows] = torch.arange(new)
        position[rows] = torch.arange(total - new, total)
        start += new
    window = inputs.window if inputs.window is not None else 2**62
    per_row = {
        "query length": length,
        "request": request,
        "row": row,
        "kv position": position,
        "visible keys": torch.where(row == NOWHERE, NOWHERE, (position + 1).clamp(min=0, max=window)),
        "page offset": torch.where(position < 0, NOWHERE, position % inputs.kv.page_size),
    }
    head = torch.arange(heads)
    group = heads // inputs.kv.kv_heads
    per_head = {"head": head, "kv head": head // group}
    if output == "lse":
        return {name: value[:, None] for name, value in per_row.items()} | {
            name: value[None, :] for name, value in per_head.items()
        }
    places = {name: value[:, None, None] for name, value in per_row.items()}
    places |= {name: value[None, :, None] for name, value in per_head.items()}
    return places | {"dim": torch.arange(inputs.kv.value_head_dim)[None, None, :]}
