from dataclasses import dataclass

from vllm_ascend.quantization.quant_type import QuantType


@dataclass(frozen=True)
class MoEQuantParams:
    quant_type: QuantType = QuantType.NONE
