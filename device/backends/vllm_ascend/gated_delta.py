"""The gated delta rule in vllm-ascend: the core of its layer, and plain torch for the 310P."""

from __future__ import annotations

from dataclasses import replace

import torch
from vllm_ascend._310p.ops.fla.chunk_gated_delta_rule import chunk_gated_delta_rule_pytorch
from vllm_ascend._310p.ops.fla.fused_recurrent_gated_delta_rule import fused_recurrent_gated_delta_rule_pytorch

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.delta_world import (
    MOST_DRAFT,
    Requests,
    Sizes,
    handed_in,
    layer,
    metadata,
    run_core,
    triton_pipeline,
)
from npudiff.reference.gated_delta import GatedDeltaInputs

Outputs = dict[str, torch.Tensor]

_WIDTH = 4
"""Tokens under the convolution of the layer, which leaves its rows as they are here."""

_SOME = range(1, 2**17)
_LAYER = {"raw": (False,), "gates": ("head", "none"), "key_dim": range(8, 129, 8), "value_dim": range(16, 129, 16)}
"""Channels are a multiple of 16, as its convolution has them."""


def _by_layer(inputs: GatedDeltaInputs, *, prompt: bool, graph: bool = False, steps: bool = False) -> Outputs:
    """Run the core of the layer on blocks of a pool that has the null block in front; rows of padding fill a graph."""
    tokens, (heads, value_dim) = sum(inputs.lengths), inputs.value.shape[1:]
    key_heads, key_dim = inputs.key.shape[1:]
    mixed = torch.cat([one.flatten(1) for one in (inputs.query, inputs.key, inputs.value)], dim=1)
    states, requests, drafts = _pool(inputs, prompt=prompt)
    rows = tokens
    if steps:
        requests = replace(requests, prefilling=_behind_steps(inputs))
    if graph:
        rows, rest = len(inputs.value), len(inputs.value) - tokens
        requests = replace(requests, padding=(-(-rest // (drafts + 1)), rest))
    lines = mixed.new_zeros(len(states), _WIDTH - 1 + drafts, mixed.shape[1])
    weight = mixed.new_zeros(_WIDTH, mixed.shape[1])
    weight[-1] = 1.0
    made = layer(Sizes(key_heads, heads, key_dim, value_dim), weight, None, (lines, states), activation=False)
    gate = torch.zeros_like(inputs.beta, dtype=torch.float32) if inputs.gate is None else inputs.gate
    output = torch.zeros_like(inputs.value)
    with handed_in(gate[:rows].unsqueeze(0), inputs.beta[:rows].unsqueeze(0)):
        known = metadata(requests, heads, drafts, mixed.device)
        run_core(made, known, mixed, inputs.beta, output)
    return {"output": output, "states": states[1 : 1 + len(inputs.states)]}


def _behind_steps(inputs: GatedDeltaInputs) -> list[bool]:
    """Which requests are prompts where those with one token and a state, at the front of a batch, are not."""
    plain = [length > 1 or first < 0 for length, first in zip(inputs.lengths, inputs.initial.tolist(), strict=True)]
    first = plain.index(True) if True in plain else len(plain)
    return [place >= first for place in range(len(plain))]


def _pool(inputs: GatedDeltaInputs, *, prompt: bool) -> tuple[torch.Tensor, Requests, int]:
    """The pool with the null block, the requests, and how many tokens are drafted at most.

    A request has blocks for as many drafts as there may be; those that a shorter draft leaves are behind the pool.
    """
    ends = torch.tensor(inputs.lengths).cumsum(dim=0)
    slots, initial = inputs.slots.cpu(), inputs.initial.cpu()
    computed = [int(first >= 0) for first in initial.tolist()]
    known = [prompt] * len(inputs.lengths)
    if prompt or max(inputs.lengths) == 1:
        blocks = (slots[ends - 1] + 1).unsqueeze(1)
        pool = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states])
        return pool, Requests(inputs.lengths, blocks, computed, known), 0
    most, free = max(inputs.lengths), 1 + len(inputs.states)
    rows, accepted = [], []
    for end, length, first in zip(ends.tolist(), inputs.lengths, initial.tolist(), strict=True):
        own = slots[end - length : end].tolist()
        accepted.append(1 + own.index(first))
        rows.append([*(one + 1 for one in own), *range(free, free + most - length)])
        free += most - length
    extra = inputs.states.new_zeros(free - len(inputs.states) - 1, *inputs.states.shape[1:])
    pool = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states, extra])
    blocks, taken = (torch.tensor(one, dtype=torch.int32) for one in (rows, accepted))
    return pool, Requests(inputs.lengths, blocks, computed, known, taken), most - 1


