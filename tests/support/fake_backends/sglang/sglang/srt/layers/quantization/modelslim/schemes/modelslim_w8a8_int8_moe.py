import torch
from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUW8A8Int8MoEMethod
from sglang.srt.layers.quantization.registered import register


def shape_of(prefix, hidden_size, intermediate_size):
    """Columns and inner size of one of the two products."""
    return (2 * intermediate_size, hidden_size) if prefix == "w13" else (hidden_size, intermediate_size)


class ModelSlimW8A8Int8MoE:
    def __init__(self, quant_config, weight_prefix):
        self.weight_prefix, self.kernel = weight_prefix, NPUW8A8Int8MoEMethod()

    def create_weights(self, layer, num_experts, hidden_size, intermediate_size_per_partition):
        columns, inner = shape_of(self.weight_prefix, hidden_size, intermediate_size_per_partition)
        register(layer, f"{self.weight_prefix}_weight", num_experts, columns, inner, dtype=torch.int8)
        for name in ("scale", "offset"):
            register(layer, f"{self.weight_prefix}_weight_{name}", num_experts, columns, 1, dtype=torch.float32)

    def process_weights_after_loading(self, layer):
        self.kernel.process_weights_after_loading(layer, self.weight_prefix)
