"""Grouped matrix products as sglang's Ascend backend calls them (``hardware_backend/npu/moe``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.packed_weights import assist_matrix, bits_of, words
from npudiff.model.constraints import Box
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.grouped_matmul import GroupedMatmulInputs

GROUP_LIST_TYPES = {"ends": 0, "counts": 1, "pairs": 2}
ROWS, INNER, NOTHING = 0, 2, -1
"""What group_type says is divided."""
ONE_OUTPUT, OUTPUT_PER_WEIGHT = 2, 0
"""split_item."""

_BY_ROWS: Box = {"split": ("rows",)}
_PLAIN: Box = {**_BY_ROWS, "form": ("float",), "group_list": ("counts", "ends")}


def grouped(inputs: GroupedMatmulInputs, weights: torch.Tensor, **quantised: torch.Tensor | None) -> torch.Tensor:
    """Call npu_grouped_matmul with one tensor of weights; arguments come as lists, those that are None not at all.

    On int8 by int4 it may write into the rows, so it gets a copy of them.
    """
    states = inputs.states.clone() if inputs.weights.bits == 4 and inputs.states.dtype == torch.int8 else inputs.states
    lists = {name: [tensor] for name, tensor in quantised.items() if tensor is not None}
    outputs = torch.ops.npu.npu_grouped_matmul(
        [states],
        [weights],
        **lists,
        group_list=inputs.group_list,
        split_item=ONE_OUTPUT,
        group_type=ROWS,
        group_list_type=GROUP_LIST_TYPES[inputs.group_list_type],
        output_dtype=inputs.output_dtype,
    )
    return outputs[0]  # type: ignore[no-any-return]


def by_form(inputs: GroupedMatmulInputs) -> torch.Tensor:
    """Call the operator as the form of the weights wants it."""
    weights = inputs.weights
    if weights.bits == 16:
        return grouped(inputs, weights.values, bias=weights.bias)
    if inputs.states.dtype != torch.int8:
        return _weights_only(inputs)
    if weights.bits == 8:
        scale = None if weights.scale is None else weights.scale.squeeze(1)
        return grouped(inputs, weights.values, scale=scale, bias=weights.bias, per_token_scale=inputs.token_scale)
    # what comes as a bias is not one: it is for the offset of the halves of an int8
    scale, assist = bits_of(weights.scale), assist_matrix(weights)
    return grouped(inputs, words(weights.values), scale=scale, bias=assist, per_token_scale=inputs.token_scale)


def _weights_only(inputs: GroupedMatmulInputs) -> torch.Tensor:
    """Floats by integers; a missing offset is zeros."""
    weights = inputs.weights
    if weights.scale is None:
        raise ValueError("integers have scales")
    offset = torch.zeros_like(weights.scale) if weights.offset is None else weights.offset
    one = weights.scale.shape[1] == 1
    return grouped(
        inputs,
        weights.values if weights.bits == 8 else words(weights.values),
        antiquant_scale=weights.scale.squeeze(1) if one else weights.scale,
        antiquant_offset=offset.squeeze(1) if one else offset,
        bias=weights.bias,
    )


@implementation("grouped_matmul", supports=_PLAIN, on_device=True, graph=True)
def npu_grouped_matmul(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul on floats."""
    return by_form(inputs)


