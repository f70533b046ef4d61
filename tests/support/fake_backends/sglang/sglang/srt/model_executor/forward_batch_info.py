"""The batch of a forward pass."""

from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel


class ForwardMode(IntEnum):
    EXTEND = auto()
    DECODE = auto()
    TARGET_VERIFY = auto()


@dataclass
class ForwardBatch:
    forward_mode: ForwardMode
    batch_size: int
    input_ids: torch.Tensor
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    out_cache_loc: torch.Tensor
    seq_lens_sum: int
    seq_lens_cpu: torch.Tensor | None = None
    extend_num_tokens: int | None = None
    extend_seq_lens: torch.Tensor | None = None
    extend_prefix_lens: torch.Tensor | None = None
    extend_seq_lens_cpu: list[int] | None = None
    extend_prefix_lens_cpu: list[int] | None = None
    positions: torch.Tensor | None = None
    spec_info: Any = None


def compute_local_num_token_non_padded(global_num_token_non_padded, num_tokens_per_dp, *, sharded):
    """How many rows of a rank's share of a padded batch are real."""
    ranks = get_parallel()
    width = num_tokens_per_dp // ranks.attn_tp_size if sharded else num_tokens_per_dp
    first = width * ranks.attn_tp_rank if sharded else 0
    return (global_num_token_non_padded - first).clamp(0, width)


class PPProxyTensors:
    def __init__(self, tensors):
        self.tensors = tensors
