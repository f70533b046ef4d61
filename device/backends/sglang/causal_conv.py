"""Convolutions before linear attention in sglang, of its backend of gated delta networks."""

from __future__ import annotations

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.backends.sglang.delta_world import MOST_DRAFT, Sizes, delta_world
from npudiff.reference.causal_conv import CausalConvInputs

Outputs = dict[str, torch.Tensor]

_HERE = {
    "padded": (False,),
    "length": range(1, 2**17),
    "activation": (True,),
    "rounding": ("stages",),
    "width": range(2, 5),
    "spare_rows": (0,),
}
"""SiLU is always applied. Rows of a line beyond those that a call needs are there for drafts only."""


def _output(inputs: CausalConvInputs, rows: torch.Tensor) -> torch.Tensor:
    output = torch.zeros_like(inputs.x)
    output[: len(rows)] = rows
    return output


def _run(
    inputs: CausalConvInputs, mode: ForwardMode, lines: torch.Tensor, drafts: int | None = None, *, graph: bool = False
) -> torch.Tensor:
    """Run the layer on lines that have slot 0 in front, and return its rows behind the convolution."""
    tokens, each_has = sum(inputs.lengths), drafts or 1
    padding = -(-(len(inputs.x) - tokens) // each_has) if graph else None
    channels, batch = inputs.x.shape[1], len(inputs.lengths)
    history = [True] * batch if inputs.has_history is None else inputs.has_history.tolist()
    slots = (inputs.line_of + 1).tolist()
    requests = [(length, int(known), slot) for length, known, slot in zip(inputs.lengths, history, slots, strict=True)]
    states = lines.new_zeros(len(lines), 1, channels // 2, channels // 4)
    each = [] if drafts is None else [states.new_zeros(batch + (padding or 0), drafts, *states.shape[1:])]
    sizes = Sizes(1, 1, channels // 4, channels // 2)
    world = delta_world(
        mode, sizes, inputs.weight, inputs.bias, (lines, states, *each), requests, drafts=drafts, padding=padding
    )
    rows = inputs.x.new_zeros(tokens + each_has * (padding or 0), channels)
    rows[:tokens] = inputs.x[:tokens]
    return world.convolved(rows)[:tokens]


def _with_slot_0(lines: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(lines[:1]), lines])


@implementation(
    "causal_conv", name="AscendGDNAttnBackend.forward_extend", supports={**_HERE, "mode": ("prompt",)}, on_device=True
)
def forward_extend(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Prompts, with a cached prefix or without."""
    lines = _with_slot_0(inputs.lines)
    rows = _run(inputs, ForwardMode.EXTEND, lines)
    return {"output": _output(inputs, rows), "lines": lines[1:]}


@implementation(
    "causal_conv",
    name="AscendGDNAttnBackend.forward_decode",
    supports={**_HERE, "mode": ("step",), "length": (1,)},
    on_device=True,
)
def forward_decode(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request."""
    lines = _with_slot_0(inputs.lines)
    rows = _run(inputs, ForwardMode.DECODE, lines)
    return {"output": _output(inputs, rows), "lines": lines[1:]}


@implementation(
    "causal_conv",
    name="AscendGDNAttnBackend.forward_decode_graph",
    supports={**_HERE, "mode": ("step",), "length": (1,)},
    on_device=True,
)
def forward_decode_graph(inputs: CausalConvInputs, target: Target) -> Outputs:
    """The same with metadata of a graph, which rows of padding fill."""
    lines = _with_slot_0(inputs.lines)
    rows = _run(inputs, ForwardMode.DECODE, lines, graph=True)
    return {"output": _output(inputs, rows), "lines": lines[1:]}


_DRAFTS = tuple({**_HERE, "mode": ("draft",), "length": (length,)} for length in range(2, MOST_DRAFT + 1))


@implementation("causal_conv", name="AscendGDNAttnBackend.target_verify", supports=_DRAFTS, on_device=True)
def target_verify(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Drafts, as many for each request."""
    return _verified(inputs, graph=False)


@implementation("causal_conv", name="AscendGDNAttnBackend.target_verify_graph", supports=_DRAFTS, on_device=True)
def target_verify_graph(inputs: CausalConvInputs, target: Target) -> Outputs:
    """The same with metadata of a graph."""
    return _verified(inputs, graph=True)


def _verified(inputs: CausalConvInputs, *, graph: bool) -> Outputs:
    """Drafts, as many for each request, behind lines that were rolled back: history is in their last rows.

    Lines of sglang have as many rows as drafts need. Those of a case have more, in which what was written is put.
    """
    length, before = inputs.lengths[0], inputs.width - 1
    kept = before - 1 + length
    lines = inputs.lines.new_zeros(1 + len(inputs.lines), kept, inputs.lines.shape[2])
    accepted = [] if inputs.accepted is None else inputs.accepted.tolist()
    for line, first in zip(inputs.line_of.tolist(), accepted, strict=True):
        lines[1 + line, -before:] = inputs.lines[line, first - 1 : first - 1 + before]
    rows = _run(inputs, ForwardMode.TARGET_VERIFY, lines, length, graph=graph)
    for line in inputs.line_of.tolist():
        inputs.lines[line, :kept] = lines[1 + line]
    return {"output": _output(inputs, rows), "lines": inputs.lines}
