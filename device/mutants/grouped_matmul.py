"""Wrong grouped matrix products."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.grouped_matmul import by_sizes, counts, expert_by_expert, grouped, npu_grouped_matmul_w4a8
from npudiff.device.ascend.packed_weights import assist_matrix, bits_of, words
from npudiff.model.constraints import Box
from npudiff.reference.grouped_matmul import GroupedMatmulInputs

_BY_ROWS: Box = {"split": ("rows",)}
_INT4: Box = {**_BY_ROWS, "form": ("w4a8",), "group_list": ("counts",)}

_MOE_01 = "MOE-01 vllm-project/vllm-ascend/pull/5025"
_MOE_02 = "MOE-02 vllm-project/vllm-ascend/pull/4822"
_MOE_16 = "MOE-16 huggingface/kernels-community/issues/1153"
_QNT_02 = "QNT-02 vllm-project/vllm-ascend/pull/8411"


@mutant(
    expert_by_expert,
    f"{_MOE_02}: a cumulative list is read as the rows of each expert",
    supports={"group_list": ("ends",)},
)
def ends_taken_for_counts(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Give every expert as many rows as there are up to its end."""
    return by_sizes(inputs, inputs.group_list.tolist())


@mutant(
    expert_by_expert,
    f"{_MOE_01}: the first expert has the difference of the next two ends in place of its own",
    supports={"group_list": ("ends",)},
)
def first_count_from_differences(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Put the first difference before all differences, where the first end belongs."""
    differences = torch.diff(inputs.group_list)
    sizes = torch.cat([differences[:1], differences]) if len(differences) else inputs.group_list
    return by_sizes(inputs, sizes.tolist())


@mutant(
    expert_by_expert,
    f"{_MOE_16}: a tile that is wider than what is left of a row writes into the next one",
    supports={"columns": range(1, 2**12)},
)
def tile_beyond_the_last_column(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Write whole tiles of columns, the rows last to first, so that the rest of a tile stays in the next row."""
    right = expert_by_expert(inputs, target)
    rows, columns = right.shape
    rest = -columns % 64
    total = sum(counts(inputs))
    if rest and rest <= columns:
        right[1:total, :rest] = 0
    return right.view(rows, columns)


@mutant(
    npu_grouped_matmul_w4a8, "QNT-01 vllm-project/vllm-ascend/issues/3152: every rank adds what belongs to all of them"
)
def assist_matrix_of_two_ranks(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Give the operator twice what the offset of halves costs, as the sum over two ranks has it."""
    return _int4(inputs, 2 * assist_matrix(inputs.weights))


@mutant(
    npu_grouped_matmul_w4a8, "QNT-01 vllm-project/vllm-ascend/issues/3152: nothing is added for the 8 of every int8"
)
def assist_matrix_missing(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Give the operator zeros in place of what the offset of halves costs."""
    return _int4(inputs, torch.zeros_like(assist_matrix(inputs.weights)))


@mutant(npu_grouped_matmul_w4a8, f"{_QNT_02}: the sum that goes with int4 weights runs over the wrong axis")
def assist_matrix_over_columns(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Sum over columns; as many of these sums as there are columns are used."""
    weights = inputs.weights
    columns = weights.values.shape[2]
    sums = 8 * weights.values.sum(dim=2).float() * bits_scale(inputs).float()
    wrapped = torch.arange(columns) % sums.shape[1]
    return _int4(inputs, sums[:, wrapped].contiguous())


def bits_scale(inputs: GroupedMatmulInputs) -> torch.Tensor:
    """The first scale of each expert."""
    if inputs.weights.scale is None:
        raise ValueError("int4 has scales")
    return inputs.weights.scale[:, 0, :1]


def _int4(inputs: GroupedMatmulInputs, assist: torch.Tensor) -> torch.Tensor:
    weights = inputs.weights
    return grouped(
        inputs,
        words(weights.values),
        scale=bits_of(weights.scale),
        bias=assist,
        per_token_scale=inputs.token_scale,
    )


@perturbed(expert_by_expert, "QNT-04 amd/Quark/pull/30: the first integer of a byte in its higher half", supports=_INT4)
def high_nibble_first(inputs: GroupedMatmulInputs) -> GroupedMatmulInputs:
    """Swap the columns of every pair of weights."""
    values = inputs.weights.values
    swapped = torch.stack([values[..., 1::2], values[..., 0::2]], dim=-1).flatten(2)
    return replace(inputs, weights=replace(inputs.weights, values=swapped))


@mutant(expert_by_expert, "MOE-05 sgl-project/sglang/pull/40705: matrices are counted only where there are rows")
def next_matrix_for_an_empty_group(inputs: GroupedMatmulInputs, target: Target) -> torch.Tensor:
    """Leave groups without rows out, and give the next matrix to the next group that has any."""
    return by_sizes(inputs, [size for size in counts(inputs) if size])


@perturbed(
    expert_by_expert,
    "QNT-08 vllm-project/vllm-ascend/issues/5603: a column has the scale of its first group",
    supports={"form": ("w4a8", "w8a16", "w4a16"), "groups": range(2, 257)},
)
def first_scale_of_a_column(inputs: GroupedMatmulInputs) -> GroupedMatmulInputs:
    """Use the scale of the first group for all."""
    weights = inputs.weights
    if weights.scale is None:
        raise ValueError("integers have scales")
    scale = weights.scale[:, :1].expand_as(weights.scale).contiguous()
    return replace(inputs, weights=replace(weights, scale=scale))


@perturbed(
    expert_by_expert,
    "QNT-13 NVIDIA/TensorRT-LLM/pull/12190: the bias is ignored",
    supports={"bias": ("float", "int32")},
)
def bias_left_out(inputs: GroupedMatmulInputs) -> GroupedMatmulInputs:
    """Leave the bias out."""
    return replace(inputs, weights=replace(inputs.weights, bias=None))


@perturbed(
    expert_by_expert,
    "TRI-07 flagos-ai/FlagGems/issues/5657: what is left after whole tiles is not added",
    supports={"form": ("float",), "inner": range(32, 2**12)},
)
def tail_of_a_row_left_out(inputs: GroupedMatmulInputs) -> GroupedMatmulInputs:
    """Multiply whole tiles of 32 elements."""
    whole = inputs.states.shape[1] // 32 * 32
    weights = replace(inputs.weights, values=inputs.weights.values[:, :whole])
    return replace(inputs, states=inputs.states[:, :whole], weights=weights)
