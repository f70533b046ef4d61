"""What a layer over a cache of integers is loaded with."""

import torch


class AscendC8KVCacheAttentionMethod:
    def __init__(self, quant_description, prefix):
        self.quant_description, self.prefix = quant_description, prefix

    def create_weights(self, layer):
        from vllm_ascend.attention.attention_v1 import AscendC8AttentionBackendImpl

        layer.impl.__class__ = AscendC8AttentionBackendImpl
        for side in "kv":
            for name, make in (("scale", torch.ones), ("offset", torch.zeros)):
                parameter = torch.nn.Parameter(make(1), requires_grad=False)
                parameter.weight_loader = _load
                setattr(layer, f"{side}_cache_{name}", parameter)

    def process_weights_after_loading(self, layer):
        names = [f"{side}_cache_{name}" for side in "kv" for name in ("scale", "offset")]
        layer.of_layer = {name: getattr(layer, name).data.flatten() for name in names}


def _load(parameter, loaded):
    parameter.data = loaded.clone()
