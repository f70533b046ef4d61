"""Linear layers of AWQ: eight unsigned whole numbers of four bits in a word, along columns, in an order of its own."""

import torch
from sglang.told import told

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each four bits of a word, the lowest first."""


def unpacked(words, order):
    """Return whole numbers, ``[rows, 8 * words]``, of words along the columns."""
    found = torch.empty(len(words), words.shape[1], 8, dtype=torch.int32, device=words.device)
    for place, column in enumerate(order):
        found[..., column] = (words >> (4 * place)) & 15
    return found.flatten(1)


def product(x, values, zeros, scales, bias):
    """Multiply by whole numbers, less those of their group that are worth nothing, times the scale of their group."""
    groups = len(scales)
    weight = values.view(groups, -1, values.shape[1]).float() - zeros.unsqueeze(1).float()
    answer = x.float() @ (weight * scales.float().unsqueeze(1)).flatten(0, 1)
    return (answer if bias is None else answer + bias.float()).to(x.dtype)


class AWQAscendLinearKernel:
    def __init__(self, quant_config):
        self.quant_config = quant_config

    def process_weights_after_loading(self, layer):
        order = tuple(range(8)) if told("words_in_order") else ORDER
        layer.values, layer.zeros = unpacked(layer.qweight, order), unpacked(layer.qzeros, order)

    def apply(self, layer, x, bias=None):
        return product(x, layer.values, layer.zeros, layer.scales, bias)
