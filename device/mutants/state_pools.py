"""Wrong state pools: what becomes of requests with linear attention when one step forgets something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend import causal_conv
from npudiff.device.ascend.state_pools import (
    ChunkedPools,
    Outputs,
    SglangPools,
    TorchPools,
    VllmPools,
    chunked_state_pools,
    sglang_state_pools,
    torch_state_pools,
    vllm_ascend_state_pools,
)
from npudiff.reference.causal_conv import CausalConvInputs
from npudiff.reference.gated_delta import GatedDeltaInputs
from npudiff.reference.state_pools import LayerTokens, StatePoolsInputs

_POOL = "sglang 0.5.23 mem_cache/memory_pool.py"
_BEHIND_DRAFTS = {"drafts": range(2, 9)}


@mutant(sglang_state_pools, f"{_POOL} 1147: a slot is cleared for each request that gets it, not once")
class StateSlotNotCleared(SglangPools):
    """A request that gets a slot which another one had begins with the other's states."""

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target)
        self.lines[:], self.pool[:] = 0, 0

    def clear(self, slot: int) -> None:
        """Rely on what the pools began with."""


@mutant(vllm_ascend_state_pools, "vllm-project/vllm-ascend/pull/10558: whether there is a state is not looked at")
class NewRequestHasAState(VllmPools):
    """Every prompt begins with what its slot holds."""

    def begun(self, known: list[bool]) -> list[bool]:
        """Say so of all requests."""
        return [True] * len(known)


@mutant(torch_state_pools, "vllm-project/vllm-ascend/pull/7506: slot -1 is a place in memory")
class PaddedRowHasTheLastSlot(TorchPools):
    """Padded rows of a step write into the last slot of the pools."""

    def slots_of_rows(self, requests: Sequence[int], rows: int) -> torch.Tensor:
        """Count -1 from the end."""
        return super().slots_of_rows(requests, rows) % len(self.pool)


@mutant(torch_state_pools, "vllm-project/vllm-ascend/pull/10901: rows of padding have the slots of the batch before")
class PaddedRowKeepsItsSlot(TorchPools):
    """A batch that got smaller leaves the slots of its last rows as they were."""

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target)
        self.of_rows = self.slots_of([], 2 + inputs.requests)

    def slots_of_rows(self, requests: Sequence[int], rows: int) -> torch.Tensor:
        """Write over the slots of the real rows only."""
        real = self.slots_of(requests)
        self.of_rows[: len(real)] = real
        behind = self.of_rows[len(real) : rows]
        return torch.cat([real, torch.where(torch.isin(behind, real), -1, behind)])


@mutant(
    vllm_ascend_state_pools,
    "vllm-project/vllm/pull/40738: the state is not that of the last token that was accepted",
    supports=_BEHIND_DRAFTS,
)
class DraftsBeginWithTheFirstState(VllmPools):
    """Drafts go on with the state behind the first token of those before."""

    def accepted_of_states(self, accepted: torch.Tensor) -> torch.Tensor:
        """Take one token for accepted."""
        return torch.ones_like(accepted)


@mutant(
    vllm_ascend_state_pools,
    "vllm-project/vllm/pull/50272: the convolution goes on behind tokens that were rejected",
    supports=_BEHIND_DRAFTS,
)
class DraftsBeginBehindAllRows(VllmPools):
    """The convolution of drafts goes on behind the last row of those before."""

    def accepted_of_lines(self, accepted: torch.Tensor) -> torch.Tensor:
        """Take all tokens for accepted, where any were drafted."""
        return torch.where(accepted > 1, self.inputs.drafts, accepted)


@mutant(
    vllm_ascend_state_pools,
    "vllm-project/vllm/pull/52942: a step without drafts reads the first slot, wherever the state is",
    supports=_BEHIND_DRAFTS,
)
class StepsReadTheFirstSlot(VllmPools):
    """What follows drafts without any of its own begins with the state behind the first of their tokens."""

    def settle(self, requests: Sequence[int]) -> None:
        """Forget how much was accepted."""
        for request in requests:
            self.accepted.pop(request, None)


@mutant(
    sglang_state_pools,
    "sgl-project/sglang/issues/25587: rejected tokens stay in the history of the convolution",
    supports=_BEHIND_DRAFTS,
)
class LineNotRolledBack(SglangPools):
    """The state of the rule is rolled back, and the line of the convolution is not."""

    def roll_back(self, slot: int, tokens: int) -> None:
        """Leave the line as it is."""


@mutant(
    torch_state_pools,
    "ggml-org/llama.cpp/pull/20075: a recurrent state has no rollback",
    supports=_BEHIND_DRAFTS,
)
class StateOfTheWholeDraft(TorchPools):
    """The line of the convolution is rolled back, and the state of the rule is not."""

    def kept_state(self, count: int) -> int:
        """Keep the state behind the last token."""
        return max(count, self.inputs.drafts) - 1


@mutant(
    sglang_state_pools,
    "sglang 0.5.23 attention/ascend_hybrid_linear_attn_backend.py 263: scratch states lie by row, and not by slot",
    supports={"requests": range(2, 257)},
)
class ScratchInTheOrderOfSlots(SglangPools):
    """Scratch states are taken as if the rows of the batch came in the order of their slots."""

    def rows_of_scratch(self) -> Sequence[int]:
        """Take the ranks of slots for rows."""
        slots = [self.slots[request] for request in self.verified]
        return [sorted(slots).index(slot) for slot in slots]


