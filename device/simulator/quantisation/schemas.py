"""Schemas of the quantisation operators, as torch_npu 2.13.0 registers them.

The strings are those in ``libtorch_npu.so``. The wheel's other listing,
``csrc/aten/npu_native_functions_by_codegen.yaml``, calls the first argument of ``npu_quantize`` ``self``; the library
calls it ``input``.
"""

from __future__ import annotations

DYNAMIC_QUANT = (
    "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
    'str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)'
)
DYNAMIC_QUANT_ASYMMETRIC = (
    "npu_dynamic_quant_asymmetric(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, "
    'int? dst_type=None, str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor, Tensor)'
)
QUANTIZE = (
    "npu_quantize(Tensor input, Tensor scales, Tensor? zero_points, int dtype, int axis=1, bool div_mode=True) -> "
    "Tensor"
)
CONVERT_WEIGHT_TO_INT4PACK = "npu_convert_weight_to_int4pack(Tensor weight, int inner_k_tiles=0) -> Tensor"
TRANS_QUANT_PARAM = "npu_trans_quant_param(Tensor scale, Tensor? offset=None, int? round_mode=0) -> Tensor"
QUANT_MATMUL = (
    "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, "
    "Tensor? bias=None, int? output_dtype=None, int? x1_dtype=None, int? x2_dtype=None, "
    "int? pertoken_scale_dtype=None, int? scale_dtype=None, int[]? group_sizes=None, Tensor? y_scale=None) -> Tensor"
)
QUANT_MATMUL_GELU = (
    "npu_quant_matmul_gelu(Tensor x1, Tensor x2, Tensor x1_scale, Tensor x2_scale, *, Tensor? bias=None, "
    "str? approximate='gelu_erf') -> Tensor"
)
QUANT_MATMUL_REDUCE_SUM = (
    "npu_quant_matmul_reduce_sum(Tensor x1, Tensor x2, *, Tensor? x1_scale=None, Tensor? x2_scale=None) -> Tensor"
)
WEIGHT_QUANT_BATCHMATMUL = (
    "npu_weight_quant_batchmatmul(Tensor x, Tensor weight, Tensor antiquant_scale, Tensor? antiquant_offset=None, "
    "Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? bias=None, int antiquant_group_size=0, "
    "int inner_precise=0, int? weight_dtype=None) -> Tensor"
)

ANTI_QUANT = (
    "npu_anti_quant(Tensor x, Tensor scale, *, Tensor? offset=None, int? dst_dtype=None, int? src_dtype=None) -> Tensor"
)
GROUP_QUANT = (
    "npu_group_quant(Tensor x, Tensor scale, Tensor group_index, *, Tensor? offset=None, "
    "ScalarType? dst_dtype=None) -> Tensor"
)
_SCATTER_OPTIONS = (
    "Tensor indices, Tensor updates, Tensor quant_scales, Tensor? quant_zero_points=None, int axis=-2, "
    "int quant_axis=-1, str reduce='update', int? dst_type=None, str? round_mode='rint'"
)
QUANT_SCATTER = f"npu_quant_scatter(Tensor input, {_SCATTER_OPTIONS}) -> Tensor"
QUANT_SCATTER_IN_PLACE = f"npu_quant_scatter_(Tensor(a!) input, {_SCATTER_OPTIONS}) -> Tensor(a!)"

SCHEMAS = (
    ANTI_QUANT,
    GROUP_QUANT,
    QUANT_SCATTER,
    QUANT_SCATTER_IN_PLACE,
    DYNAMIC_QUANT,
    DYNAMIC_QUANT_ASYMMETRIC,
    QUANTIZE,
    CONVERT_WEIGHT_TO_INT4PACK,
    TRANS_QUANT_PARAM,
    QUANT_MATMUL,
    QUANT_MATMUL_GELU,
    QUANT_MATMUL_REDUCE_SUM,
    WEIGHT_QUANT_BATCHMATMUL,
)
"""Every schema of the family."""
