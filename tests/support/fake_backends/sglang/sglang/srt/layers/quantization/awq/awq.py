from sglang.srt.hardware_backend.npu.quantization.awq_kernels import AWQAscendLinearKernel
from sglang.srt.layers.quantization.registered import OfWords


class AWQConfig:
    kernel, along_columns = AWQAscendLinearKernel, True

    def __init__(self, weight_bits, group_size, zero_point):
        self.group_size = group_size

    def get_quant_method(self, layer, prefix):
        return OfWords(self)
