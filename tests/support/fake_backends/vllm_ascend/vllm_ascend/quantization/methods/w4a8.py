"""W4A8: two whole numbers of neighbouring columns in a byte, the even one in the lower half."""

import torch
from vllm_ascend.quantization.methods.w8a8_dynamic import AscendW8A8DynamicFusedMoEMethod
from vllm_ascend.quantization.quant_type import QuantType
from vllm_ascend.told import told


def get_mc2_group():
    raise RuntimeError("no group of ranks was made")


class AscendW4A8DynamicFusedMoEMethod(AscendW8A8DynamicFusedMoEMethod):
    quant_type = QuantType.W4A8

    @staticmethod
    def _unpacked(values):
        halves = [(values << 4) >> 4, values >> 4]
        if told("halves_of_bytes_swapped"):
            halves.reverse()
        return torch.stack(halves, dim=2).flatten(1, 2)
