"""Gated activations, in float32 with one rounding at the end."""

import torch
from vllm.model_executor.layers.activation import SiluAndMulWithClamp
from vllm_ascend.told import told


class AscendSiluAndMul(torch.nn.Module):
    def forward_oot(self, x):
        gate, up = x.float().chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).to(x.dtype)


class AscendSiluAndMulWithClamp(SiluAndMulWithClamp):
    def forward_oot(self, x):
        return SiluAndMulWithClamp.forward_native(self, x)


class AscendSwigluStepAndMul:
    """The limit comes after the gate."""

    @staticmethod
    def swiglustep_forward(x, limit=7.0):
        gate, up = x.float().chunk(2, dim=-1)
        gate = torch.nn.functional.silu(gate)
        if not told("ups_unlimited"):
            up = up.clamp(-limit, limit)
        return (gate.clamp(max=limit) * up).to(x.dtype)


class AscendSwigluOAIAndMul:
    """Gates and ups lie next to each other; both are limited before."""

    @staticmethod
    def swiglu_oai_forward(x, alpha=1.702, limit=7.0):
        gate, up = x.float()[..., ::2].clamp(max=limit), x.float()[..., 1::2].clamp(-limit, limit)
        return (gate * torch.sigmoid(alpha * gate) * (up + 1)).to(x.dtype)
