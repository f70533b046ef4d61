"""What stands before latent attention on vllm-ascend: ``AscendMLAImpl`` with the layers of a case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from vllm_ascend.attention.mla_v1 import AscendMLAImpl

from npudiff.device.backends.vllm_ascend.world import parameter


def norm(weight: torch.Tensor, epsilon: float) -> SimpleNamespace:
    """Return a norm as attention reads it."""
    return SimpleNamespace(weight=parameter(weight), bias=None, variance_epsilon=epsilon)


def projection(weight: torch.Tensor, steps: torch.Tensor, input_step: float, offset: int) -> SimpleNamespace:
    """Return a linear layer of W8A8 as its method leaves it, in ND.

    Parameters
    ----------
    weight : torch.Tensor
        int8 ``[inner, columns]``.
    steps : torch.Tensor
        float32 ``[columns]``, what a whole number of a column is worth.
    input_step, offset : float, int
        What a whole number of the states is worth, and which of them is 0.
    """
    bias = -offset * weight.sum(dim=0, dtype=torch.int32)
    device = weight.device
    return SimpleNamespace(
        weight=parameter(weight),
        deq_scale=parameter(steps * input_step),
        quant_bias=parameter(bias),
        input_scale=parameter(torch.tensor([input_step], dtype=torch.bfloat16, device=device)),
        input_offset=parameter(torch.tensor([offset], dtype=torch.int8, device=device)),
    )


def latent_attention(**attributes: object) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return an implementation of latent attention of one layer, which has these attributes."""
    made: Any = AscendMLAImpl.__new__(AscendMLAImpl)
    usual = {"num_kv_heads": 1, "enable_kv_nz": False, "fa_quant_layer": False}
    for name, value in {**usual, **attributes}.items():
        setattr(made, name, value)
    made.vllm_config = SimpleNamespace(kv_transfer_config=None)
    return made
