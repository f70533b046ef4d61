"""Linear layers of GPTQ: eight unsigned whole numbers of four bits in a word, along the inner axis."""

from sglang.srt.hardware_backend.npu.quantization.awq_kernels import product, unpacked
from sglang.told import told


class GPTQLinearAscendKernel:
    """The first version of the format has zero points less 1."""

    def __init__(self, quant_config):
        self.quant_config = quant_config

    def process_weights_after_loading(self, layer):
        order = tuple(range(8))
        first = self.quant_config.checkpoint_format == "gptq" and not told("zero_points_as_they_are")
        layer.values = unpacked(layer.qweight.t(), order).t().contiguous()
        layer.zeros = unpacked(layer.qzeros, order) + int(first)

    def apply(self, layer, x, bias=None):
        return product(x, layer.values, layer.zeros, layer.scales, bias)
