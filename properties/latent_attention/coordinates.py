"""Where an element of an output is: which request, row, position and head."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.pattern import NOWHERE
from npudiff.reference.latent_attention import LatentAttentionInputs


def coordinates(inputs: LatentAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
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
    places = {
        "query length": length,
        "request": request,
        "row": row,
        "kv position": position,
        "page offset": torch.where(position < 0, NOWHERE, position % inputs.pool.page_size),
    }
    more = (1,) * (2 if output == "output" else 1)
    found = {name: value.view(-1, *more) for name, value in places.items()}
    found["head"] = torch.arange(heads).view(1, -1, *more[1:])
    return found | ({"dim": torch.arange(inputs.value_dim).view(1, 1, -1)} if output == "output" else {})
