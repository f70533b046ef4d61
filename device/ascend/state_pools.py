"""States of linear attention as backends keep them: slots of pools, verified drafts, forks, and copies on the host.

Sources: sglang 0.5.23, ``mem_cache/memory_pool.py`` 1147-1245 (slots that are cleared, copied and brought to the host),
``hardware_backend/npu/memory_pool_npu.py`` 56-80 (lines with room for drafts), ``attention/ascend_gdn_backend.py``
170-330 and ``ascend_hybrid_linear_attn_backend.py`` 255-315 (verification and rollback); vllm-ascend,
``ops/gdn.py`` 300-560 (a slot for each drafted token, of which the next call takes that of the last accepted one).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from npudiff import Target, implementation
from npudiff.device.ascend import causal_conv, gated_delta
from npudiff.reference.causal_conv import CausalConvInputs
from npudiff.reference.gated_delta import GatedDeltaInputs
from npudiff.reference.state_pools import LayerTokens, StatePoolsInputs

Outputs = dict[str, torch.Tensor]


class SlotPools:
    """Both pools with a slot for each request; the methods are those of ``npudiff.reference.state_pools.StatePools``.

    Parameters
    ----------
    inputs : StatePoolsInputs
        On the host.
    target : Target
        Where to run.
    rows : int
        Rows of a line of the convolution.
    reserved : int
        Slots at the beginning that no request gets.
    each : int
        Recurrent states of a slot.
    """

    def __init__(self, inputs: StatePoolsInputs, target: Target, rows: int, reserved: int = 0, each: int = 1) -> None:
        self.inputs, self.target = inputs.to(target.device), target
        count = reserved + inputs.requests
        self.lines = self.inputs.lines(count, rows)
        self.pool = self.inputs.states(count * each)
        self.before = inputs.width - 1
        self.slots: dict[int, int] = {}
        self.unused = list(range(reserved, count))
        self.host: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.verified: tuple[int, ...] = ()

    def admit(self, request: int) -> int:
        """Give a request a slot."""
        slot = self.slots[request] = self.unused.pop(0)
        return slot

    def free(self, request: int) -> None:
        """Forget a request."""
        self.unused.append(self.slots.pop(request))

    def fork(self, source: int, request: int) -> None:
        """Begin a request as another is."""
        self.settle([source])
        self.copy(self.slots[source], self.admit(request))

    def copy(self, source: int, slot: int) -> None:
        """Copy the states of a slot into another."""
        self.lines[slot] = self.lines[source]
        self.pool[self.place(slot)] = self.pool[self.place(source)]

    def evict(self, request: int) -> None:
        """Bring the states of a request to the host."""
        self.settle([request])
        slot = self.slots[request]
        self.host[request] = (self.lines[slot].cpu().clone(), self.pool[self.place(slot)].cpu().clone())
        self.free(request)

    def restore(self, request: int) -> None:
        """Bring them back, into any slot."""
        slot = self.admit(request)
        line, state = self.host.pop(request)
        self.lines[slot], self.pool[self.place(slot)] = line.to(self.lines.device), state.to(self.pool.device)

    def place(self, slot: int) -> int:
        """Where the recurrent state of a slot is."""
        return slot

    def settle(self, requests: Sequence[int]) -> None:
        """Bring states to where requests without drafts have them; only some pools have them elsewhere."""

    def slots_of(self, requests: Sequence[int], padded: int = 0, nobody: int = -1) -> torch.Tensor:
        """Slots of some requests, int32, and behind them those of padded ones."""
        slots = [*(self.slots[request] for request in requests), *[nobody] * padded]
        return torch.tensor(slots, dtype=torch.int32, device=self.lines.device)

    def convolution(
        self, tokens: LayerTokens, lines: torch.Tensor, line_of: torch.Tensor, lengths: Sequence[int], mode: str,
        known: Sequence[bool] | None = None, accepted: torch.Tensor | None = None,
    ) -> CausalConvInputs:  # fmt: skip
        """What the convolution of a call is given."""
        there = None if known is None else torch.tensor(known, device=lines.device)
        inputs = self.inputs
        return CausalConvInputs(
            tokens.mixed, inputs.weight, inputs.bias, lines, tuple(lengths), line_of, mode, there, accepted,
            inputs.activation, inputs.rounding,
        )  # fmt: skip

    def rule(
        self, tokens: LayerTokens, convolved: torch.Tensor, lengths: Sequence[int], initial: torch.Tensor,
        slots: torch.Tensor, states: torch.Tensor | None = None,
    ) -> GatedDeltaInputs:  # fmt: skip
        """What the rule of a call is given."""
        query, key, value = self.inputs.split(convolved)
        return GatedDeltaInputs(
            query, key, value, tokens.beta, self.pool if states is None else states, tuple(lengths), initial, slots,
            self.inputs.scale, tokens.gate, tokens.channel_gate, self.inputs.raw, self.inputs.chunked,
        )  # fmt: skip

    def at_ends(self, lengths: Sequence[int], slots: torch.Tensor) -> torch.Tensor:
        """A slot for each token, int32: that of its request for the last one, -1 for the others."""
        found = torch.full((sum(lengths),), -1, dtype=torch.int32, device=slots.device)
        found[torch.tensor(lengths).cumsum(dim=0) - 1] = slots
        return found


class TorchPools(SlotPools):
    """Plain torch, token by token; what is verified is kept beside the pools until it is accepted."""

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target, inputs.width - 1)

    def admit(self, request: int) -> int:
        """Give a request a slot, and clear it."""
        slot = super().admit(request)
        self.clear(slot)
        return slot

    def clear(self, slot: int) -> None:
        """Begin with zeros."""
        self.lines[slot], self.pool[slot] = 0, 0

    def extend(self, requests: Sequence[int], lengths: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Prompts, chunks and tokens in one batch."""
        for request in requests:
            if request not in self.slots:
                self.admit(request)
        tokens, slots = tokens.to(self.target.device), self.slots_of(requests)
        convolved = self.convolved(self.convolution(tokens, self.lines, slots, lengths, "step"))
        return self.ruled(convolved, self.rule(tokens, convolved, lengths, slots, self.at_ends(lengths, slots)))

    def decode(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """One token of each request."""
        tokens = tokens.to(self.target.device)
        rows = len(tokens.mixed)
        slots = self.slots_of_rows(requests, rows)
        convolved = self.convolved(self.convolution(tokens, self.lines, slots, [1] * rows, "step"))
        return self.ruled(convolved, self.rule(tokens, convolved, [1] * rows, slots, slots), prompt=False)

    def slots_of_rows(self, requests: Sequence[int], rows: int) -> torch.Tensor:
        """Slots of the rows of a graph; padded ones have none."""
        return self.slots_of(requests, rows - len(requests))

    def verify(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Drafts of each request, whose states go elsewhere."""
        tokens, drafts = tokens.to(self.target.device), self.inputs.drafts
        batch = len(tokens.mixed) // drafts
        slots = self.slots_of(requests, batch - len(requests))
        self.verified, self.rows = tuple(requests), tokens.mixed.view(batch, drafts, -1)
        convolved = self.convolved(self.convolution(tokens, self.lines.clone(), slots, [drafts] * batch, "step"))
        scratch = torch.cat([self.pool, self.inputs.states(batch * drafts)])
        places = torch.arange(len(self.pool), len(scratch), dtype=torch.int32, device=slots.device)
        rule = self.rule(tokens, convolved, [drafts] * batch, slots, places, scratch)
        found = gated_delta.recurrence(rule)
        self.behind = found["states"][len(self.pool) :].view(batch, drafts, *self.pool.shape[1:])
        return {"convolved": convolved, "output": found["output"]}

    def accept(self, accepted: Sequence[int]) -> None:
        """Write the states behind the last token of each request that is kept."""
        for row, (request, count) in enumerate(zip(self.verified, accepted, strict=True)):
            if count:
                slot = self.slots[request]
                rows = self.rows[row, : self.kept_rows(count)]
                self.lines[slot] = torch.cat([self.lines[slot], rows])[-self.before :]
                self.pool[slot] = self.behind[row, self.kept_state(count)]

    def kept_rows(self, count: int) -> int:
        """How many rows of a draft a line has behind it."""
        return count

    def kept_state(self, count: int) -> int:
        """Behind which token of a draft the state is kept."""
        return count - 1

    def states(self, requests: Sequence[int]) -> Outputs:
        """What requests have."""
        slots = self.slots_of(requests).long()
        return {"lines": self.lines[slots], "states": self.pool[slots]}

    def convolved(self, inputs: CausalConvInputs) -> torch.Tensor:
        """Convolve, and write the lines."""
        return causal_conv.with_taps(inputs, inputs.weight)["output"]

    def ruled(self, convolved: torch.Tensor, inputs: GatedDeltaInputs, *, prompt: bool = True) -> Outputs:
        """Run the rule, and write the states."""
        found = self.prompt(inputs) if prompt else gated_delta.recurrence(inputs)
        self.pool = found["states"]
        return {"convolved": convolved, "output": found["output"]}

    def prompt(self, inputs: GatedDeltaInputs) -> Outputs:
        """Run the rule for chunks of prompts."""
        return gated_delta.recurrence(inputs)


class ChunkedPools(TorchPools):
    """The same with prompts in chunks, as models have it for hosts without kernels."""

    def prompt(self, inputs: GatedDeltaInputs) -> Outputs:
        """Chunks of 64 tokens."""
        return gated_delta.chunks(inputs, 64)


class SglangPools(SlotPools):
    """As sglang's Ascend backend: histories end their lines, drafts have scratch states, slot 0 is of padding.

    A plain step there reads the beginning of a line, which is its end only where lines have no room for drafts. Here
    steps take the end, as prompts do.
    """

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target, inputs.width + inputs.drafts - 2, reserved=1)

    def admit(self, request: int) -> int:
        """Give a request a slot, and clear it."""
        slot = super().admit(request)
        self.clear(slot)
        return slot

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros, since prompts begin with what it holds."""
        self.lines[slot], self.pool[slot] = 0, 0

    def extend(self, requests: Sequence[int], lengths: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Prompts and chunks: the ends of all lines are copied, and copied back."""
        known = [request in self.slots for request in requests]
        for request, there in zip(requests, known, strict=True):
            if not there:
                self.admit(request)
        tokens, slots = tokens.to(self.target.device), self.slots_of(requests)
        convolved = self.at_the_end(tokens, slots, lengths, "prompt", known)
        found = gated_delta.chunks(self.rule(tokens, convolved, lengths, slots, self.at_ends(lengths, slots)), 64)
        return {"convolved": convolved, "output": found["output"]}

    def at_the_end(
        self, tokens: LayerTokens, slots: torch.Tensor, lengths: Sequence[int], mode: str, known: Sequence[bool] | None
    ) -> torch.Tensor:
        """Convolve with the histories that end the lines."""
        ends = self.lines[:, -self.before :].contiguous()
        found = causal_conv.with_operator(self.convolution(tokens, ends, slots, lengths, mode, known))
        self.lines[:, -self.before :] = ends
        return found["output"]

    def decode(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """One token of each request; the convolution has no tokens of padded rows, and the rule no slot."""
        tokens = tokens.to(self.target.device)
        padded = len(tokens.mixed) - len(requests)
        lengths = [1] * len(requests) + [0] * padded
        convolved = self.step(tokens, self.slots_of(requests, padded, nobody=0), lengths)
        slots = self.slots_of(requests, padded)
        found = gated_delta.recurrence(self.rule(tokens, convolved, [1] * len(slots), slots, slots))
        self.pool = found["states"]
        return {"convolved": convolved, "output": found["output"]}

    def step(self, tokens: LayerTokens, slots: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Convolve one token of each request."""
        return self.at_the_end(tokens, slots, lengths, "step", None)

    def verify(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Drafts in rows as long as each other; the operator runs padded ones on slot 0."""
        tokens, drafts = tokens.to(self.target.device), self.inputs.drafts
        batch = len(tokens.mixed) // drafts
        self.verified, slots = tuple(requests), self.slots_of(requests, batch - len(requests), nobody=0)
        lengths = [drafts] * len(requests) + [0] * (batch - len(requests))
        all_of_them = torch.full_like(slots, drafts)
        convolved = causal_conv.with_operator(
            self.convolution(tokens, self.lines, slots, lengths, "draft", accepted=all_of_them)
        )["output"]
        self.scratch = self.inputs.states(batch * drafts)
        places = torch.arange(len(self.scratch), dtype=torch.int32, device=slots.device).view(batch, drafts)
        output = torch.ops.npu.recurrent_gated_delta_rule(
            convolved.view(batch, drafts, -1),
            self.pool,
            tokens.beta.view(batch, drafts, -1),
            self.inputs.scale,
            all_of_them,
            places,
            self.inputs.key_heads,
            self.inputs.heads,
            intermediate_state=self.scratch,
            cache_indices=slots,
            g=None if tokens.gate is None else tokens.gate.view(batch, drafts, -1),
        )
        return {"convolved": convolved, "output": output.flatten(0, 1)}

    def accept(self, accepted: Sequence[int]) -> None:
        """Move the state of the last accepted token into the pool, and the rows of lines down."""
        drafts = self.inputs.drafts
        for row, request, count in zip(self.rows_of_scratch(), self.verified, accepted, strict=True):
            slot = self.slots[request]
            self.pool[slot] = self.scratch[row * drafts + count - 1]
            self.roll_back(slot, drafts - count)

    def rows_of_scratch(self) -> Sequence[int]:
        """In which rows of scratch states the requests are that were verified."""
        return range(len(self.verified))

    def roll_back(self, slot: int, tokens: int) -> None:
        """Move the rows of a line down, so that it ends so many tokens earlier."""
        line = self.lines[slot]
        line[tokens:] = line[: len(line) - tokens].clone()

    def states(self, requests: Sequence[int]) -> Outputs:
        """What requests have."""
        slots = self.slots_of(requests).long()
        return {"lines": self.lines[slots, -self.before :], "states": self.pool[slots]}


class VllmPools(SlotPools):
    """As vllm-ascend: a slot has a state per drafted token, and the next call begins with the last accepted one.

    What follows drafts without any of its own first settles there; slot 0 is of nobody.
    """

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        super().__init__(inputs, target, inputs.width + inputs.drafts - 2, reserved=1, each=inputs.drafts)
        self.accepted: dict[int, int] = {}

    def place(self, slot: int) -> int:
        """Where the first of the recurrent states of a slot is."""
        return slot * self.inputs.drafts

    def settle(self, requests: Sequence[int]) -> None:
        """Let requests begin with the first of their states again."""
        for request in requests:
            behind = self.accepted.pop(request, 1) - 1
            if behind:
                slot = self.slots[request]
                self.lines[slot, : self.before] = self.lines[slot, behind : behind + self.before].clone()
                self.pool[self.place(slot)] = self.pool[self.place(slot) + behind].clone()

    def free(self, request: int) -> None:
        """Forget a request, and how much of its last draft was accepted."""
        super().free(request)
        self.accepted.pop(request, None)

    def extend(self, requests: Sequence[int], lengths: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Prompts and chunks: whether there is a state to begin with is said of each."""
        known = [request in self.slots for request in requests]
        self.settle([request for request, there in zip(requests, known, strict=True) if there])
        for request, there in zip(requests, known, strict=True):
            if not there:
                self.admit(request)
        tokens, slots = tokens.to(self.target.device), self.slots_of(requests)
        convolution = self.convolution(tokens, self.lines, slots, lengths, "prompt", self.begun(known))
        convolved = causal_conv.with_operator(convolution)["output"]
        places = slots * self.inputs.drafts
        first = torch.where(torch.tensor(self.begun(known), device=slots.device), places, -1)
        rule = self.rule(tokens, convolved, lengths, first, self.at_ends(lengths, places))
        found = self.prompt(rule)
        self.pool = found["states"]
        return {"convolved": convolved, "output": found["output"]}

    def begun(self, known: list[bool]) -> list[bool]:
        """Whether requests begin with what their slot holds, and not with zeros."""
        return known

    def prompt(self, inputs: GatedDeltaInputs) -> Outputs:
        """The operator for prompts, or what stands for it where columns decay."""
        if self.inputs.chunked:
            return gated_delta.with_chunk_operator(inputs, torch.ops.npu.npu_chunk_gated_delta_rule)
        return gated_delta.recurrence(inputs)

    def decode(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """One token of each request: padded rows are of a request without tokens, whose slot is 0."""
        self.settle(requests)
        tokens = tokens.to(self.target.device)
        padded = len(tokens.mixed) - len(requests)
        slots, lengths = self.slots_of(requests, padded, nobody=0), [1] * len(requests) + [0] * padded
        convolved = causal_conv.with_operator(self.convolution(tokens, self.lines, slots, lengths, "step"))["output"]
        places = slots * self.inputs.drafts
        found = gated_delta.with_recurrent_operator(self.rule(tokens, convolved, lengths, places, places))
        return {"convolved": convolved, "output": found["output"]}

    def verify(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Drafts of each request, of which every token has a slot; they begin behind what was accepted before."""
        tokens, drafts = tokens.to(self.target.device), self.inputs.drafts
        self.verified, padded = tuple(requests), len(tokens.mixed) // drafts - len(requests)
        slots, lengths = self.slots_of(requests, padded, nobody=0), [drafts] * len(requests) + [0] * padded
        accepted = torch.ones_like(slots)
        accepted[: len(requests)] = torch.tensor(
            [self.accepted.get(request, 1) for request in requests], dtype=torch.int32
        )
        convolved = causal_conv.with_operator(
            self.convolution(tokens, self.lines, slots, lengths, "draft", accepted=self.accepted_of_lines(accepted))
        )["output"]
        places = (slots.view(-1, 1) * drafts + torch.arange(drafts, dtype=torch.int32, device=slots.device)).flatten()
        first = slots * drafts + self.accepted_of_states(accepted) - 1
        found = gated_delta.with_recurrent_operator(self.rule(tokens, convolved, lengths, first, places))
        return {"convolved": convolved, "output": found["output"]}

    def accepted_of_lines(self, accepted: torch.Tensor) -> torch.Tensor:
        """Behind how many tokens of the draft before the convolution goes on."""
        return accepted

    def accepted_of_states(self, accepted: torch.Tensor) -> torch.Tensor:
        """The same of the rule."""
        return accepted

    def accept(self, accepted: Sequence[int]) -> None:
        """Remember how much was accepted; nothing is moved."""
        self.accepted.update(zip(self.verified, accepted, strict=True))

    def states(self, requests: Sequence[int]) -> Outputs:
        """What requests have, behind the last token that was accepted."""
        slots = self.slots_of(requests).long()
        behind = torch.tensor([self.accepted.get(request, 1) for request in requests], device=slots.device) - 1
        rows = behind.view(-1, 1) + torch.arange(self.before, device=slots.device)
        return {"lines": self.lines[slots.view(-1, 1), rows], "states": self.pool[slots * self.inputs.drafts + behind]}


_OPERATORS = {
    "state_dtype": ("bfloat16",), "width": (4,), "rounding": ("stages",), "nothing_accepted": (False,),
}  # fmt: skip
_BLOCKS = {"key_dim": range(16, 129, 16), "value_dim": range(16, 129, 16), "key_heads": range(1, 65)}

VLLM = (
    {**_OPERATORS, **_BLOCKS, "raw": (False,), "chunked": (True,), "gates": ("head", "none"), "group": (1, 2, 3)},
    {**_OPERATORS, **_BLOCKS, "raw": (False,), "chunked": (False,), "gates": ("channel", "head"), "group": (1, 2, 3)},
)
"""A model's prompts go through the operator for them, or, where columns decay, through a loop in place of a kernel."""

SGLANG = {
    **_OPERATORS, "raw": (True,), "chunked": (False,), "gates": ("head", "none"), "key_dim": (128,),
    "value_dim": range(16, 257, 16),
}  # fmt: skip


@implementation("state_pools", supports={"chunked": (False,)})
def torch_state_pools(inputs: StatePoolsInputs, target: Target) -> TorchPools:
    """Plain torch token by token, in any dtype and with decays of any kind."""
    return TorchPools(inputs, target)


@implementation("state_pools", supports={"chunked": (False,), "gates": ("head", "none")})
def chunked_state_pools(inputs: StatePoolsInputs, target: Target) -> ChunkedPools:
    """The same with chunks of 64 tokens for prompts."""
    return ChunkedPools(inputs, target)


@implementation("state_pools", supports=SGLANG)
def sglang_state_pools(inputs: StatePoolsInputs, target: Target) -> SglangPools:
    """``causal_conv1d`` and ``recurrent_gated_delta_rule`` of sgl-kernel-npu, drafts in scratch states."""
    return SglangPools(inputs, target)


@implementation("state_pools", supports=VLLM)
def vllm_ascend_state_pools(inputs: StatePoolsInputs, target: Target) -> VllmPools:
    """``npu_chunk_gated_delta_rule`` and ``npu_recurrent_gated_delta_rule``, a slot of the pool per drafted token."""
    return VllmPools(inputs, target)
