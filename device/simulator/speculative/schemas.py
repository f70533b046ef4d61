"""Schemas of speculative decoding.

They are as torch_npu 2.13.0 and sgl-kernel-npu (``csrc/pytorch_extensions.cpp``) register them.
"""

from __future__ import annotations

ADVANCE_STEP = (
    "npu_advance_step_flashattn(Tensor(a!) input_tokens, Tensor sampled_token_ids, Tensor(b!) input_positions, "
    "Tensor(c!) seq_lens, Tensor(d!) slot_mapping, Tensor block_tables, int num_seqs, int num_queries, "
    "int block_size, *, Tensor? spec_token=None, Tensor? accepted_num=None) -> ()"
)

BUILD_TREE = (
    "build_tree_kernel_efficient(Tensor parent_list, Tensor selected_index, Tensor verified_seq_len, Tensor tree_mask, "
    "Tensor positions, Tensor retrive_index, Tensor retrive_next_token, Tensor retrive_next_sibling, int topk, "
    "int depth, int draft_token_num, int tree_mask_mode) -> ()"
)
CACHE_LOC_UPDATE = (
    "cache_loc_update(Tensor req_indices, Tensor token_pool, Tensor start_offset, Tensor end_offset, "
    "Tensor out_cache_loc) -> Tensor"
)

SCHEMAS = (ADVANCE_STEP,)
"""Schemas of torch_npu."""

OF_SGL_KERNEL_NPU = (BUILD_TREE, CACHE_LOC_UPDATE)
"""Schemas of sgl-kernel-npu."""
