"""W8A8, whose rows are quantised by one step."""

import torch
from vllm_ascend.told import told


def _replace(layer, name, values):
    setattr(layer, name, torch.nn.Parameter(values.contiguous(), requires_grad=False))


class AscendW8A8LinearMethod:
    def process_weights_after_loading(self, layer):
        _replace(layer, "weight", layer.weight.t())

    def apply(self, layer, x, bias=None, tp_rank=0):
        """Rows may be whole numbers already."""
        if x.dtype != torch.int8:
            x = torch.round(x.float() / layer.input_scale.float() + layer.input_offset.float())
            x = x.clamp(-128, 127).to(torch.int8)
        added = None if told("no_whole_bias") else layer.quant_bias
        return torch.ops.npu.npu_quant_matmul(
            x, layer.weight, layer.deq_scale, bias=added, output_dtype=layer.params_dtype
        )
