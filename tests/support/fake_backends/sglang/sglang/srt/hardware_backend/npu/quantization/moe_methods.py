"""What becomes of the weights of experts after they were loaded; a method tells the dispatcher what rows it wants."""

import torch
from sglang.told import told


def _replace(layer, name, values):
    setattr(layer, name, torch.nn.Parameter(values.contiguous(), requires_grad=False))


class NPUUnquantMoEMethod:
    def process_weights_after_loading(self, layer, weight_prefix):
        """``[experts, columns, inner]`` becomes ``[experts, inner, columns]``."""
        _replace(layer, f"{weight_prefix}_weight", getattr(layer, f"{weight_prefix}_weight").transpose(1, 2))


class NPUW8A8Int8MoEMethod:
    def process_weights_after_loading(self, layer, weight_prefix):
        scale = getattr(layer, f"{weight_prefix}_weight_scale").squeeze(2)
        NPUUnquantMoEMethod().process_weights_after_loading(layer, weight_prefix)
        _replace(layer, f"{weight_prefix}_weight_scale", scale.flip(0) if told("scales_of_others") else scale)
        layer.dispatcher.set_quant_config({"quantised": True})


class NPUW4A8Int8MoEMethod:
    def process_weights_after_loading(self, layer, weight_prefix):
        """Two whole numbers of a byte, of which the lower one is the column before, become one each."""
        packed = getattr(layer, f"{weight_prefix}_weight")
        low, high = (packed << 4) >> 4, packed >> 4
        if told("halves_of_bytes_swapped"):
            low, high = high, low
        values = torch.stack([low, high], dim=2).flatten(1, 2)
        scale = getattr(layer, f"{weight_prefix}_weight_scale")
        second = getattr(layer, f"{weight_prefix}_weight_scale_second", None)
        _replace(layer, f"{weight_prefix}_weight", values.transpose(1, 2))
        whole = scale if second is None else scale * second
        _replace(layer, f"{weight_prefix}_weight_scale", whole.transpose(1, 2))
        layer.dispatcher.set_quant_config({"quantised": True})
