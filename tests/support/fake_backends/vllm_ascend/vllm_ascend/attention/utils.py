from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class AscendCommonAttentionMetadata:
    """What all layers of a pass are told."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    causal: bool = True
    attn_state: Any = None
    _seq_lens_cpu: Any = None
    positions: Any = None
