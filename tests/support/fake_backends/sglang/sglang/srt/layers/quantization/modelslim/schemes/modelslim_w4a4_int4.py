import os

import torch
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8 import scale_dtype
from sglang.srt.layers.quantization.registered import register


class ModelSlimW4A4Int4:
    """Whole numbers of four bits; rows become such by their largest elements."""

    def __init__(self, quant_config, prefix):
        self.packed = False

    def create_weights(
        self, layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **more
    ):  # fmt: skip
        self.packed = os.environ.get("SGLANG_NPU_W4A4_NEW_PACKING", "0") == "1"
        columns = sum(output_partition_sizes)
        rows = columns // 2 if self.packed else columns
        register(layer, "weight", rows, input_size_per_partition, dtype=torch.int8)
        for name in ("weight_scale", "weight_offset"):
            register(layer, name, columns, 1, dtype=scale_dtype(params_dtype))

    def process_weights_after_loading(self, layer):
        values = layer.weight.data
        if self.packed:
            values = torch.stack([(values << 4) >> 4, values >> 4], dim=1).flatten(0, 1)
        layer.weight = torch.nn.Parameter(values.t().contiguous(), requires_grad=False)

    def apply_weights(self, layer, x, bias=None):
        scale = x.float().abs().amax(dim=-1, keepdim=True) / 7
        rows = torch.round(x.float() / torch.where(scale == 0, 1.0, scale))
        answer = rows @ layer.weight.float() * scale * layer.weight_scale.float().flatten()
        return (answer if bias is None else answer + bias.float()).to(x.dtype)
