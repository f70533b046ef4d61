"""The choice of keys on vllm-ascend: ``indexer_select_post_process`` of ``sfa_v1``."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.sparse_indexer import as_sets, of_all_rows
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.sparse_world import ROPE, metadata, sparse_attention
from npudiff.device.backends.vllm_ascend.world import TRITON, options_of, triton
from npudiff.model.constraints import Box
from npudiff.reference.sparse_indexer import SparseIndexerInputs

Outputs = dict[str, torch.Tensor]

DIM = 128

OPERATOR = {"use_torch_npu_lightning_indexer": ("0", "1")}
"""Whether a layer takes torch_npu's operator, as that of GLM does, or vllm-ascend's own."""

_HERE: Box = {
    "form": ("16 bits",), "weights": ("as queries",), "page_size": (PAGE,), "padded_rows": (0,),
    "rows": ("contiguous",), "query_length": range(1, 2**20), "count": (2048,),
}  # fmt: skip
"""2,048 keys are chosen, whatever ``index_topk`` of a model is."""


@implementation(
    "sparse_indexer",
    name="indexer_select_post_process",
    supports=_HERE,
    options={**OPERATOR, **TRITON},
    on_device=True,
)
def chosen(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Prompts, steps and drafts, which are one call; projections give what the case has, and nothing is rotated."""
    said = metadata(inputs.block_table, inputs.query_lengths, inputs.kv_lengths)
    rows, heads, _ = inputs.query.shape
    keys = torch.zeros(rows, DIM, dtype=inputs.weights.dtype, device=inputs.query.device)
    layer = sparse_attention(
        wk_weights_proj=lambda _: (torch.cat([keys, inputs.weights], dim=1), None),
        wq_b=lambda _: (inputs.query.flatten(1), None),
        n_head=heads, head_dim=DIM, qk_rope_head_dim=ROPE, is_rope_neox_style=True,
        use_torch_npu_lightning_indexer=options_of(inputs)["use_torch_npu_lightning_indexer"] == "1",
    )  # fmt: skip
    x = inputs.query.new_zeros(rows, 1)
    cos, sin = (table.to(inputs.query) for table in (said.cos, said.sin))
    caches = (keys[:0], keys[:0], inputs.key)
    with triton(inputs):
        answer = layer.indexer_select_post_process(x, x, caches, said, cos, sin, said.cum_query_lens, said.seq_lens)
    return as_sets(inputs, of_all_rows(inputs, answer))
