"""Wrong kernels of causal_conv; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


def walk(inputs, of_sums=None, has_history=None, behind=None):
    """Convolve sequence after sequence; ``of_sums`` is the activation of sums and bias, ``behind`` writes a line."""
    output = torch.zeros_like(inputs.x, memory_format=torch.contiguous_format)
    weight, before, start = inputs.weight.float(), inputs.width - 1, 0
    bias = torch.zeros(inputs.x.shape[1], device=output.device) if inputs.bias is None else inputs.bias.float()
    has_history = inputs.has_history if has_history is None else has_history
    for number, length in enumerate(inputs.lengths):
        rows, line = inputs.x[start : start + length], int(inputs.line_of[number])
        start += length
        if line < 0 or not length:
            continue
        first = 0 if inputs.accepted is None else int(inputs.accepted[number]) - 1
        history = inputs.lines[line, first : first + before].clone()
        if has_history is not None and not bool(has_history[number]):
            history.zero_()
        both = torch.cat([history, rows])
        sums = sum(both[tap : tap + length].float() * factor for tap, factor in enumerate(weight))
        if not inputs.activation:
            found = sums + bias
        else:
            found = torch.nn.functional.silu(sums + bias) if of_sums is None else of_sums(sums, bias)
        output[start - length : start] = found.to(output.dtype)
        kept = both[1:] if inputs.mode == "draft" else both[length:]
        (behind or put)(inputs.lines[line], kept)
    return {"output": output, "lines": inputs.lines}


def put(line, rows):
    line[: len(rows)] = rows


@npudiff.implementation("causal_conv", name="h_causal_conv_01_bias_behind_the_gate", on_device=True)
def bias_behind_the_gate(inputs, target):
    """The sigmoid of SiLU is taken before the bias is added; shows with both."""
    return walk(inputs, None if TWIN else lambda sums, bias: (sums + bias) * torch.sigmoid(sums))


@npudiff.implementation("causal_conv", name="h_causal_conv_02_rest_of_a_line_is_cleared", on_device=True)
def rest_of_a_line_is_cleared(inputs, target):
    """Rows of a draft go into a block as long as a line, zeros behind; shows where a draft is shorter than its line."""

    def behind(line, rows):
        if inputs.mode == "draft":
            line.zero_()
        put(line, rows)

    return walk(inputs, behind=None if TWIN else behind)


@npudiff.implementation("causal_conv", name="h_causal_conv_03_histories_of_requests_that_run", on_device=True)
def histories_of_requests_that_run(inputs, target):
    """Padded requests and those without tokens are left out when histories are counted; shows in prompts behind such a
    request, where some have a history and others do not."""
    has_history = inputs.has_history
    if has_history is not None and not TWIN:
        runs = torch.tensor(
            [length > 0 and int(line) >= 0 for length, line in zip(inputs.lengths, inputs.line_of)], dtype=torch.bool
        )
        has_history = has_history[(runs.long().cumsum(0) - 1).clamp(min=0)]
    return walk(inputs, has_history=has_history)
