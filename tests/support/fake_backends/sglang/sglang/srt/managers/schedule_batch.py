from dataclasses import dataclass


@dataclass
class ReqKvInfo:
    req_pool_idx: int | None = None
    kv_allocated_len: int = 0
    swa_evicted_seqlen: int = 0