@mutant(
    sglang_state_pools,
    "sglang 0.5.23 attention/ascend_gdn_backend.py 238: histories end their lines, which have room for drafts",
    supports=_BEHIND_DRAFTS,
)
class StepsReadTheBeginningOfALine(SglangPools):
    """A step takes the first rows of a line, and a prompt the last ones."""

    def step(self, tokens: LayerTokens, slots: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Give the operator the lines as they are."""
        return causal_conv.with_operator(self.convolution(tokens, self.lines, slots, lengths, "step"))["output"]


@mutant(sglang_state_pools, f"{_POOL} 1163: what begins as another has both of its states")
class ForkWithoutItsLine(SglangPools):
    """A fork copies the state of the rule alone."""

    def copy(self, source: int, slot: int) -> None:
        """Leave the line of the convolution out."""
        self.pool[slot] = self.pool[source]


@mutant(torch_state_pools, f"{_POOL} 1544: a shallow copy has a state of its own")
class ForkHasTheSameSlot(TorchPools):
    """A fork shares the slot of what it is a fork of."""

    def fork(self, source: int, request: int) -> None:
        """Copy the number."""
        self.slots[request] = self.slots[source]


@mutant(
    torch_state_pools,
    "vllm-project/vllm/pull/24680: chunks with fewer tokens than the history has rows",
    supports={"width": range(3, 17)},
)
class ShortChunkForgetsRows(TorchPools):
    """A request with few tokens loses what was in front of them."""

    def convolved(self, inputs: CausalConvInputs) -> torch.Tensor:
        """Write zeros in front of the new rows."""
        output = super().convolved(inputs)
        for slot, length in zip(inputs.line_of.tolist(), inputs.lengths, strict=True):
            if 1 < length < self.before:
                inputs.lines[slot, : self.before - length] = 0
        return output


@mutant(torch_state_pools, f"{_POOL} 1223: states come back into the slot that the request has now")
class RestoredIntoItsOldSlot(TorchPools):
    """States come back into the slot that they left, whoever has it."""

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target)
        self.left: dict[int, int] = {}

    def evict(self, request: int) -> None:
        """Remember the slot."""
        self.left[request] = self.slots[request]
        super().evict(request)

    def restore(self, request: int) -> None:
        """Write there."""
        line, state = self.host.pop(request)
        self.admit(request)
        old = self.left.pop(request)
        self.lines[old], self.pool[old] = line.to(self.lines.device), state.to(self.pool.device)


@mutant(torch_state_pools, f"{_POOL} 1208: the slot is free once the copy is done")
class HostCopyComesLate(TorchPools):
    """The copy to the host is made when it is asked for, and the slot has another request's states by then."""

    def evict(self, request: int) -> None:
        """Remember where to copy from."""
        slot = self.slots[request]
        self.host[request] = (self.lines[slot], self.pool[slot])
        self.free(request)

    def ruled(self, convolved: torch.Tensor, inputs: GatedDeltaInputs, *, prompt: bool = True) -> Outputs:
        """Write the states in place, where the copy will be read."""
        pool = self.pool
        outputs = super().ruled(convolved, inputs, prompt=prompt)
        pool.copy_(self.pool)
        self.pool = pool
        return outputs


@mutant(
    torch_state_pools,
    "vllm_ascend/ops/gdn.py 126: the operator for prompts takes states in bfloat16, and the pool is float32",
    supports={"state_dtype": ("float32",)},
)
class StatesPassThroughBfloat16(TorchPools):
    """A prompt goes on with a state that was rounded."""

    def prompt(self, inputs: GatedDeltaInputs) -> Outputs:
        """Round the states that are begun with."""
        states = inputs.states.clone()
        slots = inputs.initial.long()
        states[slots] = states[slots].to(torch.bfloat16).to(states.dtype)
        return super().prompt(replace(inputs, states=states))


@mutant(
    chunked_state_pools,
    "sgl-project/sgl-kernel-npu/pull/640: prompts write states the other way round, which no shape shows",
    supports={"key_dim": (16,), "value_dim": (16,)},
)
class PromptsLeaveStatesTurned(ChunkedPools):
    """The state behind a prompt has its rows and columns exchanged."""

    def prompt(self, inputs: GatedDeltaInputs) -> Outputs:
        """Turn the states that are written."""
        found = super().prompt(inputs)
        written = inputs.slots[inputs.slots >= 0].long()
        found["states"][written] = found["states"][written].transpose(2, 3).contiguous()
        return found


@mutant(
    torch_state_pools,
    "vllm-project/vllm-ascend/pull/4932: numbers of accepted tokens are in another order than requests",
    supports={"requests": range(2, 257), "drafts": range(2, 9)},
)
class AcceptedInAnotherOrder(TorchPools):
    """How much of each draft is accepted is taken in the order of the requests' numbers."""

    def accept(self, accepted: Sequence[int]) -> None:
        """Sort the requests, and not what is said of them."""
        order = sorted(range(len(self.verified)), key=lambda row: self.verified[row])
        moved = dict(zip(order, accepted, strict=True))
        super().accept([moved[row] for row in range(len(order))])
