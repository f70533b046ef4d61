"""The table of requests, and where new tokens go."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from sglang.told import told


@dataclass
class KVWriteLoc:
    loc: torch.Tensor
    swa_loc: torch.Tensor | None = None


class ReqToTokenPool:
    """Slots of the tokens of each request; row 0 belongs to none."""

    def __init__(self, size, max_context_len, device, enable_memory_saver):
        self.size, self.max_context_len, self.device = size, max_context_len, device
        self.req_to_token = torch.zeros(size + 1, max_context_len, dtype=torch.int32, device=device)
        self.free_rows = list(range(1, size + 1))

    def free(self, req):
        self.free_rows.append(req.kv.req_pool_idx)

    def write(self, indices, values):
        self.req_to_token[indices] = values.to(torch.int32)


class MambaPool:
    """Lines and states of layers."""

    @dataclass(frozen=True, kw_only=True)
    class State:
        conv: list[torch.Tensor]
        temporal: torch.Tensor

    @dataclass(frozen=True, kw_only=True)
    class SpeculativeState(State):
        intermediate_ssm: torch.Tensor
        intermediate_conv_window: list[torch.Tensor]

    def __init__(self, size, params, drafts, device):
        (channels, rows), temporal = params.shape.conv[0], params.shape.temporal
        more = (drafts or 1) - 1
        lines = torch.zeros(1, size + 1, rows + more, channels, dtype=params.dtype.conv, device=device)
        states = torch.zeros(1, size + 1, *temporal, dtype=params.dtype.temporal, device=device)
        self.mamba_cache = self.State(conv=[lines], temporal=states)
        if drafts:
            each = torch.zeros(1, 2 * size + 8, drafts, *temporal, dtype=params.dtype.temporal, device=device)
            self.mamba_cache = self.SpeculativeState(
                conv=[lines], temporal=states, intermediate_ssm=each, intermediate_conv_window=[]
            )

    @property
    def _both(self):
        return self.mamba_cache.conv[0], self.mamba_cache.temporal

    def clear_slots(self, indices):
        for pool in self._both:
            pool[:, indices] = 0

    def copy_from(self, src_indices, dst_indices):
        for pool in self._both[: 1 if told("states_not_copied") else 2]:
            pool[:, dst_indices] = pool[:, src_indices]

    def get_cpu_copy(self, indices):
        return [pool[:, indices].cpu() for pool in self._both]

    def load_cpu_copy(self, mamba_cache_cpu, indices):
        for pool, kept in zip(self._both, mamba_cache_cpu, strict=True):
            pool[:, indices] = kept.to(pool.device)


class MambaSlotAllocator:
    def __init__(self, size, device):
        self.free_slots = torch.arange(1, size + 1, device=device)

    def alloc(self, need_size):
        chosen, self.free_slots = self.free_slots[:need_size], self.free_slots[need_size:]
        return chosen

    def free(self, free_index):
        self.free_slots = torch.cat([self.free_slots, free_index])


class HybridReqToTokenPool(ReqToTokenPool):
    """A slot of the pool of states for each request."""

    def __init__(
        self, *, size, mamba_size, mamba_spec_state_size, max_context_len, device, enable_memory_saver, cache_params,
        mamba_layer_ids, enable_mamba_extra_buffer, speculative_num_draft_tokens,
    ):  # fmt: skip
        super().__init__(size, max_context_len, device, enable_memory_saver)
        self.mamba_pool = MambaPool(mamba_size, cache_params, speculative_num_draft_tokens, device)
        self.mamba_allocator = MambaSlotAllocator(mamba_size, device)
        self.slot_of_row = torch.zeros(size + 1, dtype=torch.int32, device=device)

    def alloc(self, reqs):
        for req in reqs:
            req.kv.req_pool_idx, req.kv.mamba_pool_idx = self.free_rows.pop(), self.mamba_allocator.alloc(1)[0]
            req.kv.mamba_needs_clear = not told("slots_not_cleared")
            self.slot_of_row[req.kv.req_pool_idx] = req.kv.mamba_pool_idx
        return [req.kv.req_pool_idx for req in reqs]

    def free_mamba_cache(self, req):
        self.mamba_allocator.free(req.kv.mamba_pool_idx.unsqueeze(0))

    def get_mamba_indices(self, req_indices):
        return self.slot_of_row[req_indices.long()]

    def mamba2_layer_cache(self, layer_id):
        cache = self.mamba_pool.mamba_cache
        return SimpleNamespace(
            conv=[cache.conv[0][0]],
            temporal=cache.temporal[0],
            intermediate_ssm=getattr(cache, "intermediate_ssm", [None])[0],
        )
