"""Schemas of products with low-rank adapters, as sgl-kernel-npu registers them (``csrc/pytorch_extensions.cpp``).

They are those of the version that sglang 0.5.23 calls; before it ``sgemmv_shrink`` had no ``slice_count``.
"""

from __future__ import annotations

_ADAPTERS = "Tensor! x, Tensor! weight, Tensor! lora_indices, Tensor! seq_len, Tensor! lora_ranks"

SGEMMV_SHRINK = f"sgemmv_shrink({_ADAPTERS}, Tensor! lora_scales, Tensor! y, int slice_count=1) -> ()"
SGEMMV_EXPAND = f"sgemmv_expand({_ADAPTERS}, Tensor! sliceOffsets, Tensor! y) -> Tensor"

OF_SGL_KERNEL_NPU = (SGEMMV_SHRINK, SGEMMV_EXPAND)
"""Every schema of the family; sgl-kernel-npu registers them."""
