"""A layer of sparse attention of vllm-ascend: ``AscendSFAImpl`` with what its calls read of a model and a batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.attention.sfa_v1 import AscendSFAImpl


def sparse_attention(**attributes: object) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the implementation of one layer without C8, which has these attributes."""
    made: Any = AscendSFAImpl.__new__(AscendSFAImpl)
    usual: dict[str, object] = {
        "layer_name": "model.layers.0.self_attn.attn",
        "has_indexer": True,
        "enable_sparse_sfa_c8": False,
        "enable_sparse_li_c8": False,
        "use_torch_npu_lightning_indexer": False,
    }
    vars(made).update({**usual, **attributes})
    return made


def metadata(table: torch.Tensor, query_lengths: Sequence[int], kv_lengths: Sequence[int]) -> SimpleNamespace:
    """Return what a call reads of a batch, as the builder copies it of the runner: all of it on the device."""
    ends = torch.tensor(query_lengths, dtype=torch.int32).cumsum(dim=0).to(table.device, torch.int32)
    lengths = torch.tensor(kv_lengths, dtype=torch.int32, device=table.device)
    return SimpleNamespace(block_table=table, cum_query_lens=ends, seq_lens=lengths)
