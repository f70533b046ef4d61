"""Experts of a mixture: from the states of tokens and the experts of each to the weighted sum of what these say."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.dynamic_quant import as_terms
from npudiff.reference.expert_weights import ExpertProduct, ExpertRows, ExpertWeights, times
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_finalize import weighted_sum
from npudiff.reference.swiglu import Activation, gated, split
from npudiff.reference.views import moved_inputs

ROW_BITS = 8
"""Bits of the whole numbers that rows become where weights are whole numbers."""


@dataclass(frozen=True)
class Gate:
    """How gates and ups become one."""

    activation: Activation = Activation.SILU
    """What the configuration says."""
    limit: float | None = None
    """Limit of the activation; None for none."""
    alpha: float = 1.702
    bias: float = 1.0
    """Of ``SWIGLU_OAI``."""
    layout: str = "halves"
    """One of ``reference.swiglu.LAYOUTS``: where gates and ups lie among the columns of the first matrix."""


@dataclass(frozen=True)
class Experts:
    """The matrices of some experts, and what lies between them."""

    up: ExpertWeights
    """``[experts, hidden, 2 * width]``: to gates and ups."""
    down: ExpertWeights
    """``[experts, width, hidden]``."""
    gate: Gate = field(default_factory=Gate)
    """What becomes of gates and ups."""

    @property
    def quantised(self) -> bool:
        """Whether rows become int8 before either product."""
        return self.up.bits < 16


@dataclass(frozen=True)
class MoeExpertsInputs:
    """States, the experts of each token with their weights, and the matrices of those experts that are here."""

    states: torch.Tensor
    """``[tokens, hidden]``, bfloat16 or float16; its rows may be slices of wider ones."""
    topk_ids: torch.Tensor
    """int32 ``[tokens, k]``: numbers of experts; a token may name one several times. Others than those that are here,
    such as -1 for padding, are left out."""
    weights: torch.Tensor
    """``[tokens, k]`` of the dtype of ``states``."""
    here: torch.Tensor
    """int64 ``[experts that are here]``, ascending: whose matrices ``routed`` has. Copies for others are left out."""
    routed: Experts
    """Of the experts that are here."""
    shared: Experts | None = None
    """One expert that every token has, with weight 1."""

    def to(self, device: str | torch.device) -> MoeExpertsInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_experts(inputs: MoeExpertsInputs) -> dict[str, Expected]:
    """Return ``sum_k weights[t, k] * expert(topk_ids[t, k])(states[t]) + shared(states[t])`` of each token.

    An expert is ``down(activation(up(x)))`` (Shazeer et al., "Outrageously large neural networks", 2017, eq. 1; with
    shared experts: Dai et al., "DeepSeekMoE", 2024, eq. 9). Where weights are whole numbers, rows are quantised by
    their largest element before either product (``reference.dynamic_quant``).

    Returns
    -------
    dict
        ``output``: ``[tokens, hidden]`` of the dtype of ``states``.

    Raises
    ------
    ValueError
        If shapes contradict each other, or experts that are here do not ascend.

    Notes
    -----
    A correct device rounds to the dtype of the states after both products and at each stage of activation and sum.
    An integer of the second quantisation may differ by one where these roundings leave open which it is; what that is
    worth is carried through the second product as an error that has nothing to do with those of other columns.
    """
    _validate(inputs)
    states, dtype = Inexact.exact(inputs.states), inputs.states.dtype
    residual = None if inputs.shared is None else one_expert(states, inputs.shared, 0, dtype).inexact
    rows = of_experts(states, inputs.topk_ids, inputs.here, inputs.routed, dtype)
    own, weights = Inexact(rows.value, rows.independent), Inexact.exact(inputs.weights)
    result = weighted_sum(own, weights, residual, dtype, rows.brought, inputs.topk_ids)
    return {"output": Expected(result.value, result.error, dtype)}


def of_experts(
    states: Inexact, topk_ids: torch.Tensor, here: torch.Tensor, experts: Experts, dtype: torch.dtype
) -> ExpertProduct:
    """Return what each chosen expert says of a token, ``[tokens, k, hidden]``; zeros for experts that are not here.

    Matrices of experts that nobody chose are not looked at.
    """
    value = torch.zeros(*topk_ids.shape, states.value.shape[1], dtype=torch.float64)
    own, brought = torch.zeros_like(value), torch.zeros_like(value)
    for index, expert in enumerate(here.tolist()):
        tokens, src_to_dst_row = (topk_ids == expert).nonzero(as_tuple=True)
        if len(tokens):
            said = one_expert(Inexact(states.value[tokens], states.error[tokens]), experts, index, dtype)
            value[tokens, src_to_dst_row], own[tokens, src_to_dst_row] = said.value, said.independent
            brought[tokens, src_to_dst_row] = said.brought
    return ExpertProduct(value, own, brought)


def one_expert(states: Inexact, experts: Experts, index: int, dtype: torch.dtype) -> ExpertProduct:
    """Return what an expert says of rows ``[rows, hidden]``, as a device has it in a dtype."""
    between = times(_rows(states, experts.quantised), experts.up, index, dtype).representable(dtype).inexact
    rows = activated(between, experts.gate, dtype)
    return times(_rows(rows, experts.quantised), experts.down, index, dtype).representable(dtype)


def activated(rows: Inexact, gate: Gate, dtype: torch.dtype) -> Inexact:
    """Return the gated activation of ``[rows, 2 * width]``, as a device has it in a dtype."""
    gates, ups = split(rows, gate.layout)
    return gated(gates, ups, gate.activation, gate.limit, gate.alpha, gate.bias, dtype).rounded(dtype)


def _rows(states: Inexact, quantised: bool) -> ExpertRows:
    if not quantised:
        return ExpertRows(states)
    terms, scale = as_terms(states, ROW_BITS)
    return ExpertRows(terms, scale, quantised=True)


def _validate(inputs: MoeExpertsInputs) -> None:
    tokens, hidden = inputs.states.shape
    shape = list(inputs.topk_ids.shape)
    if inputs.topk_ids.dim() != 2 or shape[0] != tokens or inputs.weights.shape != inputs.topk_ids.shape:
        raise ValueError(f"topk_ids and weights must be [{tokens}, k], got {shape} and {list(inputs.weights.shape)}")
    if len(inputs.here) != inputs.routed.up.experts or bool((torch.diff(inputs.here) <= 0).any()):
        raise ValueError(f"here must name {inputs.routed.up.experts} experts in ascending order")
    for experts in (inputs.routed, inputs.shared):
        if experts is None:
            continue
        up, down = experts.up.values.shape, experts.down.values.shape
        if tuple(down) != (up[0], up[2] // 2, hidden) or up[1] != hidden or up[2] % 2:
            raise ValueError(f"matrices {list(up)} and {list(down)} do not go from {hidden} to {hidden} columns")
