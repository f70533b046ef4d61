"""Schemas of the elementary operators, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

GELU = "npu_gelu(Tensor input, *, str approximate='none') -> Tensor"
GELU_BACKWARD = "npu_gelu_backward(Tensor grad_output, Tensor input, *, str approximate='none') -> Tensor"
GELU_MUL = "npu_gelu_mul(Tensor input, *, str approximate='none') -> Tensor"
SILU = "npu_silu(Tensor input) -> Tensor"
SILU_IN_PLACE = "npu_silu_(Tensor(a!) input) -> Tensor(a!)"
SILU_BACKWARD = "npu_silu_backward(Tensor grad_output, Tensor x0, Tensor x1) -> Tensor"
MISH = "npu_mish(Tensor input) -> Tensor"
MISH_BACKWARD = "npu_mish_backward(Tensor grad, Tensor input) -> Tensor"

BROADCAST = "npu_broadcast(Tensor input, int[] size) -> Tensor"
RESHAPE = "npu_reshape(Tensor input, int[] shape, bool can_refresh=False) -> Tensor"
TRANSPOSE = "npu_transpose(Tensor input, int[] perm, bool require_contiguous=True) -> Tensor"
CONFUSION_TRANSPOSE = "npu_confusion_transpose(Tensor input, int[] perm, int[] shape, bool transpose_first) -> Tensor"
CONFUSION_TRANSPOSE_BACKWARD = (
    "npu_confusion_transpose_backward(Tensor grad, int[] perm, SymInt[] shape, bool transpose_first) -> Tensor"
)
SLICE = "npu_slice(Tensor input, int[] offsets, int[] size) -> Tensor"
INDEXING = (
    "npu_indexing(Tensor input, int[] begin, int[] end, int[] strides, int begin_mask=0, int end_mask=0, "
    "int ellipsis_mask=0, int new_axis_mask=0, int shrink_axis_mask=0) -> Tensor"
)
PAD = "npu_pad(Tensor input, int[] paddings) -> Tensor"
ONE_HOT = "npu_one_hot(Tensor input, int num_classes=-1, int depth=1, Scalar on_value=1, Scalar off_value=0) -> Tensor"
SORT = "npu_sort_v2(Tensor input, int dim=-1, bool descending=False) -> Tensor"
MAX = "npu_max.dim(Tensor input, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"
MIN = "npu_min.dim(Tensor input, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"
MAX_BACKWARD = "npu_max_backward(Tensor grad, int dim, Tensor indices, SymInt[] sizes, bool keepdim) -> Tensor"
MIN_BACKWARD = "npu_min_backward(Tensor grad, int dim, Tensor indices, SymInt[] sizes, bool keepdim) -> Tensor"
SIGN_BITS_PACK = "npu_sign_bits_pack(Tensor input, int size) -> Tensor"
SIGN_BITS_UNPACK = "npu_sign_bits_unpack(Tensor input, int size, ScalarType dtype) -> Tensor"

LINEAR = "npu_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"
LINEAR_BACKWARD = "npu_linear_backward(Tensor grad, Tensor input, Tensor weight) -> (Tensor, Tensor)"
BMM = "npu_bmmV2(Tensor input, Tensor mat2, int[] output_sizes) -> Tensor"
BMM_BACKWARD_OF_FIRST = "npu_bmm_v2_mat1_backward(Tensor grad, Tensor mat1, Tensor mat2, SymInt[] size) -> Tensor"
BMM_BACKWARD_OF_SECOND = "npu_bmm_v2_mat2_backward(Tensor grad, Tensor mat1, Tensor mat2, SymInt[] size) -> Tensor"
LAYER_NORM_EVAL = (
    "npu_layer_norm_eval(Tensor input, int[] normalized_shape, Tensor? weight=None, Tensor? bias=None, "
    "float eps=1e-05) -> Tensor"
)
BATCH_NORM_REDUCE = "batch_norm_reduce(Tensor input, float eps) -> (Tensor, Tensor)"
ONES_IN_PLACE = "one_(Tensor(a!) input) -> Tensor(a!)"
CROSS_ENTROPY = "npu_softmax_cross_entropy_with_logits(Tensor input, Tensor labels) -> Tensor"

SCHEMAS = (
    GELU,
    GELU_BACKWARD,
    GELU_MUL,
    SILU,
    SILU_IN_PLACE,
    SILU_BACKWARD,
    MISH,
    MISH_BACKWARD,
    BROADCAST,
    RESHAPE,
    TRANSPOSE,
    CONFUSION_TRANSPOSE,
    CONFUSION_TRANSPOSE_BACKWARD,
    SLICE,
    INDEXING,
    PAD,
    ONE_HOT,
    SORT,
    MAX,
    MIN,
    MAX_BACKWARD,
    MIN_BACKWARD,
    SIGN_BITS_PACK,
    SIGN_BITS_UNPACK,
    LINEAR,
    LINEAR_BACKWARD,
    BMM,
    BMM_BACKWARD_OF_FIRST,
    BMM_BACKWARD_OF_SECOND,
    LAYER_NORM_EVAL,
    BATCH_NORM_REDUCE,
    ONES_IN_PLACE,
    CROSS_ENTROPY,
)
"""Every schema of the family."""