@implementation(
    "gated_delta",
    name="_forward_core_prefill",
    supports={**_LAYER, "chunked": (True,), "kept": ("last",), "length": _SOME, "heads": range(1, 65)},
    on_device=True,
)
def prefill(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Prompts by the operator in chunks: states are gathered, zeroed where a request is new, put back."""
    return _by_layer(inputs, prompt=True)


@implementation(
    "gated_delta",
    name="_forward_core_prefill_behind_decode",
    supports={**_LAYER, "chunked": (True,), "kept": ("last",), "length": _SOME, "heads": range(1, 65)},
    on_device=True,
)
def prefill_behind_decode(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """The same where requests of one token, at the front, go on: these go another way, and all are put together."""
    return _by_layer(inputs, prompt=True, steps=True)


@implementation(
    "gated_delta",
    name="_forward_core_prefill_triton",
    supports={
        **_LAYER,
        "chunked": (True,),
        "kept": ("last",),
        "length": range(1, 200),
        "heads": range(1, 5),
        "batch": range(1, 4),
    },
    on_device=True,
)
def prefill_triton(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Prompts where that operator is not there: Triton kernels, and two operators of vllm-ascend behind them."""
    with triton_pipeline():
        return _by_layer(inputs, prompt=True)


@implementation(
    "gated_delta",
    name="_forward_core_decode",
    supports={**_LAYER, "chunked": (False,), "kept": ("last",), "length": (1,), "fresh": (False,)},
    on_device=True,
)
def decode(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A token for each request, in its block."""
    return _by_layer(inputs, prompt=False)


@implementation(
    "gated_delta",
    name="_forward_core_drafts",
    supports={**_LAYER, "chunked": (False,), "kept": ("each",), "length": range(2, MOST_DRAFT + 1)},
    on_device=True,
)
def drafts(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Drafts, each token in a block of its own, behind those tokens of the step before that were accepted."""
    return _by_layer(inputs, prompt=False)


@implementation(
    "gated_delta",
    name="_forward_core_decode_graph",
    supports={**_LAYER, "chunked": (False,), "kept": ("last",), "length": (1,), "fresh": (False,)},
    on_device=True,
)
def decode_graph(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """A token for each request, with metadata of a graph that others fill."""
    return _by_layer(inputs, prompt=False, graph=True)


@implementation(
    "gated_delta",
    name="_forward_core_drafts_graph",
    supports=tuple(
        {**_LAYER, "chunked": (False,), "kept": ("each",), "length": (length,)} for length in range(2, MOST_DRAFT + 1)
    ),
    on_device=True,
)
def drafts_graph(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Drafts, as many for each request, with metadata of a graph that others fill."""
    return _by_layer(inputs, prompt=False, graph=True)


def _batch_of_one(inputs: GatedDeltaInputs) -> dict[str, torch.Tensor]:
    """Tokens of all requests behind each other."""
    tokens = sum(inputs.lengths)
    gate = torch.zeros_like(inputs.beta, dtype=torch.float32) if inputs.gate is None else inputs.gate
    named = {"q": inputs.query, "k": inputs.key, "v": inputs.value, "g": gate, "beta": inputs.beta}
    return {name: one[:tokens].unsqueeze(0) for name, one in named.items()}


def _starts(inputs: GatedDeltaInputs) -> torch.Tensor:
    return torch.tensor([0, *inputs.lengths]).cumsum(dim=0).to(inputs.value.device, torch.int32)


@implementation(
    "gated_delta",
    name="chunk_gated_delta_rule_pytorch",
    supports={"raw": (False,), "kept": ("last",), "gates": ("head", "none"), "length": _SOME},
    on_device=True,
)
def chunks_of_torch(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Prompts in plain torch and float32, with which vllm-ascend's own tests compare its kernels."""
    slots = inputs.slots[torch.tensor(inputs.lengths).cumsum(dim=0) - 1].long()
    begun = inputs.states[inputs.initial.clamp(min=0).long()].clone()
    begun[inputs.initial < 0] = 0
    output = torch.zeros_like(inputs.value)
    answer, last = chunk_gated_delta_rule_pytorch(
        **_batch_of_one(inputs),
        scale=inputs.scale,
        initial_state=begun,
        output_final_state=True,
        cu_seqlens=_starts(inputs),
    )
    output[: sum(inputs.lengths)] = answer.squeeze(0)
    inputs.states[slots] = last.to(inputs.states.dtype)
    return {"output": output, "states": inputs.states}


@implementation(
    "gated_delta",
    name="fused_recurrent_gated_delta_rule_pytorch",
    supports=tuple(
        {"raw": (False,), "chunked": (False,), "fresh": (False,), "gates": ("head", "none"), **one}
        for one in ({"kept": ("last",), "length": (1,)}, {"kept": ("each",), "length": range(2, 2**10)})
    ),
    on_device=True,
)
def steps_of_torch(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Steps and drafts in plain torch; of drafts it takes a row of slots for each request."""
    starts, lengths = _starts(inputs), inputs.lengths
    rows = torch.full((len(lengths), max(lengths)), -1, dtype=torch.int32, device=inputs.value.device)
    for row, first, length in zip(rows, starts.tolist(), lengths, strict=False):
        row[:length] = inputs.slots[first : first + length]
    accepted = None
    if max(lengths) > 1:
        accepted = 1 + (rows == inputs.initial.unsqueeze(1)).int().argmax(dim=1)
    output = torch.zeros_like(inputs.value)
    answer, _ = fused_recurrent_gated_delta_rule_pytorch(
        **_batch_of_one(inputs),
        initial_state=inputs.states,
        inplace_final_state=True,
        cu_seqlens=starts,
        ssm_state_indices=rows if accepted is not None else rows[:, 0].contiguous(),
        num_accepted_tokens=accepted,
    )
    output[: sum(lengths)] = answer.squeeze(0)
    return {"output": output, "states": inputs.states}
