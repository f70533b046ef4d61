"""Inputs of grouped matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared import expert_weights, rows
from npudiff.properties._shared.expert_weights import Shape, whole_numbers
from npudiff.properties.grouped_matmul.case import DTYPES, GroupedMatmulCase, group_sizes
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.grouped_matmul import GroupedMatmulInputs, counts_of


def build_inputs(case: GroupedMatmulCase) -> GroupedMatmulInputs:
    """Build the inputs of a case."""
    inner_is_split = case.split == "inner"
    shape = Shape(
        range(1 if inner_is_split else case.experts), case.inner, case.columns, case.form, case.groups, _float(case)
    )
    weights = expert_weights.build(shape, case.seed, "weights", case.recipe == "extreme")
    weights = expert_weights.lying(_scaled(case, weights), case.transposed)
    token_scale = None
    if case.form.endswith("a8") and case.token_scale:
        spread = Stream(case.seed, "token scale").normal((case.rows_of_all + case.beyond,), torch.float32)
        token_scale = 0.01 * (1 + spread.abs())
    return GroupedMatmulInputs(
        states=rows.with_row_stride(_states(case), case.rows),
        weights=weights,
        group_list=_group_list(case),
        group_list_type=case.group_list,
        token_scale=token_scale,
        output_dtype=DTYPES[case.dtype],
        splits_inner=inner_is_split,
    )


def _float(case: GroupedMatmulCase) -> torch.dtype:
    return torch.bfloat16 if case.dtype == "int32" else DTYPES[case.dtype]


def _scaled(case: GroupedMatmulCase, weights: ExpertWeights) -> ExpertWeights:
    """Add offset and bias, and give scales the dtype that goes with the result; sums have no scales."""
    bias = offset = None
    scale = weights.scale
    numbers = Stream(case.seed, "bias").normal((case.experts, case.columns), torch.float32)
    if case.bias == "int32":
        bias = (numbers * 1000).to(torch.int32)
    if case.bias == "float":
        bias = numbers.to(torch.float16 if case.dtype == "float16" and case.form != "w8a8" else torch.float32)
    if case.offset and scale is not None:
        steps = 4 if case.seed % 2 else 1  # whole numbers, as zero points are, or quarters
        spread = Stream(case.seed, "offset").normal(tuple(scale.shape), torch.float32)
        offset = (4 * steps * spread).round().div(steps).to(scale.dtype)
    if case.form == "w8a8" and scale is not None:
        scale = (
            None if case.dtype == "int32" else scale.to(torch.bfloat16 if case.dtype == "bfloat16" else torch.float32)
        )
    return replace(weights, scale=None if scale is None else scale, offset=offset, bias=bias)


def _states(case: GroupedMatmulCase) -> torch.Tensor:
    size = (case.rows_of_all + case.beyond, case.inner)
    stream = Stream(case.seed, "states")
    if case.form.endswith("a8"):
        numbers = whole_numbers(stream, size).clamp(min=-127)
        if case.recipe == "extreme":
            numbers = torch.where(numbers[:, :1] < 0, -127, 127).to(torch.int8).expand(size).contiguous()
    else:
        numbers = stream.normal(size, torch.float32).to(_float(case))
        if case.recipe == "extreme":
            numbers = (numbers.sign() * numbers.abs().clamp(min=2)).to(_float(case))
    if case.recipe == "zero rows":
        numbers[::2] = 0
    return numbers


def _group_list(case: GroupedMatmulCase) -> torch.Tensor:
    counts = group_sizes(case)
    if case.group_list == "counts":
        return counts
    if case.group_list == "ends":
        return counts.cumsum(0)
    here = counts.nonzero().squeeze(1)
    pairs = torch.zeros(case.experts, 2, dtype=torch.int64)
    pairs[: len(here)] = torch.stack([here, counts[here]], dim=1)
    return pairs


def coordinates(inputs: GroupedMatmulInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: expert, row and column."""
    del output  # there is one
    columns = torch.arange(inputs.weights.values.shape[2])
    row = torch.arange(len(inputs.states))
    if inputs.splits_inner:
        group = torch.arange(len(inputs.group_list))
        return {"group": group.view(-1, 1, 1), "row": row.view(1, -1, 1), "column": columns.view(1, 1, -1)}
    ends = counts_of(inputs.group_list, inputs.group_list_type, inputs.weights.experts).cumsum(0)
    expert = torch.bucketize(row, ends, right=True)
    return {"row": row.unsqueeze(1), "expert": expert.unsqueeze(1), "column": columns.unsqueeze(0)}
