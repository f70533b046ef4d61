"""Rows in groups, each group times the matrix of its expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.expert_weights import ExpertRows, ExpertWeights, float_product, times
from npudiff.reference.inexact import Inexact
from npudiff.reference.views import moved_inputs

GROUP_LISTS = ("counts", "ends", "pairs")
"""counts: rows of each expert. ends: the row behind the last one of each. pairs: an expert's number and its rows,
``[experts, 2]``, of experts that have rows first."""


@dataclass(frozen=True)
class GroupedMatmulInputs:
    """Rows, matrices, and which rows belong to which of them."""

    states: torch.Tensor
    """``[rows, inner]``: a float dtype, or int8. Where ``inner`` is split: ``[rows, all of inner]``."""
    weights: ExpertWeights
    """Of all experts. Where ``inner`` is split: of one, ``[1, all of inner, columns]``."""
    group_list: torch.Tensor
    """int64, as ``group_list_type`` says."""
    group_list_type: str
    """One of ``GROUP_LISTS``."""
    token_scale: torch.Tensor | None
    """float32 ``[rows]``: what a whole number is worth."""
    output_dtype: torch.dtype
    """Of the result; int32 for sums that are not scaled."""
    splits_inner: bool = False
    """Whether groups divide ``inner``, and not the rows."""

    def to(self, device: str | torch.device) -> GroupedMatmulInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def grouped_matmul(inputs: GroupedMatmulInputs) -> dict[str, Expected]:
    """Return the rows of each group times the matrix of its expert (``reference.expert_weights.times``).

    Returns
    -------
    dict
        ``output``: ``[rows, columns]`` of ``output_dtype``; nothing is said of rows that belong to no group. Where
        ``inner`` is split: ``[groups, rows, columns]``, a group without columns of ``states`` being zeros.

    Raises
    ------
    ValueError
        If the groups are not as ``group_list_type`` says, or have more rows than there are; or if there is a bias or a
        scale that the formula has no place for.
    """
    _validate(inputs)
    length = inputs.states.shape[1 if inputs.splits_inner else 0]
    experts = len(inputs.group_list) if inputs.splits_inner else inputs.weights.experts
    counts = counts_of(inputs.group_list, inputs.group_list_type, experts)
    if int(counts.sum()) > length:
        raise ValueError(f"groups have {int(counts.sum())} of {length} rows")
    if inputs.splits_inner:
        return {"output": _split_inner(inputs, counts)}
    columns = inputs.weights.values.shape[2]
    value = torch.zeros(length, columns, dtype=torch.float64)
    bound = torch.full_like(value, torch.inf)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            group = slice(start, start + count)
            product = times(_rows(inputs, group), inputs.weights, expert, inputs.output_dtype)
            value[group], bound[group] = product.value, product.independent
            start += count
    return {"output": Expected(value, bound, inputs.output_dtype)}


def counts_of(group_list: torch.Tensor, group_list_type: str, experts: int) -> torch.Tensor:
    """Return the rows of each expert, int64 ``[experts]``; raises ``ValueError`` as ``grouped_matmul`` does."""
    shape = (experts, 2) if group_list_type == "pairs" else (experts,)
    if group_list_type not in GROUP_LISTS:
        raise ValueError(f"group_list_type is one of {', '.join(GROUP_LISTS)}, got {group_list_type}")
    if tuple(group_list.shape) != shape:
        raise ValueError(f"group_list must be {list(shape)}, got {list(group_list.shape)}")
    counts = group_list
    if group_list_type == "ends":
        counts = torch.diff(group_list, prepend=group_list.new_zeros(1))
    if group_list_type == "pairs":
        numbers, sizes = group_list.unbind(dim=1)
        here = numbers[sizes > 0]
        if bool((torch.diff(here) <= 0).any()) or bool((here < 0).any()) or bool((here >= experts).any()):
            raise ValueError(f"pairs must name experts of 0..{experts - 1} in their order, got {here.tolist()}")
        counts = torch.where(sizes < 0, sizes, 0).index_copy(0, here, sizes[sizes > 0])
    if bool((counts < 0).any()):
        raise ValueError(f"no group has fewer than 0 rows, got {counts.tolist()}")
    return counts


def _validate(inputs: GroupedMatmulInputs) -> None:
    """Refuse optional tensors that would be left out without a word."""
    weights, whole = inputs.weights, inputs.states.dtype == torch.int8
    has_bias, is_int_bias = weights.bias is not None, weights.bias is not None and weights.bias.dtype == torch.int32
    several_scales = weights.scale is not None and weights.scale.shape[1] > 1
    refused = {
        "a split inner axis with a bias": inputs.splits_inner and has_bias,
        "an int32 bias with several scales of a column": is_int_bias and several_scales,
        "an int32 bias of rows that are floats": is_int_bias and not whole,
        "a float bias of sums without a scale": has_bias and not is_int_bias and whole and weights.scale is None,
        "a scale of rows for sums without one": inputs.token_scale is not None and weights.scale is None and whole,
        "a scale of rows that are floats": inputs.token_scale is not None and not whole,
    }
    for name, holds in refused.items():
        if holds:
            raise ValueError(f"the product has no place for {name}")


def _rows(inputs: GroupedMatmulInputs, group: slice) -> ExpertRows:
    scale = None if inputs.token_scale is None else Inexact.exact(inputs.token_scale[group])
    return ExpertRows(Inexact.exact(inputs.states[group]), scale, inputs.states.dtype == torch.int8)


def _split_inner(inputs: GroupedMatmulInputs, counts: torch.Tensor) -> Expected:
    states, matrix = inputs.states.to(torch.float64), inputs.weights.values[0].to(torch.float64)
    ends = counts.cumsum(0).tolist()
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        product, _ = float_product(Inexact.exact(states[:, start:end]), matrix[start:end])
        parts.append(product.stored(inputs.output_dtype))
    value, error = torch.stack([part.value for part in parts]), torch.stack([part.error for part in parts])
    return Expected(value, error, inputs.output_dtype)
