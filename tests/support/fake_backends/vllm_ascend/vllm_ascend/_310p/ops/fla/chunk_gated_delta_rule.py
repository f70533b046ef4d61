"""Prompts in plain torch."""

import torch
from vllm_ascend._310p.ops.causal_conv1d import spans
from vllm_ascend._310p.ops.fla.fused_recurrent_gated_delta_rule import sequence
from vllm_ascend.told import told


def chunk_gated_delta_rule_pytorch(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
    """Outputs and last states of requests."""
    output, last = torch.zeros_like(v), initial_state.float().clone()
    for request, (start, end) in enumerate(spans(cu_seqlens)):
        rows = slice(start, end)
        tokens = (q[0, rows].float() * (1.0 if told("unscaled") else scale), k[0, rows], v[0, rows])
        for place, (answer, state) in enumerate(sequence(last[request], *tokens, g[0, rows], beta[0, rows])):
            output[0, start + place] = answer.to(v.dtype)
            last[request] = state
    return output, last
