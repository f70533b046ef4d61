"""W4A4, whose rows are quantised by their largest elements."""

import torch
from vllm_ascend.quantization.methods.w8a8_dynamic import AscendW8A8DynamicLinearMethod


class AscendW4A4LaosDynamicLinearMethod(AscendW8A8DynamicLinearMethod):
    @staticmethod
    def get_perchannel_param(output_size, params_dtype):
        return {name: torch.empty(output_size, 1) for name in ("weight_scale", "weight_offset")}

    def apply(self, layer, x, bias=None, tp_rank=0):
        scale = x.float().abs().amax(dim=-1, keepdim=True) / 7
        rows = torch.round(x.float() / torch.where(scale == 0, 1.0, scale))
        answer = rows @ layer.weight.float() * scale * layer.weight_scale.float()
        return (answer if bias is None else answer + bias.float()).to(x.dtype)
