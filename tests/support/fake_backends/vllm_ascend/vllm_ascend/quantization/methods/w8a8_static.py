"""W8A8, whose rows are quantised by one step."""

import torch
from vllm_ascend.quantization.tp_weight_switch import TPWeightSwitchMixin
from vllm_ascend.told import told


def _replace(layer, name, values):
    setattr(layer, name, torch.nn.Parameter(values.contiguous(), requires_grad=False))


class AscendW8A8LinearMethod(TPWeightSwitchMixin):
    @staticmethod
    def get_weight(input_size, output_size, params_dtype):
        return {"weight": torch.empty(output_size, input_size, dtype=torch.int8)}

    @staticmethod
    def get_pertensor_param(params_dtype):
        return {"input_scale": torch.empty(1, dtype=params_dtype), "input_offset": torch.empty(1, dtype=torch.int8)}

    @staticmethod
    def get_perchannel_param(output_size, params_dtype):
        wide = torch.int64 if params_dtype == torch.float16 else torch.float32
        return {
            "quant_bias": torch.empty(output_size, dtype=torch.int32),
            "deq_scale": torch.empty(output_size, dtype=wide),
            **{name: torch.empty(output_size, 1) for name in ("weight_scale", "weight_offset")},
        }

    def process_weights_after_loading(self, layer):
        _replace(layer, "weight", layer.weight.t())

    def apply(self, layer, x, bias=None, tp_rank=0):
        """Rows may be whole numbers already."""
        if x.dtype != torch.int8:
            x = torch.round(x.float() / layer.input_scale.float() + layer.input_offset.float())
            x = x.clamp(-128, 127).to(torch.int8)
        added = None if told("no_whole_bias") or tp_rank else layer.quant_bias
        return torch.ops.npu.npu_quant_matmul(
            x, layer.weight, layer.deq_scale, bias=added, output_dtype=layer.params_dtype
        )
