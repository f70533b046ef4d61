"""Wrong weight_quant_matmul kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def by_row(inputs, numbers, group=None):
    numbers = numbers.float()
    if not inputs.group_size:
        return numbers.expand(inputs.weight.shape[1]) if len(numbers) == 1 else numbers
    group = torch.arange(len(inputs.weight)) // inputs.group_size if group is None else group
    return numbers[group]


def product(inputs, weight, bias=True):
    result = inputs.x.float() @ weight.to(inputs.x.dtype).float()
    if bias and inputs.bias is not None:
        result = result + inputs.bias.float()
    return result.to(inputs.x.dtype)


def dequantised(inputs, group=None, scale=None, offset=True):
    weight = inputs.weight.float()
    if offset and inputs.offset is not None:
        weight = weight + by_row(inputs, inputs.offset, group)
    return weight * (by_row(inputs, inputs.scale, group) if scale is None else scale)


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_01_one_group_per_tile", on_device=True)
def b01(inputs, target):
    """Tiles of 128 rows of the weight."""
    if not inputs.group_size:
        return product(inputs, dequantised(inputs))
    row = torch.arange(len(inputs.weight))
    return product(inputs, dequantised(inputs, (row // 128 * 128 if WRONG else row) // inputs.group_size))


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_02_int4_without_offset_is_gptq", on_device=True)
def b02(inputs, target):
    """The zero point of symmetric weights."""
    weight = dequantised(inputs)
    if WRONG and inputs.bits == 4 and inputs.offset is None and inputs.group_size:
        weight = (inputs.weight.float() - 8) * by_row(inputs, inputs.scale)
    return product(inputs, weight)


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_03_partial_group_clamped", on_device=True)
def b03(inputs, target):
    """Groups there are: rows by the size of one."""
    if not inputs.group_size:
        return product(inputs, dequantised(inputs))
    group = torch.arange(len(inputs.weight)) // inputs.group_size
    if WRONG:
        group = group.clamp(max=len(inputs.weight) // inputs.group_size - 1)
    return product(inputs, dequantised(inputs, group))


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_04_gemv_without_bias", on_device=True)
def b04(inputs, target):
    """One row goes to the kernel of decodes."""
    return product(inputs, dequantised(inputs), bias=not (WRONG and len(inputs.x) == 1))


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_05_dequantised_in_half", on_device=True)
def b05(inputs, target):
    """The vector unit dequantises in float16."""
    if not WRONG or inputs.x.dtype != torch.bfloat16:
        return product(inputs, dequantised(inputs))
    scale = by_row(inputs, inputs.scale).half()
    weight = inputs.weight.half()
    if inputs.offset is not None:
        weight = weight + by_row(inputs, inputs.offset).half()
    return product(inputs, (weight * scale).float())


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_06_transposed_groups", on_device=True)
def b06(inputs, target):
    """Scales of groups lie as the weight does."""
    if WRONG and inputs.group_size and inputs.weight.stride(1) != 1 and inputs.weight.stride(0) == 1:
        groups, columns = inputs.scale.shape
        turned = inputs.scale.contiguous().view(columns, groups).t().float()
        row = torch.arange(len(inputs.weight)) // inputs.group_size
        return product(inputs, dequantised(inputs, scale=turned[row]))
    return product(inputs, dequantised(inputs))


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_07_columns_behind_128", on_device=True)
def b07(inputs, target):
    """Blocks of 128 columns; the last one takes the scales of a whole block."""
    columns = inputs.weight.shape[1]
    rest = columns % 128
    if WRONG and columns > 128 and rest and inputs.scale.shape[-1] == columns:
        scale = by_row(inputs, inputs.scale).clone()
        scale[..., columns - rest :] = scale[..., columns - 128 : columns - 128 + rest]
        return product(inputs, dequantised(inputs, scale=scale))
    return product(inputs, dequantised(inputs))


@npudiff.implementation("weight_quant_matmul", name="b_wqmm_08_offset_of_the_first_group", on_device=True)
def b08(inputs, target):
    """Offsets are subtracted by a product with the sums of states, which is made once for all groups."""
    if WRONG and inputs.group_size and inputs.offset is not None:
        weight = (inputs.weight.float() + inputs.offset.float()[0]) * by_row(inputs, inputs.scale)
        return product(inputs, weight)
    return product(inputs, dequantised(inputs))
