"""The gated delta rule in sglang, of its backend of gated delta networks behind its convolution."""

from __future__ import annotations

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.sglang.delta_world import (
    MOST_DRAFT,
    Sizes,
    convolved_already,
    delta_world,
    handed_in,
)
from npudiff.reference.gated_delta import GatedDeltaInputs

Outputs = dict[str, torch.Tensor]

_WIDTH = 4
_HERE = {"gates": ("head", "none"), "length": range(1, 2**17), "state_dtype": ("bfloat16",)}
"""Operators of an A2 or A3 take no other states: sglang has to be started with ``--mamba-ssm-dtype bfloat16``."""


def _run(
    inputs: GatedDeltaInputs, mode: ForwardMode, states: list[torch.Tensor], slots: list[int],
    drafts: int | None = None, padding: int | None = None,
) -> Outputs:  # fmt: skip
    """Run the layer on pools of states, which have slot 0 in front; those behind drafts are the second one."""
    tokens, (heads, value_dim) = sum(inputs.lengths), inputs.value.shape[1:]
    key_heads, key_dim = inputs.key.shape[1:]
    whole = tokens + (drafts or 1) * (padding or 0)
    given = (inputs.query, inputs.key, inputs.value)
    mixed = torch.cat([_of_rows(one[:tokens], whole).flatten(1) for one in given], dim=1)
    lines = mixed.new_zeros(len(states[0]), _WIDTH - 1 + (drafts or 1) - 1, mixed.shape[1])
    known = [int(first >= 0) for first in inputs.initial.tolist()]
    requests = list(zip(inputs.lengths, known, slots, strict=True))
    sizes = Sizes(key_heads, heads, key_dim, value_dim)
    weight = mixed.new_zeros(_WIDTH, mixed.shape[1])
    pools = (lines, *states)
    world = delta_world(mode, sizes, weight, None, pools, requests, drafts=drafts, padding=padding)
    gate = torch.zeros_like(inputs.beta, dtype=torch.float32) if inputs.gate is None else inputs.gate
    with handed_in(_of_rows(gate[:tokens], whole), _of_rows(inputs.beta[:tokens], whole)), convolved_already():
        answer = world.run(mixed)
    output = torch.zeros_like(inputs.value)
    output[:tokens] = answer.reshape(whole, heads, value_dim)[:tokens]
    return {"output": output}


def _of_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Fill a tensor up with rows of zeros."""
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


@implementation(
    "gated_delta",
    name="AscendGDNAttnBackend.forward_extend",
    supports={**_HERE, "chunked": (True,), "kept": ("last",), "raw": (False,), "heads": range(1, 65),
              "key_dim": range(1, 129), "value_dim": range(1, 129)},
    on_device=True,
)  # fmt: skip
def forward_extend(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Prompts, from the states of their slots; that of a new request is zeros, as its pool gives it away."""
    slots = (inputs.slots[torch.tensor(inputs.lengths).cumsum(dim=0) - 1] + 1).tolist()
    states = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states])
    for slot, first in zip(slots, inputs.initial.tolist(), strict=True):
        if first < 0:
            states[slot] = 0
    done = _run(inputs, ForwardMode.EXTEND, [states], slots)
    return {**done, "states": states[1:]}


_DRAFTS = tuple(
    {**_HERE, "chunked": (False,), "kept": ("each",), "raw": (True,), "length": (length,), "key_dim": (128,),
     "value_dim": range(8, 129, 8)}
    for length in range(2, MOST_DRAFT + 1)
)  # fmt: skip


@implementation("gated_delta", name="AscendGDNAttnBackend.target_verify", supports=_DRAFTS, on_device=True)
def target_verify(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """Drafts, as many for each request."""
    return _verified(inputs, None)


@implementation("gated_delta", name="AscendGDNAttnBackend.target_verify_graph", supports=_DRAFTS, on_device=True)
def target_verify_graph(inputs: GatedDeltaInputs, target: Target) -> Outputs:
    """The same with metadata of a graph, which requests of padding fill."""
    rows = len(inputs.value) - sum(inputs.lengths)
    return _verified(inputs, -(-rows // inputs.lengths[0]))


def _verified(inputs: GatedDeltaInputs, padding: int | None) -> Outputs:
    """Verify drafts: states behind tokens go into rows of their own, from where those of a case are taken."""
    length, batch = inputs.lengths[0], len(inputs.lengths)
    states = torch.cat([torch.zeros_like(inputs.states[:1]), inputs.states])
    each = states.new_zeros(batch + (padding or 0), length, *states.shape[1:])
    slots = (inputs.initial + 1).tolist()
    done = _run(inputs, ForwardMode.TARGET_VERIFY, [states, each], slots, length, padding)
    after = states[1:].clone()
    after[inputs.slots[: batch * length].long()] = each[:batch].flatten(0, 1)
    return {**done, "states": after}
