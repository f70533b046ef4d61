"""Wrong kernels of weight_quant_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def computed(inputs, *, group=None, late_offset=False, limits=None):
    inner, size = len(inputs.weight), inputs.group_size
    weight = inputs.weight.double()

    def by_row(numbers):
        wide = numbers.double()
        if not size:
            return wide.unsqueeze(0)
        row = torch.arange(inner)
        return wide[row // size if group is None else group(row).clamp(max=len(wide) - 1)]

    scale = by_row(inputs.scale)
    if inputs.offset is not None:
        offset = by_row(inputs.offset)
        if late_offset:
            weight = weight * scale + offset
        else:
            weight = weight + offset
            weight = (weight if limits is None else weight.clamp(*limits)) * scale
    else:
        weight = weight * scale
    total = inputs.x.double() @ weight
    if inputs.bias is not None:
        total = total + inputs.bias.double()
    return {"output": total.to(inputs.x.dtype)}


@npudiff.implementation("weight_quant_matmul", name="e_weight_quant_matmul_01_offset_after_scale", on_device=True)
def e01(inputs, target):
    """Integers are scaled in one fused multiply and add: the offset is added to what is scaled already."""
    return computed(inputs, late_offset=WRONG)


@npudiff.implementation("weight_quant_matmul", name="e_weight_quant_matmul_02_even_groups", on_device=True)
def e02(inputs, target):
    """Rows are divided evenly among the groups, which is not so where the last group has fewer."""
    groups = len(inputs.scale)
    even = -(-len(inputs.weight) // groups) if groups else 1
    return computed(inputs, group=(lambda row: row // even) if WRONG and inputs.group_size else None)


@npudiff.implementation("weight_quant_matmul", name="e_weight_quant_matmul_03_group_of_tile", on_device=True)
def e03(inputs, target):
    """Tiles of 64 rows have the scale of their first row, made for groups of 64, 128 and so on."""
    size = inputs.group_size
    return computed(inputs, group=(lambda row: row // 64 * 64 // size) if WRONG and size else None)


@npudiff.implementation("weight_quant_matmul", name="e_weight_quant_matmul_04_sum_saturates", on_device=True)
def e04(inputs, target):
    """Integers of eight bits and their offset are added as int8 would: limited to -128..127."""
    return computed(inputs, limits=(-128, 127) if WRONG and inputs.bits == 8 else None)
