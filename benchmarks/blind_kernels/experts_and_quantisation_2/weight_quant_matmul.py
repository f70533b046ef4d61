"""Wrong kernels of weight_quant_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _by_row(inputs, numbers, whole_groups=False):
    """Scales or offsets of each row of the weight, float64."""
    wide = numbers.double()
    if not inputs.group_size:
        return wide.unsqueeze(0)
    inner = inputs.weight.shape[0]
    group = torch.arange(inner, device=wide.device) // inputs.group_size
    if whole_groups:
        group = group.clamp(max=inner // inputs.group_size - 1)
    return wide[group]


def _matrix(inputs, offset, whole_groups=False):
    """The weight as floats, float64."""
    total = inputs.weight.double()
    if offset is not None:
        total = total + _by_row(inputs, offset, whole_groups)
    return total * _by_row(inputs, inputs.scale, whole_groups)


def _finished(inputs, sums):
    if inputs.bias is not None:
        sums = sums + inputs.bias.double()
    return {"output": sums.to(inputs.x.dtype)}


@npudiff.implementation("weight_quant_matmul", name="d_weight_quant_matmul_01_accumulator_of_16_bits", on_device=True)
def d01(inputs, target):
    """Sums over 16 rows of the weight are added to an accumulator of the dtype of the states."""
    x, matrix = inputs.x.double(), _matrix(inputs, inputs.offset)
    if not WRONG:
        return _finished(inputs, x @ matrix)
    total = torch.zeros(len(x), matrix.shape[1], dtype=inputs.x.dtype, device=x.device)
    for start in range(0, len(matrix), 16):
        part = slice(start, start + 16)
        total = (total.double() + x[:, part] @ matrix[part]).to(inputs.x.dtype)
    return _finished(inputs, total.double())


@npudiff.implementation("weight_quant_matmul", name="d_weight_quant_matmul_02_whole_groups", on_device=True)
def d02(inputs, target):
    """The number of groups is rounded down: rows behind the last whole group have its scale and offset."""
    return _finished(inputs, inputs.x.double() @ _matrix(inputs, inputs.offset, whole_groups=WRONG))


@npudiff.implementation("weight_quant_matmul", name="d_weight_quant_matmul_03_first_offset_says_symmetric",
                        on_device=True)
def d03(inputs, target):
    """A weight whose first offset is 0 is taken for a symmetric one, and its offsets are not loaded."""
    offset = inputs.offset
    if WRONG and offset is not None and float(offset.flatten()[0]) == 0:
        offset = None
    return _finished(inputs, inputs.x.double() @ _matrix(inputs, offset))


@npudiff.implementation("weight_quant_matmul", name="d_weight_quant_matmul_04_groups_of_a_transposed_weight",
                        on_device=True)
def d04(inputs, target):
    """Where the weight is a transposed view, scales and offsets of groups are read as if they were transposed too."""
    turned = WRONG and inputs.group_size and not inputs.weight.is_contiguous()
    scale, offset = inputs.scale, inputs.offset
    if turned:
        groups, columns = scale.shape
        scale = scale.contiguous().view(columns, groups).t()
        offset = None if offset is None else offset.contiguous().view(columns, groups).t()
    total = inputs.weight.double()
    if offset is not None:
        total = total + _by_row(inputs, offset)
    return _finished(inputs, inputs.x.double() @ (total * _by_row(inputs, scale)))
