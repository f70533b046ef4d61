import torch
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8 import ModelSlimW8A8Int8
from sglang.srt.layers.quantization.registered import LinearMethod


class _W8A8(ModelSlimW8A8Int8):
    """Scales are float32 whatever the model has."""

    def create_weights(self, *arguments, params_dtype, **more):
        super().create_weights(*arguments, params_dtype=torch.float32, **more)


class CompressedTensorsConfig:
    @classmethod
    def from_config(cls, config):
        assert config["config_groups"]["group_0"]["input_activations"]["dynamic"]
        return cls()

    def get_quant_method(self, layer, prefix):
        return LinearMethod(_W8A8({f"{prefix}.weight": "W8A8_DYNAMIC"}, prefix))
