"""Wrong packings of integers of four bits."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.int4_pack import bytes_viewed_as_words, paired, shifted, shifted_words, signed
from npudiff.reference.int4_pack import Int4PackInputs


@mutant(shifted_words, "QNT-04 amd/Quark/pull/30: columns in the order of AWQ, 0 2 4 6 1 3 5 7")
def awq_column_order(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Pack even columns first."""
    return shifted(signed(inputs), (0, 2, 4, 6, 1, 3, 5, 7))


@mutant(
    bytes_viewed_as_words,
    "QNT-05 vllm-project/compressed-tensors/pull/518: a negative low nibble is not masked",
    supports={"source": ("integers", "offset binary")},
)
def even_column_not_masked(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Join the halves of a byte without masking the lower one, which is all ones above where it is negative."""
    values = signed(inputs).contiguous()
    low, high = values[..., 0::2], values[..., 1::2]
    return (high << 4 | low).to(torch.int8).view(torch.int32)


@mutant(bytes_viewed_as_words, "QNT-04 vllm-project/vllm-ascend/pull/9625: the even column in the upper half of a byte")
def even_column_above(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Swap the halves of every byte."""
    values = signed(inputs).contiguous()
    return paired(values[..., 1::2], values[..., 0::2])


@perturbed(
    shifted_words,
    "moe_methods.py 880-1012: nibbles of WNA16 checkpoints are integers plus 8, and are packed as they are",
)
def offset_binary_as_it_is(inputs: Int4PackInputs) -> Int4PackInputs:
    """Take offset binary for two's complement."""
    return replace(inputs, encoding="two's complement")


@mutant(
    shifted_words,
    "w4a16.py 103: of rank 3, npu_convert_weight_to_int4pack returns the first matrix, so callers flatten",
)
def first_matrix_only(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Do not flatten several matrices, and get the words of the first."""
    values = signed(inputs)
    return shifted(values[0] if values.dim() == 3 else values, range(8))


@mutant(
    shifted_words,
    "moe_methods.py 919: weights are transposed views, which have to be made contiguous before they are packed",
    supports={"layout": ("transposed",), "rows": range(2, 2**16 + 1)},
)
def memory_for_matrix(inputs: Int4PackInputs, target: Target) -> torch.Tensor:
    """Read the elements of a transposed view one after the other, as they lie."""
    values = signed(inputs)
    lying = values.transpose(-1, -2).contiguous().view(values.shape)
    return shifted(lying, range(8))
