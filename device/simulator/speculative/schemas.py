"""Schemas of speculative decoding, as sgl-kernel-npu registers them (``csrc/pytorch_extensions.cpp``)."""

from __future__ import annotations

BUILD_TREE = (
    "build_tree_kernel_efficient(Tensor parent_list, Tensor selected_index, Tensor verified_seq_len, Tensor tree_mask, "
    "Tensor positions, Tensor retrive_index, Tensor retrive_next_token, Tensor retrive_next_sibling, int topk, "
    "int depth, int draft_token_num, int tree_mask_mode) -> ()"
)
CACHE_LOC_UPDATE = (
    "cache_loc_update(Tensor req_indices, Tensor token_pool, Tensor start_offset, Tensor end_offset, "
    "Tensor out_cache_loc) -> Tensor"
)

OF_SGL_KERNEL_NPU = (BUILD_TREE, CACHE_LOC_UPDATE)
"""Every schema of the family; sgl-kernel-npu registers them."""
