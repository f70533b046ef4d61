"""A layer of sparse attention of vllm-ascend: ``AscendSFAImpl`` and the metadata of its builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.attention import sfa_v1
from vllm_ascend.attention.attention_v1 import AscendAttentionState
from vllm_ascend.attention.utils import AscendCommonAttentionMetadata

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, patched

ROPE = 64


def sparse_attention(**attributes: object) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the implementation of one layer without C8, which has these attributes."""
    made: Any = sfa_v1.AscendSFAImpl.__new__(sfa_v1.AscendSFAImpl)
    usual: dict[str, object] = {
        "layer_name": "model.layers.0.self_attn.attn",
        "has_indexer": True,
        "enable_sparse_sfa_c8": False,
        "enable_sparse_li_c8": False,
        "use_torch_npu_lightning_indexer": False,
    }
    vars(made).update({**usual, **attributes})
    return made


def metadata(table: torch.Tensor, query_lengths: Sequence[int], kv_lengths: Sequence[int]) -> Any:  # noqa: ANN401
    """Return the metadata that vllm-ascend's builder makes of a batch; tables of cosines and sines turn nothing."""
    device, rows = table.device, sum(query_lengths)
    starts = torch.tensor([0, *query_lengths], dtype=torch.int32).cumsum(dim=0).to(torch.int32)
    lengths = torch.tensor(kv_lengths, dtype=torch.int32)
    wanted = {
        "query_start_loc": starts.to(device),
        "query_start_loc_cpu": starts,
        "seq_lens": lengths.to(device),
        "_seq_lens_cpu": lengths,
        "seq_lens_cpu": lengths,
        "num_reqs": len(lengths),
        "num_actual_tokens": rows,
        "num_input_tokens": rows,
        "max_query_len": max(query_lengths),
        "max_seq_len": max(kv_lengths),
        "block_table_tensor": table,
        "slot_mapping": torch.zeros(rows, dtype=torch.int32, device=device),
        "positions": torch.zeros(rows, dtype=torch.int64, device=device),
        "attn_state": AscendAttentionState.ChunkedPrefill,
        "causal": True,
    }
    names = {one.name for one in fields(AscendCommonAttentionMetadata)}
    common = AscendCommonAttentionMetadata(**{name: one for name, one in wanted.items() if name in names})
    still = torch.ones(rows, 1, 1, ROPE, device=device), torch.zeros(rows, 1, 1, ROPE, device=device)
    here = {
        "get_cos_and_sin_mla": lambda *_, **__: still,
        "get_ascend_config": lambda: ascend_configuration(c8_enable_reshape_optim=False),
    }
    with patched(sfa_v1, here):
        return _builder(len(lengths), device).build(0, common)


def _builder(requests: int, device: torch.device) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return a builder with the fields that its constructor sets, without drafts."""
    made: Any = sfa_v1.AscendSFAMetadataBuilder.__new__(sfa_v1.AscendSFAMetadataBuilder)
    numbers = torch.zeros(requests + 1, dtype=torch.int32, device=device)
    vars(made).update(
        metadata_cls=sfa_v1.AscendSFAMetadata, kernel_block_size=PAGE, device=device,
        actual_seq_lengths_query=numbers, actual_seq_lengths_key=numbers.clone(),
        model_config=SimpleNamespace(get_head_size=lambda: 0),
        attn_mask_builder=SimpleNamespace(get_attention_mask=lambda *_: None),
    )  # fmt: skip
    return made
