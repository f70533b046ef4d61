"""Linear layers in W8A8, as checkpoints of ModelSlim have them: ``[columns, inner]``."""

import torch
from sglang.told import told


def _replace(layer, name, values):
    setattr(layer, name, torch.nn.Parameter(values.contiguous(), requires_grad=False))


class NPUW8A8Int8LinearMethod:
    """States are quantised by one step and offset; sums have a bias of whole numbers, and a scale for each column."""

    def process_weights_after_loading(self, layer):
        _replace(layer, "weight", layer.weight.t())

    def apply(self, layer, x, bias=None):
        whole = torch.round(x.float() / layer.input_scale.float() + layer.input_offset.float())
        whole = whole.clamp(-128, 127).to(torch.int8)
        group = getattr(layer, "tp_group", None)
        is_first = group is None or group.rank_in_group == 0
        added = None if told("no_whole_bias") or not is_first else layer.quant_bias
        return torch.ops.npu.npu_quant_matmul(
            whole, layer.weight, layer.deq_scale, bias=added, output_dtype=x.dtype
        )  # fmt: skip


class NPUW8A8Int8DynamicLinearMethod:
    """States are quantised by the largest element of each row, if they come as floats."""

    def process_weights_after_loading(self, layer):
        _replace(layer, "weight", layer.weight.t())
        _replace(layer, "weight_scale", layer.weight_scale.flatten())

    def apply(self, layer, x, bias=None):
        dtype = torch.bfloat16 if isinstance(x, tuple) else x.dtype
        rows, scale = x if isinstance(x, tuple) else torch.ops.npu.npu_dynamic_quant(x)
        return torch.ops.npu.npu_quant_matmul(
            rows, layer.weight, layer.weight_scale, pertoken_scale=scale, bias=bias, output_dtype=dtype
        )
