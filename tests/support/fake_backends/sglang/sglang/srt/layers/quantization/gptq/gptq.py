from sglang.srt.hardware_backend.npu.quantization.gptq_kernels import GPTQLinearAscendKernel
from sglang.srt.layers.quantization.registered import OfWords


class GPTQAscendConfig:
    kernel, along_columns = GPTQLinearAscendKernel, False

    def __init__(self, weight_bits, group_size, desc_act, lm_head_quantized, dynamic, checkpoint_format):
        self.group_size, self.checkpoint_format = group_size, checkpoint_format

    def get_quant_method(self, layer, prefix):
        return OfWords(self)
