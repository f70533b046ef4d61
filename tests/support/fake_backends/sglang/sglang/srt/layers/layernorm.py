"""Norms, in float32 with one rounding at the end."""

import torch
from sglang.told import told


class RMSNorm(torch.nn.Module):
    offset = 0.0

    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size), requires_grad=False)
        self.variance_epsilon = eps

    def forward_native(self, x, residual=None):
        total = x if residual is None else x + residual
        wide = total.float()
        variance = wide.square().mean(dim=-1, keepdim=True) + self.variance_epsilon * (not told("no_epsilon"))
        answer = (wide * torch.rsqrt(variance) * (self.offset + self.weight.float())).to(x.dtype)
        if told("residual_unsummed"):
            total = residual
        return answer if residual is None else (answer, total)

    def forward_npu(self, x, residual=None):
        return self.forward_native(x, residual)


class GemmaRMSNorm(RMSNorm):
    offset = 1.0
