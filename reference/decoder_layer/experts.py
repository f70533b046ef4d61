"""Experts of bfloat16 on states that a device has with errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.bounds import accumulation_error
from reference.inexact import Inexact, sigmoid
from reference.linear import linear


@dataclass(frozen=True)
class BfloatExperts:
    """Weights of experts, and the limit of their activation.

    Attributes
    ----------
    up, down : torch.Tensor
        ``[experts, hidden_size, 2 * width]`` and ``[experts, width, hidden_size]``.
    limit : float or None
        Of ``swiglustep``.
    """

    up: torch.Tensor
    down: torch.Tensor
    limit: float | None


def expert_sums(states: Inexact, experts: torch.Tensor, weights: Inexact, layer: BfloatExperts) -> Inexact:
    """Return the weighted sum of what its experts make of each token, ``[tokens, hidden_size]``.

    Parameters
    ----------
    states : Inexact
        ``[tokens, hidden_size]``. Their errors go into a product first, which multiplies them by the confidence.
    experts : torch.Tensor
        int64 ``[tokens, chosen]``.
    weights : Inexact
        ``[tokens, chosen]``.
    layer : BfloatExperts
        The weights.
    """
    dtype = layer.up.dtype
    products = []
    for choice in range(experts.shape[1]):
        value, error = torch.zeros_like(states.value), torch.zeros_like(states.value)
        for expert in set(experts[:, choice].tolist()):
            own = experts[:, choice] == expert
            result = _expert(Inexact(states.value[own], states.error[own]), layer, expert)
            value[own], error[own] = result.value, result.error
        factor = Inexact(weights.value[:, choice, None], weights.error[:, choice, None])
        products.append(Inexact(value, error).times(factor).in_float32().rounded(dtype))
    sizes = torch.stack([one.value.abs() for one in products]).sum(dim=0)
    value = torch.stack([one.value for one in products]).sum(dim=0)
    error = torch.stack([one.error for one in products]).sum(dim=0)
    return Inexact(value, error + sizes * accumulation_error(len(products) + 2)).rounded(dtype)


def _expert(states: Inexact, layer: BfloatExperts, expert: int) -> Inexact:
    dtype = layer.up.dtype
    both = linear(states, layer.up[expert].to(torch.float64), dtype)
    width = both.value.shape[-1] // 2
    gate, up = (Inexact(both.value[:, part], both.error[:, part]) for part in (slice(width), slice(width, None)))
    silu = gate.times(sigmoid(gate)).in_float32(2).rounded(dtype)
    if layer.limit is not None:
        silu, up = silu.at_most(layer.limit, dtype), up.within(layer.limit, dtype)
    gated = silu.times(up).in_float32().rounded(dtype)
    return linear(gated, layer.down[expert].to(torch.float64), dtype)
