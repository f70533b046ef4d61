"""What no source settles of the quantisation and activation operators.

KERNEL is CANN's operator source for A2 and A3, GOLDEN a test's own arithmetic beside it, DOC the documentation of the
operator in torch_npu 2.13.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ties = Literal["half_to_even", "half_away_from_zero"]
"""What becomes of a number in the middle of two integers."""


@dataclass(frozen=True, kw_only=True)
class QuantisationChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # What a NaN becomes as an integer. It arises as 0 * inf in rows of zeros; that the vector unit makes 0 of it is
    # inferred, no source says.
    nan_as_integer: int = 0

    # npu_dynamic_quant, a row of zeros. KERNEL divides 127 by 0 and 1 by that, which is scale 0; its GOLDEN leaves
    # NaN, and aclnn's substitutes scale 1. The integers are 0 in the first and the last.
    dynamic_quant_zero_row: Literal["zero", "one", "nan"] = "zero"

    # The same, halves: KERNEL casts with CAST_RINT, which is to even (dynamic_quant.h); DOC says "round".
    dynamic_quant_ties: Ties = "half_to_even"

    # The same, two equal ends in group_index: DOC wants them to increase. An expert without tokens has the end of the
    # one before, and op-plugin's tests draw such.
    dynamic_quant_empty_groups: Literal["accepted", "undefined"] = "accepted"

    # npu_quantize without div_mode, halves: the wrapper asks for "round", op-plugin's GOLDEN is numpy's round, which is
    # to even. The kernel's cast was not read.
    quantize_ties: Ties = "half_to_even"

    # The same, dtype of scales: DOC lists all three floats, op-plugin's tests give that of input.
    quantize_scales: Literal["any_float", "as_input"] = "any_float"

    # npu_dequant_swiglu_quant, static: DOC multiplies by quant_scale, KERNEL and all GOLDENs divide by it.
    dequant_swiglu_quant_static: Literal["divides", "multiplies"] = "divides"

    # The same, dynamic, a row of zeros: KERNEL stores scale 0 and divides 0 by 0, its GOLDEN substitutes scale 1.
    dequant_swiglu_quant_zero_row: Literal["zero", "one"] = "zero"

    # The same, int32 without activation_scale: DOC wants it, op-plugin's parked test and GOLDEN go without.
    dequant_swiglu_quant_row_scale: Literal["optional", "needed"] = "optional"

    # The same, group_index: what H has to be a multiple of. DOC has 64; CANN's own page of aclnnDequantSwigluQuantV2
    # wants that of the last axis, which is 2H.
    dequant_swiglu_quant_step: Literal[32, 64] = 32

    # npu_swiglu_quant, dynamic, the output "scale": KERNEL, op-plugin's GOLDEN and the formula of aclnnSwiGluQuantV2
    # have 127 / max, the reciprocal of every other operator's; DOC calls it the scale and no more.
    swiglu_quant_scale: Literal["reciprocal", "scale"] = "reciprocal"

    # npu_convert_weight_to_int4pack, several matrices: op-plugin's code lets rank 3 pass and builds the shape from the
    # last two axes, so that the first matrix is all that comes back (inferred; vllm-ascend flattens before).
    int4pack_rank_3: Literal["first_matrix", "all"] = "first_matrix"

    # npu_quant_matmul with output int32: is the scale, which has to be given, applied? DOC has one formula for all
    # outputs; vllm-ascend's W8A8 layers give the weight's scale here and again to npu_dequant_swiglu_quant, which makes
    # sense only if it is not.
    quant_matmul_int32: Literal["accumulators", "scaled"] = "accumulators"

    # The same, the last axis of x1 and x2: DOC has 65535 for all. CANN's current checks leave int8 with a scale per
    # token and one per column out; vllm-ascend #1956 saw that refused by an older one.
    quant_matmul_last_axis: Literal["free_per_token", "always"] = "free_per_token"

    # The same, words of int4 with a scale per token and output bfloat16: DOC has scales of float32; CANN's own page of
    # aclnnQuantMatmulV4 has those of int8, bfloat16 as well, which sglang's W4A4 layers give.
    quant_matmul_int4_scales: Literal["any_float", "float32"] = "any_float"

    # The same, int8 by int4: op-plugin's GOLDEN rounds each group's products, times its scale, to float16 and adds them
    # so. The kernel was not read.
    quant_matmul_a8w4_products: Literal["float16", "float32"] = "float16"

    # npu_weight_quant_batchmatmul, the weight before the product: op-plugin's GOLDEN adds the offset and multiplies in
    # the dtype of x, each rounded. Kernels that go through float32 would round once; none was read.
    weight_quant_dequantised: Literal["rounded_twice", "rounded_once"] = "rounded_twice"

    # The same, antiquant_scale int64: DOC says what may go with it and not where it multiplies. Words of 64 bit are for
    # what leaves the matrix unit, so that it is the sums is inferred.
    weight_quant_word_scales: Literal["sums", "weight"] = "sums"

    # The same with a weight in FRACTAL_NZ, outside of graphs: DOC has it for graphs only, vllm-ascend's W8A16 layers
    # call it so.
    weight_quant_eager_nz: Literal["accepted", "rejected"] = "accepted"
