"""The products of experts on rows that are sorted by expert."""

import torch
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm_ascend.ops.activation import AscendSiluAndMul, AscendSwigluOAIAndMul, AscendSwigluStepAndMul
from vllm_ascend.told import told


def _apply_clipped_swiglu(hidden_states, *, swiglu_limit, swiglu_alpha, swiglu_beta):
    """Gates and ups in halves, both limited before."""
    gate, up = hidden_states.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=swiglu_limit), up.clamp(-swiglu_limit, swiglu_limit)
    alpha = 1.702 if told("usual_alpha") else swiglu_alpha
    return (gate * torch.sigmoid(alpha * gate) * (up + swiglu_beta)).to(hidden_states.dtype)


def activated(states, config):
    """Gates and ups as the configuration says."""
    kind, limit = config.activation, config.swiglu_limit
    if kind is MoEActivation.SILU:
        return AscendSiluAndMul.forward_oot(None, states)
    if kind is MoEActivation.SWIGLUSTEP:
        return AscendSwigluStepAndMul.swiglustep_forward(states, limit=limit)
    if kind is MoEActivation.SWIGLUOAI:
        return AscendSwigluOAIAndMul.swiglu_oai_forward(states, alpha=config.swiglu_alpha, limit=limit)
    return _apply_clipped_swiglu(
        states, swiglu_limit=limit, swiglu_alpha=config.swiglu_alpha, swiglu_beta=config.swiglu_beta
    )


def apply_mlp(sent, weights, config, dtype):
    """Multiply, activate and multiply; rows are quantised again where they were."""
    counts = sent.group_list if sent.group_list_type == 1 else torch.diff(sent.group_list, prepend=sent.group_list[:1])
    if sent.group_list_type == 0 and not told("first_expert_lost"):
        counts[0] = sent.group_list[0]
    up, down = weights
    rows = activated(_times(sent.hidden_states, sent.dynamic_scale, counts, *up, dtype), config)
    scale = None
    if sent.dynamic_scale is not None:
        rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
    return _times(rows, scale, counts, *down, dtype)


def _times(rows, row_scale, counts, values, scales, bias, dtype):
    """Multiply the rows of each expert by its weights, in float32; rows behind those of all experts become zeros."""
    answer = torch.zeros(len(rows), values.shape[2], dtype=torch.float32, device=rows.device)
    first = 0
    for expert, count in enumerate(counts.tolist()):
        part = slice(first, first + count)
        product = rows[part].float() @ values[expert].float()
        if row_scale is not None:
            product = product * scales[expert].float() * row_scale[part].unsqueeze(1)
        answer[part] = product if bias is None else product + bias[expert].float()
        first += count
    return answer.to(dtype)
