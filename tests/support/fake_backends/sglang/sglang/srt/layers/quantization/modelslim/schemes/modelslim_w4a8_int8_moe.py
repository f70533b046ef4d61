import torch
from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUW4A8Int8MoEMethod
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8_moe import shape_of
from sglang.srt.layers.quantization.registered import register


class ModelSlimW4A8Int8MoE:
    """With a scale per column, or a second one for each group of its elements."""

    def __init__(self, quant_config, weight_prefix, group_size=0):
        self.weight_prefix, self.group_size, self.kernel = weight_prefix, group_size, NPUW4A8Int8MoEMethod()

    def create_weights(self, layer, num_experts, hidden_size, intermediate_size_per_partition):
        columns, inner = shape_of(self.weight_prefix, hidden_size, intermediate_size_per_partition)
        prefix = self.weight_prefix
        register(layer, f"{prefix}_weight", num_experts, columns // 2, inner, dtype=torch.int8)
        register(layer, f"{prefix}_weight_scale", num_experts, columns, 1, dtype=torch.float32)
        if self.group_size:
            groups = inner // self.group_size
            register(layer, f"{prefix}_weight_scale_second", num_experts, columns, groups, dtype=torch.float32)
        parts = 16 if prefix == "w2" else 1
        register(layer, f"{prefix}_scale_bias", num_experts, columns, parts, dtype=torch.float32)

    def process_weights_after_loading(self, layer):
        self.kernel.process_weights_after_loading(layer, self.weight_prefix)
