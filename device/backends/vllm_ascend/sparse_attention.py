"""Attention over chosen keys on vllm-ascend: ``_execute_sparse_flash_attention_process`` of ``sfa_v1``."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.sparse_world import metadata, sparse_attention
from npudiff.model.constraints import Box
from npudiff.reference.sparse_attention import SparseAttentionInputs

Outputs = dict[str, torch.Tensor]

_HERE: Box = {
    "form": ("16 bits",), "page_size": (PAGE,), "padded_rows": (0,), "rows": ("contiguous",),
    "heads": (*range(1, 65), 128), "query_length": range(1, 2**20),
}  # fmt: skip


@implementation("sparse_attention", name="_execute_sparse_flash_attention_process", supports=_HERE, on_device=True)
def attended(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """Prompts, steps and drafts, which are one call."""
    said = metadata(inputs.pool.block_table, inputs.query_lengths, inputs.kv_lengths)
    answer: torch.Tensor = sparse_attention(scale=inputs.scale)._execute_sparse_flash_attention_process(
        inputs.query, inputs.query_rope, (inputs.pool.key, inputs.pool.value), inputs.indices, said,
        said.cum_query_lens, said.seq_lens,
    )  # fmt: skip
    return {"output": answer.reshape(inputs.query.shape)}
