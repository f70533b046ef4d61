"""Experts on states that a device has with errors: what quantisation does is one more rounding of these."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.reference.bounds import unit_roundoff
from npudiff.reference.dynamic_quant import LEVELS
from npudiff.reference.expert_weights import ExpertProduct, ExpertRows, ExpertWeights, times
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_experts import ROW_BITS, Experts, Gate, activated
from npudiff.reference.spread import CARRIED, EVEN, Spread


def said_by_experts(states: Spread, topk_ids: torch.Tensor, experts: Experts, dtype: torch.dtype) -> ExpertProduct:
    """Return what each chosen expert says of a token, ``[tokens, top_k, hidden_size]``.

    Errors are scales between the two products, and bounds after them.

    It is ``reference.moe_experts`` on states that are not known exactly. Of the two ways in which
    ``reference.dynamic_quant.as_terms`` sees an integer it is always the second: where the errors of states are as
    large as steps, an integer times its step is the number that was rounded, with the error of a rounding.

    What leaves the second product has the confidence of ``reference.linear.carried``, four scales, and not the six of
    ``reference.spread``: several roundings of an activation are added up as bounds before they are a scale, so that
    scales are larger here than the errors that they stand for.

    Parameters
    ----------
    states : Spread
        ``[tokens, hidden_size]``.
    topk_ids : torch.Tensor
        int64 ``[tokens, top_k]``.
    experts : Experts
        The matrices of all experts.
    dtype : torch.dtype
        Of what a device hands from product to product.
    """
    plain = replace(experts, up=_worth(experts.up), down=_worth(experts.down))
    rows = Inexact(states.value, states.scale)
    rows = _in_steps(rows) if experts.quantised else rows
    given = _of_copies(Inexact(rows.value, rows.error / CARRIED), topk_ids.shape[1])
    first = _times(given, plain.up, topk_ids.flatten(), dtype)
    between = Inexact(first.value, torch.hypot(first.independent * EVEN, first.brought))
    gated = _activated(between, experts.gate, dtype)
    said = _times(_in_steps(gated) if experts.quantised else gated, plain.down, topk_ids.flatten(), dtype)
    shape = (*topk_ids.shape, -1)
    return ExpertProduct(said.value.view(shape), said.independent.view(shape), said.brought.view(shape))


def _of_copies(rows: Inexact, count: int) -> Inexact:
    return Inexact(rows.value.repeat_interleave(count, dim=0), rows.error.repeat_interleave(count, dim=0))


def _times(rows: Inexact, weights: ExpertWeights, experts: torch.Tensor, dtype: torch.dtype) -> ExpertProduct:
    """Each row times the matrix of its own expert; a product multiplies errors by its confidence."""
    value = torch.zeros(len(rows.value), weights.values.shape[2], dtype=torch.float64)
    independent, brought = torch.zeros_like(value), torch.zeros_like(value)
    for expert in range(weights.experts):
        copies = (experts == expert).nonzero()[:, 0]
        if len(copies):
            given = ExpertRows(Inexact(rows.value[copies], rows.error[copies]))
            said = times(given, weights, expert, dtype).representable(dtype)
            value[copies], independent[copies], brought[copies] = said.value, said.independent, said.brought
    return ExpertProduct(value, independent, brought)


def _activated(rows: Inexact, gate: Gate, dtype: torch.dtype) -> Inexact:
    """The gated activation, with scales: errors of gates, of ups and of roundings have nothing to do with each other.

    Each of the three is what ``activated`` says where the others are none; what it says of all together has the product
    of the first two besides.
    """
    is_gate = torch.arange(rows.value.shape[-1]) < rows.value.shape[-1] // 2
    errors = torch.stack([torch.zeros_like(rows.error), rows.error * is_gate, rows.error * ~is_gate, rows.error])
    result = activated(Inexact(rows.value.expand_as(errors), errors), gate, dtype)
    independent, gates, ups, both = result.error
    product = (both - gates - ups + independent).clamp(min=0)
    return Inexact(
        result.value[0], torch.hypot(independent * EVEN, torch.hypot(gates - independent, ups - independent)) + product
    )


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
