"""The gated delta rule as vllm-ascend and sglang call it: operators for steps and prompts, and plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from npudiff import Target, implementation
from npudiff.reference.gated_delta import GatedDeltaInputs

Outputs = dict[str, torch.Tensor]

LONGEST_DRAFT = 8
"""Tokens of a sequence that the operators for steps take."""

KEY_DIM = 128
"""Elements of a key for which the kernel of sgl-kernel-npu has right addresses."""

_BFLOAT16 = {"state_dtype": ("bfloat16",)}
_STEPS = {**_BFLOAT16, "chunked": (False,), "fresh": (False,), "length": range(LONGEST_DRAFT + 1)}
_KEPT = ({"kept": ("each",)}, {"kept": ("last",), "length": (0, 1)})
_LARGEST = {"key_dim": range(1, 513), "value_dim": range(1, 513), "heads": range(1, 257)}
_OPERATOR = tuple({**_STEPS, **kept, **_LARGEST, "raw": (False,)} for kept in _KEPT)
_OF_SGL = {
    **_STEPS, "raw": (True,), "gates": ("head", "none"), "key_dim": (KEY_DIM,), "value_dim": range(8, 4097, 8),
}  # fmt: skip
_PROMPTS = {
    **_BFLOAT16, "chunked": (True,), "kept": ("last",), "gates": ("head", "none"), "raw": (False,),
    "key_dim": range(1, 129), "value_dim": range(1, 129), "heads": range(1, 65),
}  # fmt: skip


@implementation("gated_delta", supports=_OPERATOR, on_device=True)
def npu_recurrent_gated_delta_rule(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A step or a draft in vllm-ascend: the pool is written in place, a slot per token."""
    return with_recurrent_operator(inputs)


def with_recurrent_operator(inputs: GatedDeltaInputs) -> Outputs:
    """Run the operator for steps; rows of padding are none of its rows."""
    tokens = sum(inputs.lengths)
    output = torch.zeros_like(inputs.value)
    if tokens:
        output[:tokens] = torch.ops.npu.npu_recurrent_gated_delta_rule(
            *_tokens(inputs, tokens), inputs.states, **_arguments(inputs, tokens)
        )
    return {"output": output, "states": inputs.states}


