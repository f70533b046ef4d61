"""The table of requests, and where new tokens go."""

from dataclasses import dataclass

import torch


@dataclass
class KVWriteLoc:
    loc: torch.Tensor
    swa_loc: torch.Tensor | None = None


class ReqToTokenPool:
    """Slots of the tokens of each request; row 0 belongs to none."""

    def __init__(self, size, max_context_len, device, enable_memory_saver):
        self.size, self.max_context_len, self.device = size, max_context_len, device
        self.req_to_token = torch.zeros(size + 1, max_context_len, dtype=torch.int32, device=device)

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
