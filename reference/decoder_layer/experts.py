"""Experts on states that a device has with errors: what quantisation does is one more rounding of these."""

from __future__ import annotations

from dataclasses import replace

import torch

from reference.bounds import unit_roundoff
from reference.dynamic_quant import LEVELS
from reference.expert_weights import ExpertProduct, ExpertRows, ExpertWeights, times
from reference.inexact import Inexact
from reference.moe_experts import ROW_BITS, Experts, Gate, activated
from reference.spread import CARRIED, EVEN, Spread


def said_by_experts(states: Spread, chosen: torch.Tensor, experts: Experts, dtype: torch.dtype) -> ExpertProduct:
    """Return what each chosen expert says of a token, ``[tokens, chosen, hidden_size]``.

    It is ``reference.moe_experts`` on states that are not known exactly. There an integer that may be one off is an
    error of a whole step; where the errors of states are as large as steps, nearly all are. So the integer times its
    step is taken for the number that was rounded, with the error of a rounding, and the error of the step itself, which
    a device divides and multiplies by, is nobody's.

    Parameters
    ----------
    states : Spread
        ``[tokens, hidden_size]``.
    chosen : torch.Tensor
        int64 ``[tokens, chosen]``.
    experts : Experts
        The matrices of all experts.
    dtype : torch.dtype
        Of what a device hands from product to product.
    """
    value = torch.zeros(*chosen.shape, states.value.shape[1], dtype=torch.float64)
    own, brought = torch.zeros_like(value), torch.zeros_like(value)
    plain = replace(experts, up=_worth(experts.up), down=_worth(experts.down))
    for expert in range(experts.up.experts):
        tokens, places = (chosen == expert).nonzero(as_tuple=True)
        if len(tokens):
            said = _one_expert(states.rows(tokens), plain, expert, dtype, quantised=experts.quantised)
            value[tokens, places], own[tokens, places] = said.value, said.own
            brought[tokens, places] = said.brought
    return ExpertProduct(value, own, brought)


def _one_expert(states: Spread, experts: Experts, expert: int, dtype: torch.dtype, *, quantised: bool) -> ExpertProduct:
    """Two products, each of which multiplies by its confidence: errors are scales between them, and bounds after."""
    rows = Inexact(states.value, states.scale)
    rows = _in_steps(rows) if quantised else rows
    first = times(ExpertRows(Inexact(rows.value, rows.error / CARRIED)), experts.up, expert, dtype)
    between = Inexact(first.value, torch.hypot(first.own * EVEN, first.brought))
    gated = _activated(between, experts.gate, dtype)
    return times(ExpertRows(_in_steps(gated) if quantised else gated), experts.down, expert, dtype)


def _activated(rows: Inexact, gate: Gate, dtype: torch.dtype) -> Inexact:
    """The gated activation, with scales: errors of gates, of ups and of roundings have nothing to do with each other.

    Each of the three is what ``activated`` says where the others are none; what it says of all together has the product
    of the first two besides.
    """
    none = torch.zeros_like(rows.error)
    is_gate = torch.arange(rows.value.shape[-1]) < rows.value.shape[-1] // 2
    only_gates, only_ups = rows.error * is_gate, rows.error * ~is_gate
    own, gates, ups, both = (
        activated(Inexact(rows.value, error), gate, dtype) for error in (none, only_gates, only_ups, rows.error)
    )
    product = (both.error - gates.error - ups.error + own.error).clamp(min=0)
    brought = torch.hypot(gates.error - own.error, ups.error - own.error)
    return Inexact(own.value, torch.hypot(own.error * EVEN, brought) + product)


def _in_steps(rows: Inexact) -> Inexact:
    """The numbers after each was rounded to a multiple of its row's step, by way of float16."""
    largest = (rows.value.abs() + rows.error).amax(dim=-1, keepdim=True)
    rounding = largest / LEVELS[ROW_BITS] * 0.5 + rows.value.abs() * 2 * unit_roundoff(torch.float16)
    return Inexact(rows.value, torch.hypot(rows.error, rounding * EVEN))


def _worth(weights: ExpertWeights) -> ExpertWeights:
    """Matrices of float64: whole numbers times what they are worth."""
    if weights.scale is None:
        return weights
    each = weights.values.shape[1] // weights.scale.shape[1]
    worth = weights.values.to(torch.float64) * weights.scale.to(torch.float64).repeat_interleave(each, dim=1)
    return ExpertWeights(worth, bias=weights.bias)
