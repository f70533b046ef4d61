import torch
from sglang.srt.hardware_backend.npu.quantization.linear_method_npu import NPUW8A8Int8DynamicLinearMethod


def register(layer, name, *shape, dtype):
    """Make an empty parameter with a loader."""
    made = torch.nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
    made.weight_loader = lambda parameter, values: parameter.data.copy_(values)
    layer.register_parameter(name, made)


def scale_dtype(params_dtype):
    """Scales of float16 models keep more digits than these have."""
    return params_dtype if params_dtype == torch.bfloat16 else torch.float32


class ModelSlimW8A8Int8:
    """Of checkpoints whose states are quantised row by row."""

    def __init__(self, quant_config, prefix):
        self.kernel = NPUW8A8Int8DynamicLinearMethod()

    def create_weights(
        self, layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **more
    ):  # fmt: skip
        columns = sum(output_partition_sizes)
        register(layer, "weight", columns, input_size_per_partition, dtype=torch.int8)
        for name in ("weight_scale", "weight_offset"):
            register(layer, name, columns, 1, dtype=scale_dtype(params_dtype))

    def process_weights_after_loading(self, layer):
        self.kernel.process_weights_after_loading(layer)

    def apply_weights(self, layer, x, bias=None):
        return self.kernel.apply(layer, x, bias)
