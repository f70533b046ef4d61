from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class ReqKvInfo:
    req_pool_idx: int | None = None
    kv_allocated_len: int = 0
    swa_evicted_seqlen: int = 0
    mamba_pool_idx: Any = None
    mamba_cow_src_index: Any = None
    mamba_needs_clear: bool = False


class ScheduleBatch:
    def _collect_deferred_mamba_cow_and_clear(self, reqs):
        """Note which slots have to be cleared, and which are copies of others."""
        copies = [req for req in reqs if req.kv.mamba_cow_src_index is not None]
        self.clear = [req.kv.mamba_pool_idx for req in reqs if req.kv.mamba_needs_clear]
        self.sources = [req.kv.mamba_cow_src_index for req in copies]
        self.copies = [req.kv.mamba_pool_idx.unsqueeze(0) for req in copies]
        self.clear = torch.stack(self.clear) if self.clear else None
