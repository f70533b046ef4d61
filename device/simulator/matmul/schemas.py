"""Schemas of products with transpositions, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

TRANSPOSE_BATCHMATMUL = (
    "npu_transpose_batchmatmul(Tensor input, Tensor weight, *, Tensor? bias=None, Tensor? scale=None, "
    "int[]? perm_x1=None, int[]? perm_x2=None, int[]? perm_y=None, int? batch_split_factor=1) -> Tensor"
)

SCHEMAS = (TRANSPOSE_BATCHMATMUL,)
"""Every schema of the family."""
