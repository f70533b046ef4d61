"""Norms, in float32 with one rounding at the end."""

import torch


class RMSNorm(torch.nn.Module):
    offset = 0.0

    def forward_native(self, x, residual=None):
        total = x if residual is None else x + residual
        wide = total.float()
        inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.variance_epsilon)
        answer = (wide * inverse * (self.offset + self.weight.float())).to(x.dtype)
        return answer if residual is None else (answer, total)


class GemmaRMSNorm(RMSNorm):
    offset = 1.0
