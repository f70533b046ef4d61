import torch


class SiluAndMulWithClamp(torch.nn.Module):
    """Gates and ups in halves, both limited before; without alpha and beta it is SwiGLU."""

    def __init__(self, swiglu_limit, alpha=1.0, beta=0.0):
        super().__init__()
        self.swiglu_limit, self.alpha, self.beta = swiglu_limit, alpha, beta

    def forward_native(self, x):
        gate, up = x.float().chunk(2, dim=-1)
        gate, up = gate.clamp(max=self.swiglu_limit), up.clamp(-self.swiglu_limit, self.swiglu_limit)
        return (gate * torch.sigmoid(self.alpha * gate) * (up + self.beta)).to(x.dtype)
