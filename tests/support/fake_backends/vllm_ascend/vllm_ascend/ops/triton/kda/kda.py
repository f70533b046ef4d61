"""Kimi's rule in plain torch, under the names of kernels."""

import torch
from vllm_ascend._310p.ops.causal_conv1d import spans
from vllm_ascend.told import told


def unit(rows):
    """Rows of length 1."""
    return rows / (rows.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def sequence(state, query, key, value, gate, beta):
    """Yield output and state of each token; state is ``[heads, value_dim, key_dim]``, queries are scaled."""
    query, key = (one.repeat_interleave(value.shape[1] // key.shape[1], dim=1) for one in (query, key))
    for token in range(len(value)):
        state = state * gate[token].exp().unsqueeze(2 if told("rows_decay") else 1)
        new = (value[token] - (state * key[token].unsqueeze(1)).sum(-1)) * beta[token].unsqueeze(-1)
        state = state + new.unsqueeze(-1) * key[token].unsqueeze(1)
        yield (state * query[token].unsqueeze(1)).sum(-1), state


def fused_recurrent_kda(
    q, k, v, g, beta, scale, initial_state, inplace_final_state, use_qk_l2norm_in_kernel, cu_seqlens,
    ssm_state_indices=None,
):  # fmt: skip
    """Tokens with a state each: in blocks of a table, of which 0 is nobody's, or in rows of their own."""
    output, after = torch.zeros_like(v), initial_state if inplace_final_state else torch.empty_like(initial_state)
    wide = [one[0].float() for one in (q, k, v, g, beta)]
    if use_qk_l2norm_in_kernel:
        wide[:2] = map(unit, wide[:2])
    wide[0] = wide[0] * scale
    for request, (start, end) in enumerate(spans(cu_seqlens)):
        places = torch.arange(start, end)
        if ssm_state_indices is not None:
            places = ssm_state_indices.reshape(len(ssm_state_indices), -1)[request]
        if start == end or (ssm_state_indices is not None and places[0] <= 0):
            continue
        first = initial_state[places[0] - 1 if told("block_before") else places[0]].float()
        for place, (answer, state) in enumerate(sequence(first, *(one[start:end] for one in wide))):
            output[0, start + place] = answer.to(output.dtype)
            after[places[place]] = state.to(after.dtype)
    return output, after


def chunk_kda(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
    """Prompts, token by token; outputs are written over values."""
    last = initial_state.float().clone()
    query, *others = (one[0].float() for one in (q, k, v.clone(), g, beta))
    for request, (start, end) in enumerate(spans(cu_seqlens)):
        first = torch.zeros_like(last[request]) if told("state_of_nobody") else last[request]
        rows = (one[start:end] for one in (query * scale, *others))
        for place, (answer, state) in enumerate(sequence(first, *rows)):
            v[0, start + place] = answer.to(v.dtype)
            last[request] = state
    return v, last
