"""What tests of ``npu_fusion_attention`` draw, and how they lay it out."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("BSH", "SBH", "BSND", "BNSD")


def normal(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensor:
    """Draw numbers of a dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Give [B, N, S, D] a layout."""
    if layout == "BNSD":
        return tensor.contiguous()
    tensor = tensor.transpose(1, 2)
    if layout in ("BSH", "SBH"):
        tensor = tensor.flatten(2)
    return (tensor.transpose(0, 1) if layout == "SBH" else tensor).contiguous()


def by_head(tensor: Tensor, layout: str, heads: int) -> Tensor:
    """Give a layout's tensor [B, N, S, D] again."""
    tensor = tensor.transpose(0, 1) if layout == "SBH" else tensor
    tensor = tensor.unflatten(2, (heads, -1)) if layout in ("BSH", "SBH") else tensor
    return tensor if layout == "BNSD" else tensor.transpose(1, 2)
