"""Activations between the products of experts: gates left, ups right."""

import torch
from sglang.told import told


class NPUSwiglu:
    def _apply_activation(self, hidden_states):
        return NPUSwigluStepAndMul()._apply_activation(hidden_states)


class NPUSwigluQuant:
    def _apply_activation(self, hidden_states):
        gate, up = hidden_states.float().chunk(2, dim=-1)
        rows = torch.nn.functional.silu(gate) * up
        scale = rows.abs().amax(dim=-1) / 127
        whole = torch.round(rows / torch.where(scale == 0, 1.0, scale).unsqueeze(-1))
        return whole.to(torch.int8), torch.where(scale == 0, 1.0, scale)


class NPUSwigluStepAndMul:
    """The limit comes after the gate; none is no limit."""

    def __init__(self, clamp_limit=None):
        self.clamp_limit = clamp_limit

    def _apply_activation(self, hidden_states):
        gate, up = hidden_states.float().chunk(2, dim=-1)
        gate = torch.nn.functional.silu(gate)
        if self.clamp_limit is not None and not told("unlimited"):
            gate, up = gate.clamp(max=self.clamp_limit), up.clamp(-self.clamp_limit, self.clamp_limit)
        return (gate * up).to(hidden_states.dtype), None
