import torch
from sglang.srt.hardware_backend.npu.quantization.linear_method_npu import (
    NPUW8A8Int8DynamicLinearMethod,
    NPUW8A8Int8LinearMethod,
)
from sglang.srt.layers.quantization.registered import register


def scale_dtype(params_dtype):
    """Scales of float16 models keep more digits than these have."""
    return params_dtype if params_dtype == torch.bfloat16 else torch.float32


class ModelSlimW8A8Int8:
    """Of checkpoints whose states are quantised row by row, or by one step."""

    def __init__(self, quant_config, prefix):
        self.is_static = quant_config[f"{prefix}.weight"] == "W8A8"
        self.kernel = NPUW8A8Int8LinearMethod() if self.is_static else NPUW8A8Int8DynamicLinearMethod()

    def create_weights(
        self, layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **more
    ):  # fmt: skip
        columns, loader = sum(output_partition_sizes), more.get("weight_loader")
        axes = {"loader": loader, "output_dim": 0}
        register(layer, "weight", columns, input_size_per_partition, dtype=torch.int8, input_dim=1, **axes)
        for name in ("weight_scale", "weight_offset"):
            register(layer, name, columns, 1, dtype=scale_dtype(params_dtype), **axes)
        if self.is_static:
            for name in ("input_scale", "input_offset"):
                register(layer, name, 1, dtype=params_dtype, loader=loader)
            register(layer, "quant_bias", columns, dtype=torch.int32, **axes)
            wide = torch.int64 if params_dtype == torch.float16 else torch.float32
            register(layer, "deq_scale", columns, dtype=wide, **axes)

    def process_weights_after_loading(self, layer):
        self.kernel.process_weights_after_loading(layer)

    def apply_weights(self, layer, x, bias=None):
        return self.kernel.apply(layer, x, bias)
