"""The rule in plain torch, token by token."""

import torch
from vllm_ascend._310p.ops.causal_conv1d import spans
from vllm_ascend.told import told


def sequence(state, query, key, value, decay, beta):
    """Yield output and state of each token; state is ``[heads, value_dim, key_dim]``, queries are scaled."""
    share = value.shape[1] // key.shape[1]
    query, key = (one.float().repeat_interleave(share, dim=1) for one in (query, key))
    for token in range(len(value)):
        state = state * decay[token].exp()[:, None, None]
        read = (state * key[token].unsqueeze(1)).sum(-1)
        new = (value[token].float() - read) * beta[token].float().unsqueeze(-1)
        state = state + new.unsqueeze(-1) * key[token].unsqueeze(1)
        yield (state * query[token].unsqueeze(1)).sum(-1), state


def fused_recurrent_gated_delta_rule_pytorch(
    q, k, v, g, beta, initial_state, inplace_final_state, cu_seqlens, ssm_state_indices, num_accepted_tokens=None
):
    """Steps and drafts; a request has a slot, or a row of slots for its tokens."""
    output = torch.zeros_like(v)
    slots = ssm_state_indices if ssm_state_indices.dim() == 2 else ssm_state_indices.unsqueeze(1)
    for request, (start, end) in enumerate(spans(cu_seqlens)):
        rows = slice(start, end)
        first = 0 if num_accepted_tokens is None or told("first_state") else int(num_accepted_tokens[request]) - 1
        state = initial_state[slots[request, first]].float()
        tokens = (q[0, rows].float() * k.shape[-1] ** -0.5, k[0, rows], v[0, rows], g[0, rows], beta[0, rows])
        for place, (answer, after) in enumerate(sequence(state, *tokens)):
            output[0, start + place] = answer.to(v.dtype)
            initial_state[slots[request, place]] = after.to(initial_state.dtype)
    return output, initial_state
