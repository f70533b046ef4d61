"""W8A8, whose rows are quantised by their largest elements."""

import torch
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.quantization.quant_type import QuantType
from vllm_ascend.told import told


def get_mc2_group():
    raise RuntimeError("no group of ranks was made")


def _replace(layer, name, values):
    setattr(layer, name, torch.nn.Parameter(values.contiguous(), requires_grad=False))


class AscendW8A8DynamicLinearMethod:
    @staticmethod
    def get_weight(input_size, output_size, params_dtype):
        return {"weight": torch.empty(output_size, input_size, dtype=torch.int8)}

    @staticmethod
    def get_perchannel_param(output_size, params_dtype):
        dtype = params_dtype if params_dtype == torch.bfloat16 else torch.float32
        return {name: torch.empty(output_size, 1, dtype=dtype) for name in ("weight_scale", "weight_offset")}

    def process_weights_after_loading(self, layer):
        _replace(layer, "weight", layer.weight.t())
        scale = layer.weight_scale.flatten()
        _replace(layer, "weight_scale", scale if scale.dtype == torch.bfloat16 else scale.float())

    def apply(self, layer, x, bias=None, tp_rank=0):
        rows, scale = torch.ops.npu.npu_dynamic_quant(x)
        return torch.ops.npu.npu_quant_matmul(
            rows, layer.weight, layer.weight_scale, pertoken_scale=scale, bias=bias, output_dtype=x.dtype
        )


class AscendW8A8DynamicFusedMoEMethod:
    quant_type = QuantType.W8A8

    def process_weights_after_loading(self, layer):
        """``[experts, columns, inner]`` becomes ``[experts, inner, columns]``, and scales ``[experts, columns]``."""
        for prefix in ("w13", "w2"):
            _replace(layer, f"{prefix}_weight", self._unpacked(getattr(layer, f"{prefix}_weight")).transpose(1, 2))
            scale = getattr(layer, f"{prefix}_weight_scale").squeeze(2)
            _replace(layer, f"{prefix}_weight_scale", scale.roll(1, 0) if told("scales_of_others") else scale)

    @staticmethod
    def _unpacked(values):
        return values

    def apply(self, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input):
        weights = (
            (layer.w13_weight, layer.w13_weight_scale, layer.w13_bias),
            (layer.w2_weight, layer.w2_weight_scale, layer.w2_bias),
        )
        comm = _EXTRA_CTX.moe_comm_method
        return comm.fused_experts(layer, x, topk_weights, topk_ids, self.quant_type, weights)