@implementation("gated_delta", supports=_OPERATOR, on_device=True)
def npu_recurrent_gated_delta_rule_functional(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """The same, with a new pool."""
    tokens = sum(inputs.lengths)
    output = torch.zeros_like(inputs.value)
    if not tokens:
        return {"output": output, "states": inputs.states}
    output[:tokens], states = torch.ops.npu.npu_recurrent_gated_delta_rule_functional(
        *_tokens(inputs, tokens), inputs.states, **_arguments(inputs, tokens)
    )
    return {"output": output, "states": states}


def _tokens(inputs: GatedDeltaInputs, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (one[:tokens].contiguous() for one in (inputs.query, inputs.key, inputs.value))
    return query, key, value


def _arguments(inputs: GatedDeltaInputs, tokens: int) -> dict[str, object]:
    """What the operator takes by name, of the tokens of requests that have any."""
    taken = [place for place, length in enumerate(inputs.lengths) if length]
    gate, by_channel = (None if one is None else one[:tokens] for one in (inputs.gate, inputs.channel_gate))
    return {
        "beta": inputs.beta[:tokens],
        "scale": inputs.scale,
        "actual_seq_lengths": _integers([inputs.lengths[place] for place in taken], inputs),
        "ssm_state_indices": inputs.slots[:tokens],
        "num_accepted_tokens": _integers(accepted_tokens(inputs, taken), inputs),
        "g": gate,
        "gk": by_channel,
    }


def _integers(numbers: list[int], inputs: GatedDeltaInputs) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=inputs.value.device)


def accepted_tokens(inputs: GatedDeltaInputs, requests: list[int]) -> list[int]:
    """Of how many tokens of the step before the states count: a request begins in the slot of the last of them."""
    starts = [sum(inputs.lengths[:request]) for request in requests]
    slots, initial = inputs.slots.tolist(), inputs.initial.tolist()
    return [
        1 + slots[start : start + inputs.lengths[request]].index(initial[request])
        for start, request in zip(starts, requests, strict=True)
    ]


@implementation("gated_delta", supports=_PROMPTS, on_device=True)
def npu_chunk_gated_delta_rule(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A prompt in vllm-ascend: states are taken from the pool, zeroed where a request is new, and put back."""
    return with_chunk_operator(inputs, torch.ops.npu.npu_chunk_gated_delta_rule)


@implementation("gated_delta", supports=_PROMPTS, on_device=True)
def chunk_gated_delta_rule(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A prompt with the operator of sgl-kernel-npu."""
    return with_chunk_operator(inputs, torch.ops.npu.chunk_gated_delta_rule)


def with_chunk_operator(inputs: GatedDeltaInputs, operator: torch._ops.OpOverloadPacket) -> Outputs:
    """Run an operator for prompts; it is given no request without tokens, whose last state it may not write."""
    taken = [place for place, length in enumerate(inputs.lengths) if length]
    tokens, output = sum(inputs.lengths), torch.zeros_like(inputs.value)
    if not tokens:
        return {"output": output, "states": inputs.states}
    output[:tokens], last = operator(
        *_tokens(inputs, tokens),
        beta=inputs.beta[:tokens],
        initial_state=begun(inputs)[taken],
        actual_seq_lengths=_integers([inputs.lengths[place] for place in taken], inputs),
        scale=inputs.scale,
        g=None if inputs.gate is None else inputs.gate[:tokens],
    )
    return {"output": output, "states": put_back(inputs, last, taken)}


def begun(inputs: GatedDeltaInputs) -> torch.Tensor:
    """States with which requests begin, ``[requests, heads, value_dim, key_dim]``."""
    states = inputs.states[inputs.initial.clamp(min=0).long()]
    return states * (inputs.initial >= 0).view(-1, 1, 1, 1).to(states.dtype)


def put_back(inputs: GatedDeltaInputs, last: torch.Tensor, taken: list[int]) -> torch.Tensor:
    """Write the last states of requests into the slots of their last tokens."""
    ends = torch.tensor(inputs.lengths).cumsum(dim=0)[taken] - 1
    inputs.states[inputs.slots[ends].long()] = last.to(inputs.states.dtype)
    return inputs.states


@implementation("gated_delta", supports=tuple({**_OF_SGL, **kept} for kept in _KEPT), on_device=True)
def recurrent_gated_delta_rule(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A step or a draft with the operator of sgl-kernel-npu: rows as long as each other, normalised in the kernel."""
    rows = Rows(inputs)
    accepted = [accepted_tokens(inputs, [one])[0] if length else 1 for one, length in enumerate(inputs.lengths)]
    output = with_operator_of_sgl(rows, rows.padded(inputs.slots), num_accepted_tokens=_integers(accepted, inputs))
    return {"output": output, "states": inputs.states}


@implementation("gated_delta", supports={**_OF_SGL, "kept": ("each",)}, on_device=True)
def recurrent_gated_delta_rule_verifying(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A draft as sglang verifies it: the pool is read, and states go into scratch rows, from where they are moved."""
    rows = Rows(inputs)
    scratch = inputs.states.new_zeros(rows.batch * rows.longest, *inputs.states.shape[1:])
    places = torch.arange(len(scratch), dtype=torch.int32, device=scratch.device).view(rows.batch, rows.longest)
    output = with_operator_of_sgl(rows, places, intermediate_state=scratch, cache_indices=inputs.initial.clamp(min=0))
    inputs.states[inputs.slots[: rows.tokens].long()] = scratch[rows.place]
    return {"output": output, "states": inputs.states}


class Rows:
    """Tokens of a batch in rows as long as the longest request, as sglang has drafts."""

    def __init__(self, inputs: GatedDeltaInputs) -> None:
        self.inputs, self.batch, self.longest = inputs, len(inputs.lengths), max(1, *inputs.lengths)
        self.tokens = sum(inputs.lengths)
        self.place = torch.cat([torch.arange(length) + row * self.longest for row, length in enumerate(inputs.lengths)])

    def padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``[batch, longest, ...]`` of ``[tokens, ...]``."""
        wide = tokens.new_zeros(self.batch * self.longest, *tokens.shape[1:])
        wide[self.place] = tokens[: self.tokens]
        return wide.view(self.batch, self.longest, *tokens.shape[1:])


def with_operator_of_sgl(rows: Rows, slots: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    """Run the operator of sgl-kernel-npu, and return the outputs of the tokens."""
    inputs = rows.inputs
    mixed = torch.cat([one[: rows.tokens].flatten(1) for one in (inputs.query, inputs.key, inputs.value)], dim=1)
    outputs = torch.ops.npu.recurrent_gated_delta_rule(
        rows.padded(mixed),
        inputs.states,
        rows.padded(inputs.beta),
        inputs.scale,
        _integers(list(inputs.lengths), inputs),
        slots,
        inputs.key.shape[1],
        inputs.value.shape[1],
        g=None if inputs.gate is None else rows.padded(inputs.gate),
        **more,
    )
    output = torch.zeros_like(inputs.value)
    output[: rows.tokens] = outputs.flatten(0, 1)[rows.place]
    return output


@implementation("gated_delta", supports={"chunked": (False,)}, on_device=True)
def token_by_token(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """The recurrence in plain torch, in float32, as backends keep it beside kernels."""
    return recurrence(inputs)


def prepared(inputs: GatedDeltaInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, values and beta of value heads, in float32; queries are scaled."""
    share = inputs.value.shape[1] // inputs.key.shape[1]
    query, key, beta = inputs.query.float(), inputs.key.float(), inputs.beta.float()
    if inputs.raw:
        query, key = (one * torch.rsqrt(one.square().sum(dim=-1, keepdim=True) + 1e-6) for one in (query, key))
        beta = beta.sigmoid()
    query, key = (one.repeat_interleave(share, dim=1) for one in (query * inputs.scale, key))
    return query, key, inputs.value.float(), beta


Decay = Callable[[GatedDeltaInputs, torch.Tensor, int], torch.Tensor]


def decayed(inputs: GatedDeltaInputs, state: torch.Tensor, token: int) -> torch.Tensor:
    """The state before a token, after its decays."""
    if inputs.gate is not None:
        state = state * inputs.gate[token].exp()[:, None, None]
    if inputs.channel_gate is not None:
        state = state * inputs.channel_gate[token].exp().unsqueeze(-2)
    return state


def recurrence(inputs: GatedDeltaInputs, decay: Decay = decayed) -> Outputs:
    """Go through all tokens, one after the other."""
    query, key, value, beta = prepared(inputs)
    output, states = torch.zeros_like(inputs.value), inputs.states.clone()
    slots, start = inputs.slots.tolist(), 0
    for length, first in zip(inputs.lengths, begun(inputs).float(), strict=True):
        state = first
        for token in range(start, start + length):
            state = decay(inputs, state, token)
            missing = (value[token] - torch.einsum("hvk,hk->hv", state, key[token])) * beta[token].unsqueeze(-1)
            state = state + missing.unsqueeze(-1) * key[token].unsqueeze(-2)
            output[token] = torch.einsum("hvk,hk->hv", state, query[token]).to(output.dtype)
            if slots[token] >= 0:
                states[slots[token]] = state.to(states.dtype)
        start += length
    return {"output": output, "states": states}


@implementation(
    "gated_delta", supports={"chunked": (False,), "kept": ("last",), "gates": ("head", "none")}, on_device=True
)
def in_chunks(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Chunks of 64 tokens in plain torch and float32, as models have it for hosts without kernels."""
    return chunks(inputs, 64)


def chunks(inputs: GatedDeltaInputs, size: int) -> Outputs:
    """Go through chunks of each request; the system of a chunk is solved row by row."""
    query, key, value, beta = (one.transpose(0, 1) for one in prepared(inputs))
    gate = torch.zeros_like(beta) if inputs.gate is None else inputs.gate.transpose(0, 1)

    def chunk(state: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return one_chunk(state, query[:, rows], key[:, rows], value[:, rows], beta[:, rows], gate[:, rows])

    return through_chunks(inputs, size, begun(inputs).float(), chunk)


def through_chunks(
    inputs: GatedDeltaInputs,
    size: int,
    states: torch.Tensor,
    chunk: Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]],
) -> Outputs:
    """Go through chunks of each request from its state on; a chunk has outputs, and the state behind it."""
    output, last = torch.zeros_like(inputs.value), []
    start, taken = 0, [place for place, length in enumerate(inputs.lengths) if length]
    for request in taken:
        state, length = states[request], inputs.lengths[request]
        for first in range(start, start + length, size):
            rows = slice(first, min(first + size, start + length))
            answer, state = chunk(state, rows)
            output[rows] = answer.transpose(0, 1).to(output.dtype)
        last.append(state)
        start += length
    pool = inputs.states if not last else put_back(inputs, torch.stack(last), taken)
    return {"output": output, "states": pool}


def one_chunk(
    state: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, beta: torch.Tensor,
    gate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs of a chunk, ``[heads, tokens, value_dim]``, and the state behind it."""
    total, size = gate.cumsum(dim=1), gate.shape[1]
    decay = (total.unsqueeze(2) - total.unsqueeze(1)).tril().exp().tril()
    overlap = beta.unsqueeze(2) * (key @ key.transpose(1, 2)) * decay
    missing = beta.unsqueeze(2) * (value - total.exp().unsqueeze(2) * (key @ state.transpose(1, 2)))
    rows = [missing[:, 0]]
    for place in range(1, size):
        earlier = torch.stack(rows, dim=1)
        rows.append(missing[:, place] - (overlap[:, place, :place].unsqueeze(1) @ earlier).squeeze(1))
    added = torch.stack(rows, dim=1)
    answer = total.exp().unsqueeze(2) * (query @ state.transpose(1, 2)) + (query @ key.transpose(1, 2) * decay) @ added
    left = (total[:, -1:] - total).exp().unsqueeze(2) * key
    return answer, state * total[:, -1].exp()[:, None, None] + added.transpose(1, 2) @ left


@dataclass(frozen=True)
class KimiTokens:
    """Tokens of a chunk with decays of channels, float32 with heads in front."""

    query: torch.Tensor
    """``[heads, tokens, key_dim]``, scaled."""
    key: torch.Tensor
    value: torch.Tensor
    """``[heads, tokens, value_dim]``."""
    beta: torch.Tensor
    """``[heads, tokens, 1]``."""
    total: torch.Tensor
    """``[heads, tokens, key_dim]``: sums of logarithms of decays of a chunk, up to each token, included."""
    rows: slice
    """Where they are in the batch."""


def narrow(numbers: torch.Tensor) -> torch.Tensor:
    """Float32 numbers that went through bfloat16."""
    return numbers.to(torch.bfloat16).float()


KimiProducts = Callable[[torch.Tensor, KimiTokens], torch.Tensor]
KimiState = Callable[[torch.Tensor, KimiTokens, torch.Tensor], torch.Tensor]


@implementation("gated_delta", supports={"chunked": (True,), "kept": ("last",), "gates": ("channel",)}, on_device=True)
def in_chunks_of_channels(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Chunks of 64 tokens with decays of channels in plain torch, rounded to bfloat16 where kernels are."""
    return kimi_chunks(inputs)


def kimi_chunks(
    inputs: GatedDeltaInputs, products: KimiProducts | None = None, after: KimiState | None = None
) -> Outputs:
    """Go through chunks of each request; states are narrow between them."""
    query, key, value, beta = (one.transpose(0, 1) for one in prepared(inputs))
    gate = torch.zeros_like(key) if inputs.channel_gate is None else inputs.channel_gate.transpose(0, 1)

    def chunk(state: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = KimiTokens(
            narrow(query[:, rows]), key[:, rows], value[:, rows], beta[:, rows].unsqueeze(-1),
            gate[:, rows].cumsum(dim=1), rows,
        )  # fmt: skip
        return kimi_chunk(state, tokens, products or decayed_products, after or kimi_state)

    return through_chunks(inputs, 64, narrow(begun(inputs).float()), chunk)


def kimi_chunk(
    state: torch.Tensor, tokens: KimiTokens, products: KimiProducts, after: KimiState
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a chunk, ``[heads, tokens, value_dim]``, and the state behind it."""
    grown = tokens.total.exp()
    weighed = narrow(tokens.beta * tokens.key)
    scores, alike = (narrow(products(rows, tokens)) for rows in (tokens.query, weighed))
    one = torch.eye(alike.shape[-1], device=alike.device).expand_as(alike)
    inverse = narrow(torch.linalg.solve_triangular(alike.tril(-1), one, upper=False, unitriangular=True))
    wanted = narrow(inverse @ narrow(tokens.beta * tokens.value))
    read = narrow(inverse @ narrow(weighed * grown))
    added = narrow(wanted - narrow(read @ state.mT))
    answer = narrow(narrow(tokens.query * grown) @ state.mT) + narrow(scores.tril() @ added)
    return answer, after(state, tokens, added)


def kimi_state(state: torch.Tensor, tokens: KimiTokens, added: torch.Tensor) -> torch.Tensor:
    """The state behind a chunk that adds rows ``[heads, tokens, value_dim]``."""
    last = tokens.total[:, -1:]
    left = narrow(tokens.key * (last - tokens.total).exp())
    return narrow(narrow(state * last.exp()) + narrow(added.mT @ left))


PART = 16
"""Tokens whose decays are taken from the first of them, so that no exponential is above 1."""


def decayed_products(rows: torch.Tensor, tokens: KimiTokens) -> torch.Tensor:
    """Products of rows with keys, decayed by channels from each key to its row; beyond the diagonal anything."""
    length = rows.shape[1]
    products = rows.new_zeros(len(rows), length, length)
    for first in range(0, length, PART):
        part, before = slice(first, first + PART), slice(first)
        own = (tokens.total[:, part].unsqueeze(2) - tokens.total[:, part].unsqueeze(1)).clamp(max=0.0).exp()
        pairs = rows[:, part].unsqueeze(2) * tokens.key[:, part].unsqueeze(1) * own
        products[:, part, part] = pairs.sum(dim=-1)
        anchor = tokens.total[:, first : first + 1]
        later = narrow(rows[:, part] * (tokens.total[:, part] - anchor).exp())
        earlier = narrow(tokens.key[:, before] * (anchor - tokens.total[:, before]).exp())
        products[:, part, before] = later @ earlier.mT
    return products
