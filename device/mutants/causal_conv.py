"""Wrong causal convolutions."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.causal_conv import (
    Outputs,
    activated,
    causal_conv1d,
    grouped_convolution,
    sequences,
    tap_by_tap,
    with_operator,
    with_taps,
)
from npudiff.reference.causal_conv import CausalConvInputs


@perturbed(tap_by_tap, "vllm-project/vllm-ascend/pull/8544: the order of the taps, which no shape shows")
def taps_in_reverse(inputs: CausalConvInputs) -> CausalConvInputs:
    """Let the first row of the weight meet the newest token."""
    return replace(inputs, weight=inputs.weight.flip(0).contiguous())


@perturbed(
    causal_conv1d,
    "vllm-project/vllm-ascend/pull/10558: whether there is a history is not looked at",
    supports={"mode": ("prompt",), "history": ("some", "none")},
)
def history_always_there(inputs: CausalConvInputs) -> CausalConvInputs:
    """Begin every prompt with what its line holds."""
    there = inputs.has_history
    return inputs if there is None else replace(inputs, has_history=torch.ones_like(there))


@mutant(
    tap_by_tap,
    "vllm-project/vllm/pull/24680: requests with fewer tokens than the history has rows",
    supports={"mode": ("prompt", "step"), "width": range(3, 17)},
)
def short_request_loses_its_history(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Write zeros in front of the rows of a request that has fewer of them than its line."""
    outputs = tap_by_tap(inputs, target)
    before = inputs.width - 1
    for rows, line, _ in sequences(inputs):
        short = before - (rows.stop - rows.start)
        if short > 0:
            outputs["lines"][line, :short] = 0
    return outputs


@perturbed(
    tap_by_tap,
    "vllm-project/vllm/pull/49757: padded requests of a graph write into the state of another one",
    supports={"padded": (True,)},
)
def padding_has_a_line(inputs: CausalConvInputs) -> CausalConvInputs:
    """Give the first padded request a line that nobody has, or the last one."""
    padded = (inputs.line_of < 0).nonzero().flatten().tolist()
    if not padded:
        return inputs
    free = set(range(len(inputs.lines))) - set(inputs.line_of.tolist())
    line_of = inputs.line_of.clone()
    line_of[padded[0]] = max(free, default=len(inputs.lines) - 1)
    accepted = None if inputs.accepted is None else inputs.accepted.clone()
    if accepted is not None:
        accepted[padded[0]] = 1
    return replace(inputs, line_of=line_of, accepted=accepted)


@perturbed(
    causal_conv1d,
    "vllm-project/vllm/issues/40738: the history is not behind the last token that was accepted",
    supports={"mode": ("draft",), "accepted": ("any", "all")},
)
def history_behind_the_first_token(inputs: CausalConvInputs) -> CausalConvInputs:
    """Go on behind the first token of the step before."""
    return replace(inputs, accepted=None if inputs.accepted is None else torch.ones_like(inputs.accepted))


@perturbed(
    causal_conv1d,
    "sglang/srt/hardware_backend/npu/attention/ascend_gdn_backend.py 259: the history of a draft ends a line",
    supports={"mode": ("draft",), "accepted": ("any", "one")},
)
def history_at_the_end(inputs: CausalConvInputs) -> CausalConvInputs:
    """Take the last rows of a line that a draft of eight tokens fills."""
    return replace(inputs, accepted=None if inputs.accepted is None else torch.full_like(inputs.accepted, 8))


@mutant(
    tap_by_tap,
    "sgl-project/sglang/issues/25587: behind a draft only its last rows are kept",
    supports={"mode": ("draft",), "length": range(2, 9)},
)
def draft_keeps_its_last_rows(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Write a line as behind a step."""
    kept = [(line, z) for _, line, z in sequences(inputs)]
    outputs = tap_by_tap(replace(inputs, lines=inputs.lines.clone()), target)
    lines = inputs.lines.clone()
    for line, z in kept:
        lines[line, : inputs.width - 1] = z[len(z) - inputs.width + 1 :]
    return {**outputs, "lines": lines}


@perturbed(
    tap_by_tap,
    "vllm_ascend/ops/triton/mamba/causal_conv1d.py 192: everything goes through float16",
    supports={"dtype": ("bfloat16",), "recipe": ("tiny",)},
)
def through_float16(inputs: CausalConvInputs) -> CausalConvInputs:
    """Round rows and histories to float16."""
    x, lines = (one.to(torch.float16).to(one.dtype) for one in (inputs.x, inputs.lines))
    return replace(inputs, x=x, lines=lines)


@mutant(
    causal_conv1d,
    "sgl-project/sgl-kernel-npu/pull/235: channels behind the last whole tile",
    supports={"channels": (48, 144, 3072)},
)
def last_channels_are_left_out(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Compute nothing of the last channels where they do not fill a tile."""
    outputs = with_operator(inputs)
    channels = inputs.x.shape[1]
    tile = 2048 if channels > 2048 else 32
    outputs["output"][:, channels // tile * tile :] = 0
    return outputs


@mutant(
    grouped_convolution,
    "vllm_ascend/ops/triton/mamba/causal_conv1d.py 466: what is written goes into a copy of the pool",
)
def lines_are_a_copy(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Return the pool as it was."""
    outputs = grouped_convolution(replace(inputs, lines=inputs.lines.clone()), target)
    return {**outputs, "lines": inputs.lines}


@perturbed(
    tap_by_tap,
    "vllm-project/vllm-ascend/pull/10901: lines of the batch before are used, in the order of requests",
    supports={"batch": range(2, 2**13), "padded": (False,)},
)
def lines_in_the_order_of_requests(inputs: CausalConvInputs) -> CausalConvInputs:
    """Give each request the line of its number."""
    return replace(inputs, line_of=torch.arange(len(inputs.line_of), dtype=torch.int32))


@mutant(
    tap_by_tap,
    "vllm_ascend/ops/triton/mamba/causal_conv1d.py 189: the history of a request is in its line",
    supports={"batch": range(2, 2**13), "mode": ("prompt",)},
)
def history_of_the_request_before(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Take the last rows of the request before for the history of a request."""
    outputs = tap_by_tap(inputs, target)
    before = inputs.width - 1
    for rows, _, z in sequences(inputs):
        if rows.start < before:
            continue
        neighbour = torch.cat([inputs.x[rows.start - before : rows.start], z[before:]]).float()
        length = rows.stop - rows.start
        sums = torch.zeros(length, z.shape[1]) if inputs.bias is None else inputs.bias.float()
        for tap, factors in enumerate(inputs.weight.float()):
            sums = sums + neighbour[tap : tap + length] * factors
        outputs["output"][rows] = activated(inputs, sums)
    return outputs


@mutant(
    tap_by_tap,
    "sgl-project/sgl-kernel-npu/pull/742: where the bias is added",
    supports={"biased": (True,), "activation": (True,)},
)
def bias_behind_the_activation(inputs: CausalConvInputs, target: Target) -> Outputs:
    """Add the bias to what the activation gives."""
    outputs = with_taps(replace(inputs, bias=None), inputs.weight)
    if inputs.bias is not None:
        outputs["output"] = (outputs["output"].float() + inputs.bias.float()).to(inputs.x.dtype)
    return outputs
