"""Where an element of an output is: which request, position and head."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.reference.hybrid_pools import HybridPoolsHistory, HybridPoolsReference


def coordinates(inputs: HybridPoolsHistory, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``[rows, heads, dim]``, the attention after the last step."""
    if output not in ("full", "sliding"):
        return {}
    reference = HybridPoolsReference(inputs.pools)
    for step, new in inputs.steps:
        reference.take(step, new)
    rows, lengths = reference.rows, reference.ledger.lengths
    places = [(request, position) for request, count in rows.items() for position in range(lengths[request])[-count:]]
    request, position = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).unbind(1)
    window = inputs.pools.window if output == "sliding" else 2**62
    head = torch.arange(inputs.pools.heads)
    group = inputs.pools.heads // inputs.pools.full.key.shape[2]
    per_row = {
        "request": request,
        "kv position": position,
        "visible keys": (position + 1).clamp(max=window),
        "page offset": position % inputs.pools.page_size,
    }
    return {
        **{name: values[:, None, None] for name, values in per_row.items()},
        "head": head[None, :, None],
        "kv head": (head // group)[None, :, None],
        "dim": torch.arange(inputs.pools.full.value.shape[3])[None, None, :],
    }