@implementation("grouped_matmul", supports={**_BY_ROWS, "form": ("w8a8",)}, on_device=True, graph=True)
def npu_grouped_matmul_w8a8(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul on int8 by int8."""
    return by_form(inputs)


@implementation(
    "grouped_matmul", supports={**_BY_ROWS, "form": ("w4a8",), "group_list": ("counts",)}, on_device=True, graph=True
)
def npu_grouped_matmul_w4a8(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul on int8 by int4."""
    return by_form(inputs)


@implementation(
    "grouped_matmul",
    supports={**_BY_ROWS, "form": ("w8a16", "w4a16"), "group_list": ("counts", "ends")},
    on_device=True,
    graph=True,
)
def npu_grouped_matmul_weights_only(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul on floats by int8 or int4."""
    return by_form(inputs)


@implementation("grouped_matmul", supports={**_PLAIN, "experts": range(1, 129)}, on_device=True, graph=True)
def npu_grouped_matmul_listed(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul with a list of matrices, and one result for all."""
    outputs = torch.ops.npu.npu_grouped_matmul(
        [inputs.states],
        list(inputs.weights.values),
        bias=_listed(inputs.weights),
        group_list=inputs.group_list,
        split_item=ONE_OUTPUT,
        group_type=ROWS,
        group_list_type=GROUP_LIST_TYPES[inputs.group_list_type],
    )
    return outputs[0]  # type: ignore[no-any-return]


def _listed(weights: ExpertWeights) -> list[torch.Tensor] | None:
    return None if weights.bias is None else list(weights.bias)


@implementation("grouped_matmul", supports={**_PLAIN, "experts": range(1, 129)}, on_device=True)
def npu_grouped_matmul_ungrouped(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul with a tensor of rows for each matrix that has any, and as many results."""
    sizes = counts(inputs)
    here = [expert for expert, size in enumerate(sizes) if size]
    output = inputs.states.new_zeros(len(inputs.states), inputs.weights.values.shape[2])
    if not here:
        return output
    bias = _listed(inputs.weights)
    parts = torch.ops.npu.npu_grouped_matmul(
        [part for part in torch.split(inputs.states[: sum(sizes)], sizes) if len(part)],
        [inputs.weights.values[expert] for expert in here],
        bias=None if bias is None else [bias[expert] for expert in here],
        split_item=OUTPUT_PER_WEIGHT,
        group_type=NOTHING,
    )
    output[: sum(sizes)] = torch.cat(parts)
    return output


def counts(inputs: GroupedMatmulInputs) -> list[int]:
    """Rows of each expert."""
    given = inputs.group_list
    if inputs.group_list_type == "ends":
        return torch.diff(given, prepend=given.new_zeros(1)).tolist()
    if inputs.group_list_type == "counts":
        return given.tolist()
    sizes = [0] * inputs.weights.experts
    for expert, size in given.tolist():
        sizes[expert] += size
    return sizes


@implementation(
    "grouped_matmul", supports={"split": ("inner",), "group_list": ("counts", "ends")}, on_device=True, graph=True
)
def npu_grouped_matmul_inner(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """npu_grouped_matmul whose groups divide the inner axis: rows come as a transposed view."""
    turned = inputs.states.t().contiguous().t()
    outputs = torch.ops.npu.npu_grouped_matmul(
        [turned],
        [inputs.weights.values[0]],
        group_list=inputs.group_list,
        split_item=ONE_OUTPUT,
        group_type=INNER,
        group_list_type=GROUP_LIST_TYPES[inputs.group_list_type],
    )
    return outputs[0]  # type: ignore[no-any-return]


@implementation("grouped_matmul", supports=_BY_ROWS, on_device=True)
def expert_by_expert(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """A matrix product for each expert that has rows, on dequantised numbers, composed of plain operators."""
    return by_sizes(inputs, counts(inputs))


def by_sizes(inputs: GroupedMatmulInputs, sizes: Sequence[int]) -> torch.Tensor:
    """Products of as many rows with each matrix, one group after the other."""
    rows, columns = len(inputs.states), inputs.weights.values.shape[2]
    output = torch.zeros(rows, columns, dtype=inputs.output_dtype, device=inputs.states.device)
    start = 0
    for expert, size in enumerate(sizes):
        group = slice(start, min(start + size, rows))
        if group.stop > group.start:
            output[group] = one_expert(inputs, group, expert)
        start += size
    return output


def one_expert(inputs: GroupedMatmulInputs, group: slice, expert: int) -> torch.Tensor:
    """Rows of a group times one matrix."""
    states, weights = inputs.states[group], inputs.weights
    bias = None if weights.bias is None else weights.bias[expert]
    if states.dtype != torch.int8:
        matrix = _dequantised(weights, expert, states.dtype)
        result = states.float() @ matrix.float()
        return (result if bias is None else result + bias.float()).to(inputs.output_dtype)
    if weights.scale is None:
        return whole_sums(states, weights.values[expert])
    sums = _integer_sums(states, weights.values[expert], weights.scale[expert], bias)
    if inputs.token_scale is not None:
        sums = sums * inputs.token_scale[group].unsqueeze(1)
    if bias is not None and bias.dtype != torch.int32:
        sums = sums + bias.float()
    return sums.to(inputs.output_dtype)


def _dequantised(weights: ExpertWeights, expert: int, dtype: torch.dtype) -> torch.Tensor:
    values = weights.values[expert]
    if weights.scale is None:
        return values
    each = values.shape[0] // weights.scale.shape[1]
    matrix = values.float()
    if weights.offset is not None:
        matrix = matrix + weights.offset[expert].float().repeat_interleave(each, dim=0)
    return (matrix * weights.scale[expert].float().repeat_interleave(each, dim=0)).to(dtype)


_EXACT = 1024
"""Products of int8 whose sum float32 holds: 1,024 times 2**14."""


def whole_sums(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Products of whole numbers, exactly, int32: in parts that float32 holds, since a card has no float64."""
    parts = zip(torch.split(rows, _EXACT, dim=-1), torch.split(columns, _EXACT, dim=-2), strict=True)
    first, *others = [(part.float() @ other.float()).to(torch.int32) for part, other in parts]
    for other in others:
        first += other
    return first


def _integer_sums(
    states: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Sums of whole numbers, scaled by column, float32."""
    groups, columns = scale.shape
    rows = states.view(len(states), groups, -1).transpose(0, 1)
    sums = whole_sums(rows, values.view(groups, -1, columns)).transpose(0, 1)
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias
    return (sums.float() * scale.float()).sum(dim=1)
