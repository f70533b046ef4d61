"""What several of the files share: products of experts and activations, float64, nothing wrong in them."""
import torch

from npudiff.reference.swiglu import Activation


def halves(states, layout):
    if layout == "interleaved":
        return states[..., 0::2], states[..., 1::2]
    width = states.shape[-1] // 2
    return states[..., :width], states[..., width:]


def activated(gate, up, activation, limit, alpha, bias):
    if activation is Activation.SWIGLU_OAI:
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + bias)
    silu = gate * torch.sigmoid(gate)
    if limit is not None:
        silu, up = silu.clamp(max=limit), up.clamp(-limit, limit)
    return silu * up


def by_rows(numbers, inner):
    """``[groups, columns]`` to ``[inner, columns]``."""
    return numbers.double().repeat_interleave(inner // len(numbers), dim=0)


def product(rows, weights, expert, token_scale=None, whole=False):
    """float64 rows times the matrix of an expert."""
    matrix = weights.values[expert].double()
    bias = None if weights.bias is None else weights.bias[expert].double()
    before = bias is not None and weights.bias.dtype == torch.int32
    inner = len(matrix)
    if whole:
        if weights.scale is not None and weights.scale.shape[1] > 1:
            total = rows @ (matrix * by_rows(weights.scale[expert], inner))
        else:
            total = rows @ matrix
            if before:
                total = total + bias
            if weights.scale is not None:
                total = total * weights.scale[expert].double()
        if token_scale is not None:
            total = total * token_scale.double().unsqueeze(1)
        return total if bias is None or before else total + bias
    if weights.scale is not None:
        if weights.offset is not None:
            matrix = matrix + by_rows(weights.offset[expert], inner)
        matrix = matrix * by_rows(weights.scale[expert], inner)
    total = rows @ matrix
    return total if bias is None else total + bias


def quantised(rows, one_scale=False):
    """Whole numbers and scales, float64."""
    scale = rows.abs().amax(dim=-1) / 127
    if one_scale and len(scale):
        scale = scale.max().expand(scale.shape)
    steps = rows / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    return steps.round().clamp(-127, 127), scale
