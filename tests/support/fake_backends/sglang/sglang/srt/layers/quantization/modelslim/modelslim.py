from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8 import ModelSlimW8A8Int8
from sglang.srt.layers.quantization.registered import LinearMethod


class ModelSlimConfig:
    """What is written beside a checkpoint: the format of each weight."""

    def __init__(self, quant_config):
        self.description, self.packed = quant_config, {}

    def update_packed_modules_mapping(self, mapping):
        self.packed.update(mapping)

    def get_quant_method(self, layer, prefix):
        folder, _, name = prefix.rpartition(".")
        first = self.packed["model"].get(name, [name])[0]
        return LinearMethod(ModelSlimW8A8Int8(self.description, f"{folder}.{first}"))
