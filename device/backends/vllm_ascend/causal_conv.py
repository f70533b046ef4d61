"""Convolutions before linear attention in vllm-ascend: of its layer, in Triton, and in plain torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from vllm_ascend._310p.ops.causal_conv1d import causal_conv1d_fn
from vllm_ascend.ops.triton.mamba import causal_conv1d

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.delta_world import (
    Convolved,
    Requests,
    Sizes,
    here,
    layer,
    leave_behind_convolution,
    metadata,
    run_core,
)
from npudiff.device.backends.vllm_ascend.world import TRITON, options_of, triton
from npudiff.reference.causal_conv import CausalConvInputs

Outputs = dict[str, torch.Tensor]

_SOME = range(1, 2**17)
_HERE = {"padded": (False,), "length": _SOME}
"""What vllm-ascend pads belongs to a request without tokens and has block 0, which is never a request's."""

_OPERATOR = {**_HERE, "width": range(2, 5)}


def _by_layer(inputs: CausalConvInputs, *, graph: bool = False) -> Outputs:
    """Leave the layer where its convolution is done; its pool has the null block in front.

    Rows beyond the requests fill a graph.
    """
    tokens, channels = sum(inputs.lengths), inputs.x.shape[1]
    prompt, output = inputs.mode == "prompt", torch.zeros_like(inputs.x)
    lines = torch.cat([torch.zeros_like(inputs.lines[:1]), inputs.lines])
    states = inputs.x.new_zeros(len(lines), 1, 16, 16)
    drafts = 0 if inputs.accepted is None else lines.shape[1] - inputs.width + 1
    history = [True] * len(inputs.lengths) if inputs.has_history is None else inputs.has_history.tolist()
    blocks = (inputs.line_of + 1).unsqueeze(1).expand(-1, 1 + drafts)
    computed, rest = [1 if one else 0 for one in history], len(inputs.x) - tokens
    padding = (rest if inputs.accepted is None else -(-rest // max(inputs.lengths)), rest) if graph else None
    requests = Requests(inputs.lengths, blocks, computed, [prompt] * len(history), inputs.accepted, padding)
    sizes = Sizes(1, 1, channels // 4, channels // 2)
    made = layer(sizes, inputs.weight, inputs.bias, (lines, states), activation=inputs.activation)
    leave_behind_convolution(made)
    with here():
        known = metadata(requests, 1, drafts, inputs.x.device)
        try:
            run_core(made, known, inputs.x, inputs.x.new_zeros(len(inputs.x), 1), output)
        except Convolved as done:
            output[:tokens] = done.rows[:tokens]
    return {"output": output, "lines": lines[1:]}


@implementation(
    "causal_conv", name="_forward_core_prefill", supports={**_OPERATOR, "mode": ("prompt",)}, on_device=True
)
def prefill(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Prompts, with a history or without."""
    return _by_layer(inputs)


@implementation(
    "causal_conv",
    name="_forward_core_decode",
    supports={**_OPERATOR, "mode": ("step",), "length": (1,)},
    on_device=True,
)
def decode(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request."""
    return _by_layer(inputs)


@implementation("causal_conv", name="_forward_core_drafts", supports={**_OPERATOR, "mode": ("draft",)}, on_device=True)
def drafts(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Drafts behind those tokens of the step before that were accepted."""
    return _by_layer(inputs)


@implementation(
    "causal_conv",
    name="_forward_core_decode_graph",
    supports={**_OPERATOR, "mode": ("step",), "length": (1,)},
    on_device=True,
)
def decode_graph(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request, with metadata of a graph that others fill."""
    return _by_layer(inputs, graph=True)


@implementation(
    "causal_conv", name="_forward_core_drafts_graph", supports={**_OPERATOR, "mode": ("draft",)}, on_device=True
)
def drafts_graph(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Drafts, with metadata of a graph that others fill."""
    return _by_layer(inputs, graph=True)


def _starts(inputs: CausalConvInputs) -> torch.Tensor:
    lengths = torch.tensor([0, *inputs.lengths])
    return lengths.cumsum(dim=0).to(inputs.x.device, torch.int32)


def _activation(inputs: CausalConvInputs) -> str | None:
    return "silu" if inputs.activation else None


@contextlib.contextmanager
def _in_triton(inputs: CausalConvInputs) -> Iterator[None]:
    """Let the module find Triton as the option of a case says; it was imported where it did not."""
    with triton(inputs), mock.patch.object(causal_conv1d, "HAS_TRITON", options_of(inputs)["triton"] == "1"):
        yield


_ROUNDED = ({"rounding": ("stages",)}, {"activation": (False,)})
"""Where plain torch convolves in 16 bits, whose sum is rounded before the activation."""


@implementation(
    "causal_conv",
    name="causal_conv1d_update_npu",
    supports=tuple({**_HERE, "mode": ("step",), "length": (1,), "width": range(2, 7), **one} for one in _ROUNDED),
    options=TRITON,
    on_device=True,
)
def update(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request, as layers of vllm call what replaces their function: in Triton, or plain torch."""
    output, batch = torch.zeros_like(inputs.x), len(inputs.lengths)
    with _in_triton(inputs):
        output[:batch] = causal_conv1d.causal_conv1d_update_npu(
            inputs.x[:batch].contiguous(),
            inputs.lines.transpose(-1, -2),
            inputs.weight.t().contiguous(),
            inputs.bias,
            _activation(inputs),
            conv_state_indices=inputs.line_of,
            validate_data=True,
        )
    return {"output": output, "lines": inputs.lines}


@implementation(
    "causal_conv",
    name="causal_conv1d_update_npu_of_drafts",
    supports=tuple({**_HERE, "mode": ("draft",), **one} for one in _ROUNDED),
    options=TRITON,
    on_device=True,
)
def update_of_drafts(inputs: CausalConvInputs, target: Target) -> Outputs:
    """The same behind those tokens of the step before that were accepted."""
    output, tokens = torch.zeros_like(inputs.x), sum(inputs.lengths)
    with _in_triton(inputs):
        output[:tokens] = causal_conv1d.causal_conv1d_update_npu(
            inputs.x[:tokens].contiguous(),
            inputs.lines.transpose(-1, -2),
            inputs.weight.t().contiguous(),
            inputs.bias,
            _activation(inputs),
            conv_state_indices=inputs.line_of,
            num_accepted_tokens=inputs.accepted,
            query_start_loc=_starts(inputs),
            max_query_len=max(inputs.lengths),
            validate_data=False,
        )
    return {"output": output, "lines": inputs.lines}


@implementation(
    "causal_conv",
    name="causal_conv1d_fn",
    supports=tuple({**_HERE, "mode": ("prompt",), **one} for one in _ROUNDED),
    on_device=True,
)
def plain(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Prompts in plain torch, with which vllm-ascend's own tests compare its operators."""
    output, tokens = torch.zeros_like(inputs.x), sum(inputs.lengths)
    output[:tokens] = causal_conv1d_fn(
        inputs.x[:tokens].t(),
        inputs.weight.t(),
        inputs.bias,
        _activation(inputs),
        inputs.lines.transpose(-1, -2),
        inputs.has_history,
        inputs.line_of,
        _starts(inputs),
    ).t()
    return {"output": output, "lines": inputs.lines}
