"""Convolutions before linear attention in vllm-ascend: of its layer, in Triton, and in plain torch."""

from __future__ import annotations

import torch
from vllm_ascend._310p.ops import causal_conv1d as plain
from vllm_ascend.ops.triton.mamba.causal_conv1d import causal_conv1d_update_npu

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
from npudiff.reference.causal_conv import CausalConvInputs

Outputs = dict[str, torch.Tensor]

_SOME = range(1, 2**17)
_HERE = {"padded": (False,), "length": _SOME}
"""What vllm-ascend pads belongs to a request without tokens and has block 0, which is never a request's."""

_OPERATOR = {**_HERE, "width": range(2, 5)}


def _by_layer(inputs: CausalConvInputs) -> Outputs:
    """Leave the layer where its convolution is done; its pool has the null block in front."""
    tokens, channels = sum(inputs.lengths), inputs.x.shape[1]
    prompt, output = inputs.mode == "prompt", torch.zeros_like(inputs.x)
    lines = torch.cat([torch.zeros_like(inputs.lines[:1]), inputs.lines])
    states = inputs.x.new_zeros(len(lines), 1, 16, 16)
    drafts = 0 if inputs.accepted is None else lines.shape[1] - inputs.width + 1
    history = [True] * len(inputs.lengths) if inputs.has_history is None else inputs.has_history.tolist()
    blocks = (inputs.line_of + 1).unsqueeze(1).expand(-1, 1 + drafts)
    requests = Requests(
        inputs.lengths, blocks, [1 if one else 0 for one in history], [prompt] * len(history), inputs.accepted
    )
    sizes = Sizes(1, 1, channels // 4, channels // 2)
    made = layer(sizes, inputs.weight, inputs.bias, (lines, states), activation=inputs.activation)
    leave_behind_convolution(made)
    with here():
        known = metadata(requests, 1, drafts, inputs.x.device)
        try:
            run_core(made, known, inputs.x, inputs.x.new_zeros(len(inputs.x), 1), output)
        except Convolved as done:
            output[:tokens] = done.rows
    return {"output": output, "lines": lines[1:]}


@implementation("causal_conv", name="_forward_core_prefill", supports={**_OPERATOR, "mode": ("prompt",)}, on_device=True)
def prefill(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Prompts, with a history or without."""
    return _by_layer(inputs)


@implementation("causal_conv", name="_forward_core_decode", supports={**_OPERATOR, "mode": ("step",), "length": (1,)}, on_device=True)
def decode(inputs: CausalConvInputs, target: Target) -> Outputs:
    """A token for each request."""
    return _by_layer(inputs)


@implementation("causal_conv", name="_forward_core_drafts", supports={**_OPERATOR, "mode": ("draft",)}, on_device=True)
def drafts(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Drafts behind those tokens of the step before that were accepted."""
    return _by_layer(inputs)
