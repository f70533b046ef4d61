"""Causal convolutions in front of linear attention: the operator of sgl-kernel-npu, and plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from npudiff import Target, implementation
from npudiff.reference.causal_conv import CausalConvInputs

Outputs = dict[str, torch.Tensor]

_UPDATE = 1


@implementation(
    "causal_conv",
    supports=({"rounding": ("stages",), "width": range(2, 5)}, {"activation": (False,), "width": range(2, 5)}),
    on_device=True,
)
def causal_conv1d(inputs: CausalConvInputs, target: Target) -> Outputs:
    """The operator, whose two versions round before the activation or not; a padded request has no line."""
    return with_operator(inputs)


def with_operator(inputs: CausalConvInputs) -> Outputs:
    """Run the operator on rows that follow each other."""
    device = inputs.x.device
    starts = torch.tensor([0, *inputs.lengths], dtype=torch.int32).cumsum(dim=0).to(device, torch.int32)
    tokens = sum(inputs.lengths)
    output = inputs.x.new_zeros(inputs.x.shape)
    if not tokens:
        return {"output": output, "lines": inputs.lines}
    output[:tokens] = torch.ops.npu.causal_conv1d(
        inputs.x[:tokens].contiguous(),
        inputs.weight,
        inputs.lines,
        bias=inputs.bias,
        query_start_loc=starts,
        cache_indices=inputs.line_of,
        has_initial_state=inputs.has_history,
        num_accepted_tokens=inputs.accepted,
        activation_mode=int(inputs.activation),
        pad_slot_id=-1,
        run_mode=0 if inputs.mode == "prompt" else _UPDATE,
    )
    return {"output": output, "lines": inputs.lines}


def sequences(inputs: CausalConvInputs) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """Yield rows, line and ``[history, rows]`` of each request that has tokens and a line."""
    start, before = 0, inputs.width - 1
    for number, (length, line) in enumerate(zip(inputs.lengths, inputs.line_of.tolist(), strict=True)):
        rows = slice(start, start + length)
        start += length
        if line < 0 or not length:
            continue
        first = 0 if inputs.accepted is None else int(inputs.accepted[number]) - 1
        history = inputs.lines[line, first : first + before].clone()
        if inputs.has_history is not None and not inputs.has_history[number]:
            history.zero_()
        yield rows, line, torch.cat([history, inputs.x[rows]])


def keep(inputs: CausalConvInputs, line: int, z: torch.Tensor) -> None:
    """Write what the next call needs: all of a draft, so that it may go on behind any token, or the last rows."""
    kept = z[1:] if inputs.mode == "draft" else z[len(z) - inputs.width + 1 :]
    inputs.lines[line, : len(kept)] = kept


def activated(inputs: CausalConvInputs, sums: torch.Tensor) -> torch.Tensor:
    """Sums in float32 after the activation, in the dtype of the rows."""
    return (torch.nn.functional.silu(sums) if inputs.activation else sums).to(inputs.x.dtype)


@implementation("causal_conv", supports={}, on_device=True)
def tap_by_tap(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Shifted products in float32, the oldest token first."""
    return with_taps(inputs, inputs.weight)


def with_taps(inputs: CausalConvInputs, weight: torch.Tensor) -> Outputs:
    """Convolve with a weight ``[width, channels]``."""
    output = inputs.x.new_zeros(inputs.x.shape)
    for rows, line, z in sequences(inputs):
        length, wide = rows.stop - rows.start, z.float()
        sums = torch.zeros(length, z.shape[1], device=z.device) if inputs.bias is None else inputs.bias.float()
        for tap, factors in enumerate(weight.float()):
            sums = sums + wide[tap : tap + length] * factors
        output[rows] = activated(inputs, sums)
        keep(inputs, line, z)
    return {"output": output, "lines": inputs.lines}


@implementation("causal_conv", supports={}, on_device=True)
def grouped_convolution(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Torch's convolution with a group per channel, as models have it for hosts without kernels."""
    output = inputs.x.new_zeros(inputs.x.shape)
    weight = inputs.weight.float().t().unsqueeze(1).contiguous()
    bias = None if inputs.bias is None else inputs.bias.float()
    for rows, line, z in sequences(inputs):
        sums = torch.nn.functional.conv1d(z.float().t().unsqueeze(0), weight, bias, groups=z.shape[1])
        output[rows] = activated(inputs, sums.squeeze(0).t())
        keep(inputs, line, z)
    return {"output": output, "lines": inputs.lines}
