"""Where an element of an output is: which request, row, position, head and element of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.pattern import NOWHERE
from npudiff.properties._shared.new_tokens import row_coordinates
from npudiff.reference.quantised_kv_attention import QuantisedKvAttentionInputs


def coordinates(inputs: QuantisedKvAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``output`` (``[tokens, heads, dim]``) or ``lse`` (``[tokens, heads]``).

    A padded row is nowhere. ``kv position`` is the position of the row in its request.
    """
    tokens, heads, dim = inputs.query.shape
    named = row_coordinates(tokens, inputs.query_lengths, inputs.kv_lengths)
    position = named["kv position"]
    named["page offset"] = torch.where(position < 0, NOWHERE, position % inputs.pool.page_size)
    more = (1,) * (2 if output == "output" else 1)
    found = {name: value.view(-1, *more) for name, value in named.items()}
    head = torch.arange(heads)
    for name, value in (("head", head), ("kv head", head // (heads // inputs.pool.kv_heads))):
        found[name] = value.view(1, -1, *more[1:])
    return found | ({"dim": torch.arange(dim).view(1, 1, -1)} if output == "output" else {})
