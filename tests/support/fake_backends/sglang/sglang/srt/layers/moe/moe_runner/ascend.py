"""The products of experts on rows that are sorted by expert."""

from dataclasses import dataclass

import torch
from sglang.srt.hardware_backend.npu.moe.activation import NPUSwigluStepAndMul
from sglang.told import told


@dataclass
class AscendRunnerInput:
    hidden_states: torch.Tensor
    hidden_states_scale: torch.Tensor | None
    expert_tokens: torch.Tensor
    group_list_type: int


@dataclass
class AscendRunnerOutput:
    hidden_states: torch.Tensor


@dataclass
class AscendQuantInfo:
    w13_weight: torch.Tensor
    w2_weight: torch.Tensor
    w13_weight_scale: torch.Tensor | None = None
    w2_weight_scale: torch.Tensor | None = None
    w13_weight_bias: torch.Tensor | None = None
    w2_weight_bias: torch.Tensor | None = None
    w13_scale_bias: torch.Tensor | None = None
    w2_scale_bias: torch.Tensor | None = None


class AscendRunnerCore:
    def __init__(self, config):
        self.config = config

    def run(self, runner_input, quant_info, running_state):
        counts = runner_input.expert_tokens.tolist()
        rows, scale, info = runner_input.hidden_states, runner_input.hidden_states_scale, quant_info
        dtype, bias = self.config.layer.dispatcher.dtype, info.w13_weight_bias
        states = _times(rows, scale, counts, info.w13_weight, info.w13_weight_scale, bias, dtype)
        if told("gates_right"):
            states = torch.cat(states.chunk(2, dim=-1)[::-1], dim=-1)
        rows = self._activated(states)
        if scale is not None:
            rows, scale = torch.ops.npu.npu_dynamic_quant(rows)
        bias = info.w2_weight_bias
        return AscendRunnerOutput(_times(rows, scale, counts, info.w2_weight, info.w2_weight_scale, bias, dtype))

    def _activated(self, states):
        """GPT-OSS has gates and ups next to each other, and limits both before."""
        limit = self.config.gemm1_clamp_limit
        if self.config.activation != "npu_swiglu_oai":
            return NPUSwigluStepAndMul(limit)._apply_activation(states)[0]
        gate, up = states.float()[:, ::2].clamp(max=limit), states.float()[:, 1::2].clamp(-limit, limit)
        return (gate * torch.sigmoid(gate * self.config.gemm1_alpha) * (up + 1)).to(states.dtype)


def _times(rows, row_scale, counts, weights, scales, bias, dtype):
    """Multiply the rows of each expert by its weights, in float32; whole numbers are scaled by group of the inner axis.

    Rows behind those of all experts become zeros.
    """
    answer = torch.zeros(len(rows), weights.shape[2], dtype=torch.float32, device=rows.device)
    first = 0
    for expert, count in enumerate(counts):
        part = slice(first, first + count)
        if row_scale is None:
            answer[part] = rows[part].float() @ weights[expert].float()
        else:
            scale = scales[expert].view(-1, weights.shape[2])
            whole = weights[expert].float().view(len(scale), -1, weights.shape[2]) * scale.unsqueeze(1)
            answer[part] = (rows[part].float() @ whole.flatten(0, 1)) * row_scale[part].unsqueeze(1)
        if bias is not None:
            answer[part] += bias[expert].float()
        first += count
    return answer.to(dtype)
