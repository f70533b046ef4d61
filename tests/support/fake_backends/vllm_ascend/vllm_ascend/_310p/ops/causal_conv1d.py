"""Convolutions in plain torch, request by request."""

import itertools

import torch
from vllm_ascend.told import told


def spans(starts):
    """First and last row of each request."""
    return itertools.pairwise(starts.tolist())


def convolved(z, weight, bias, activation):
    """Convolve ``[width - 1 + tokens, channels]`` with a weight ``[channels, width]``, in float32."""
    taps = weight.float().flip(1) if told("taps_turned") else weight.float()
    tokens = len(z) - taps.shape[1] + 1
    sums = sum(z[tap : tap + tokens].float() * taps[:, tap] for tap in range(taps.shape[1]))
    sums = sums if bias is None else sums + bias.float()
    return (torch.nn.functional.silu(sums) if activation else sums).to(z.dtype)


def causal_conv1d_fn(x, weight, bias, activation, conv_states, has_initial_state, cache_indices, query_start_loc):
    """Prompts; ``conv_states`` is ``[lines, channels, rows]``."""
    rows, output, before = x.t(), torch.zeros_like(x.t()), weight.shape[1] - 1
    for request, (start, end) in enumerate(spans(query_start_loc)):
        line = conv_states[cache_indices[request]].t()
        known = bool(has_initial_state[request]) or told("history_of_others")
        history = line[:before].clone() if known else torch.zeros_like(line[:before])
        z = torch.cat([history, rows[start:end]])
        output[start:end] = convolved(z, weight, bias, activation)
        line[:before] = z[len(z) - before :]
    return output.t()


def update(x, conv_state, weight, bias, activation, lines, starts, accepted):
    """Steps, and drafts where numbers of accepted tokens are given."""
    output, before = torch.zeros_like(x), weight.shape[1] - 1
    for request, (start, end) in enumerate(spans(starts)):
        line = conv_state[lines[request]].t()
        first = 0 if accepted is None or told("from_the_first") else int(accepted[request]) - 1
        z = torch.cat([line[first : first + before].clone(), x[start:end]])
        output[start:end] = convolved(z, weight, bias, activation)
        kept = z[len(z) - before :] if accepted is None else z[1:]
        line[: len(kept)] = kept
    return output
