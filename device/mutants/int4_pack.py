"""Wrong packings of integers of four bits."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.int4_pack import paired, shifted, shifted_words, signed
from npudiff.reference.int4_pack import Int4PackInputs


@npudiff.implementation(
    "int4_pack",
    name="awq_column_order",
    mutant_of="shifted_words",
    wrong="QNT-04 https://github.com/amd/Quark/pull/30: columns in the order of AWQ, 0 2 4 6 1 3 5 7",
)
def awq_column_order(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Pack even columns first."""
    return shifted(signed(inputs.to(target.device)), (0, 2, 4, 6, 1, 3, 5, 7))


@npudiff.implementation(
    "int4_pack",
    name="even_column_not_masked",
    supports={"source": ("integers", "offset binary")},
    mutant_of="bytes_viewed_as_words",
    wrong="QNT-05 https://github.com/vllm-project/compressed-tensors/pull/518: a negative low nibble is not masked",
)
def even_column_not_masked(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Join the halves of a byte without masking the lower one, which is all ones above where it is negative."""
    values = signed(inputs.to(target.device)).contiguous()
    low, high = values[..., 0::2], values[..., 1::2]
    return (high << 4 | low).to(torch.int8).view(torch.int32)


@npudiff.implementation(
    "int4_pack",
    name="even_column_above",
    mutant_of="bytes_viewed_as_words",
    wrong="QNT-04 https://github.com/vllm-project/vllm-ascend/pull/9625: the even column in the upper half of a byte",
)
def even_column_above(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Swap the halves of every byte."""
    values = signed(inputs.to(target.device)).contiguous()
    return paired(values[..., 1::2], values[..., 0::2])


@npudiff.implementation(
    "int4_pack",
    name="offset_binary_as_it_is",
    mutant_of="shifted_words",
    wrong="moe_methods.py 880-1012: nibbles of WNA16 checkpoints are integers plus 8, and are packed as they are",
)
def offset_binary_as_it_is(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Take offset binary for two's complement."""
    return shifted_words(replace(inputs, encoding="two's complement"), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "int4_pack",
    name="first_matrix_only",
    mutant_of="shifted_words",
    wrong="w4a16.py 103: of rank 3, npu_convert_weight_to_int4pack returns the first matrix, so callers flatten",
)
def first_matrix_only(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Do not flatten several matrices, and get the words of the first."""
    values = signed(inputs.to(target.device))
    return shifted(values[0] if values.dim() == 3 else values, range(8))


@npudiff.implementation(
    "int4_pack",
    name="memory_for_matrix",
    supports={"layout": ("transposed",), "rows": range(2, 2**16 + 1)},
    mutant_of="shifted_words",
    wrong="moe_methods.py 919: weights are transposed views, which have to be made contiguous before they are packed",
)
def memory_for_matrix(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Read the elements of a transposed view one after the other, as they lie."""
    values = signed(inputs.to(target.device))
    lying = values.transpose(-1, -2).contiguous().view(values.shape)
    return shifted(lying, range(8))
