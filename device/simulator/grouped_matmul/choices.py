"""What no source settles of the grouped matrix products.

DOC is each operator's torch_npu documentation, ACLNN CANN's aclnnGroupedMatmulV5 page, GOLDEN the expected values of
op-plugin's tests, HOST op-plugin's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GroupedMatmulChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_grouped_matmul, int8 by int8: pairs of the dtypes of scale and output. DOC's table has these.
    gmm_int8_outputs: frozenset[tuple[str, str]] = frozenset({("bfloat16", "bfloat16"), ("float32", "float16")})

    # npu_grouped_matmul, group_type 2, a group without columns: its product is a matrix of zeros in GOLDEN; whether the
    # kernel writes it is not said.
    gmm_empty_k_group: Literal["zeros", "unwritten"] = "zeros"

    # int8 by int4, group_list: ACLNN has counts only, and nothing checks group_list_type.
    gmm_a8w4_group_list: Literal["counts", "as_given"] = "counts"

    # The same, one scale per column: do the products of both halves, times the scale, round to float16? GOLDEN of
    # the form with groups rounds there, the other one is not shown to.
    gmm_a8w4_channel_products: Literal["float32", "float16"] = "float32"

    # The same, scales per group: GOLDEN casts each group's sum to float16, multiplies by the scale in float16 and
    # adds groups in float16. What the kernel does was not read.
    gmm_a8w4_group_products: Literal["float16", "float32"] = "float16"

    # The same: how many rows of a weight share a scale. HOST has 256 as a constant.
    gmm_a8w4_group_size: int = 256

    # The same, x after the call: a comment in op-plugin's test says that it may be changed.
    gmm_a8w4_x: Literal["kept", "overwritten"] = "kept"

    # npu_grouped_matmul, int4 by int4: each group's products, times its scale, round to float16 and are added so, as
    # in the kernels that split int8 (inferred).
    gmm_a4w4_products: Literal["float16", "float32"] = "float16"

    # npu_grouped_matmul and npu_grouped_matmul_finalize_routing, a weight in FRACTAL_NZ whose matrices are no whole
    # tiles: sglang #21201 saw the first refuse it, DOC of the second wants whole tiles. swiglu_quant is not known to.
    gmm_unaligned_tiles: Literal["rejected", "padded"] = "rejected"

    # npu_grouped_matmul_swiglu_quant, weights that were not cast to FRACTAL_NZ: DOC wants the format, HOST checks
    # nothing.
    gmm_swiglu_weight_format: Literal["any", "fractal_nz"] = "any"

    # The same, version 2, dequant_dtype and quant_dtype: DOC says 0, the schema's defaults are 6 and 1.
    gmm_swiglu_dtypes: Literal["either", "schema"] = "either"

    # The same, int4 by int4, weight_scale: DOC says float32, its SOURCE wants words of 64 bit with a float32 in their
    # lower half, which op-plugin's test gives.
    gmm_swiglu_a4w4_scales: Literal["either", "bits"] = "either"

    # The same: the products of a row, times the scale of the column, are stored as float16 in SOURCE.
    gmm_swiglu_a4w4_products: Literal["float16", "float32"] = "float16"

    # npu_grouped_matmul_finalize_routing: shared_input first, then rows in their order, is one order of many; the sums
    # are atomic (inferred).
    gmm_finalize_order: Literal["shared_first", "shared_last"] = "shared_first"
