"""What is written beside a checkpoint of msModelSlim, and linear layers of such."""

import torch
from vllm_ascend.quantization.methods.w8a8_dynamic import AscendW8A8DynamicLinearMethod
from vllm_ascend.quantization.methods.w8a8_static import AscendW8A8LinearMethod

METHODS = {"W8A8": AscendW8A8LinearMethod, "W8A8_DYNAMIC": AscendW8A8DynamicLinearMethod}


class AscendLinearMethod:
    def __init__(self, scheme):
        self.quant_method = scheme
        self.process_weights_after_loading = scheme.process_weights_after_loading

    def create_weights(self, layer, inner, columns, dtype, loader):
        layer.params_dtype, scheme = dtype, self.quant_method
        of_one = scheme.get_pertensor_param(dtype) if hasattr(scheme, "get_pertensor_param") else {}
        found = {**scheme.get_weight(inner, columns, dtype), **scheme.get_perchannel_param(columns, dtype)}
        for name, values in {**found, **of_one}.items():
            made = torch.nn.Parameter(values, requires_grad=False)
            made.output_dim, made.input_dim = None if name in of_one else 0, 1 if name == "weight" else None
            made.weight_loader = loader
            layer.register_parameter(name, made)

    def apply(self, layer, x, bias=None):
        return self.quant_method.apply(layer, x, bias, getattr(layer, "place_in_sum", 0))


class AscendModelSlimConfig:
    def __init__(self, description):
        self.description, self.packed_modules_mapping = description, {}

    def get_quant_method(self, layer, prefix):
        folder, _, name = prefix.rpartition(".")
        first = self.packed_modules_mapping.get(name, [name])[0]
        return AscendLinearMethod(METHODS[self.description[f"{folder}.{first}.weight"]]())
