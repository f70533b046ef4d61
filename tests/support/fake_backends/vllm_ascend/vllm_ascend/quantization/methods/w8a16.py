"""Floats by whole numbers."""

import torch
from vllm_ascend.told import told


class AscendW8A16LinearMethod:
    def process_weights_after_loading(self, layer):
        """Whole numbers, plus their offsets, times their scales: ``[columns, inner]`` becomes ``[inner, columns]``."""
        for name in ("weight", "weight_scale", "weight_offset"):
            values = getattr(layer, name).t().contiguous()
            setattr(layer, name, torch.nn.Parameter(values, requires_grad=False))

    def apply(self, layer, x, bias=None, tp_rank=0):
        offset = layer.weight_offset.float() * (-1 if told("offset_taken") else 1)
        answer = x.float() @ ((layer.weight.float() + offset) * layer.weight_scale.float())
        return (answer if bias is None else answer + bias.float()).to(x.dtype)
