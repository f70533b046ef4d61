"""Wrong quant_matmul kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def sums_of(inputs, x=None, weight=None, bias=True):
    x = inputs.x if x is None else x
    weight = inputs.weight if weight is None else weight
    sums = x.double() @ weight.double()
    if bias and inputs.bias is not None and inputs.bias.dtype == torch.int32:
        sums = sums + inputs.bias
    return sums


def cut(scale):
    return scale.contiguous().view(torch.int32).bitwise_and(-(2**13)).view(torch.float32)


def scale_of(inputs, is_cut=None):
    is_cut = inputs.scale_is_cut if is_cut is None else is_cut
    return cut(inputs.scale) if is_cut else inputs.scale.float()


def scaled_of(inputs, sums, scale=None):
    scaled = sums.float() * (scale_of(inputs) if scale is None else scale)
    return scaled if inputs.token_scale is None else scaled * inputs.token_scale.unsqueeze(1)


def written(inputs, sums, scaled=None):
    if inputs.output_dtype == torch.int32:
        return sums.to(torch.int64).to(torch.int32)
    scaled = scaled_of(inputs, sums) if scaled is None else scaled
    if inputs.output_dtype == torch.int8:
        if inputs.offset is not None:
            scaled = scaled + inputs.offset
        return scaled.round().clamp(-128, 127).to(torch.int8)
    if inputs.bias is not None and inputs.bias.is_floating_point():
        scaled = scaled + inputs.bias.float()
    return scaled.to(inputs.output_dtype)


@npudiff.implementation("quant_matmul", name="b_qmm_01_sums_in_float32", on_device=True)
def b01(inputs, target):
    """Products of integers on float units."""
    if not WRONG:
        return written(inputs, sums_of(inputs))
    sums = (inputs.x.float() @ inputs.weight.float()).double()
    if inputs.bias is not None and inputs.bias.dtype == torch.int32:
        sums = (sums.float() + inputs.bias.float()).double()
    return written(inputs, sums.clamp(-(2**31), 2**31 - 1))


@npudiff.implementation("quant_matmul", name="b_qmm_02_square_token_scale", on_device=True)
def b02(inputs, target):
    """Scales of tokens by broadcasting."""
    sums = sums_of(inputs)
    if WRONG and inputs.token_scale is not None and len(inputs.token_scale) == inputs.weight.shape[1]:
        return written(inputs, sums, sums.float() * scale_of(inputs) * inputs.token_scale)
    return written(inputs, sums)


@npudiff.implementation("quant_matmul", name="b_qmm_03_symmetric_saturation", on_device=True)
def b03(inputs, target):
    """int8 output is limited."""
    result = written(inputs, sums_of(inputs))
    if WRONG and inputs.output_dtype == torch.int8:
        result = result.clamp(-127, 127)
    return result


@npudiff.implementation("quant_matmul", name="b_qmm_04_limited_before_offset", on_device=True)
def b04(inputs, target):
    """int8 output: scale, limit, offset."""
    sums = sums_of(inputs)
    if WRONG and inputs.output_dtype == torch.int8 and inputs.offset is not None:
        whole = scaled_of(inputs, sums).round().clamp(-128, 127) + inputs.offset
        return whole.to(torch.int32).to(torch.int8)
    return written(inputs, sums)


@npudiff.implementation("quant_matmul", name="b_qmm_05_bias_before_token_scale", on_device=True)
def b05(inputs, target):
    """A float bias is added to what the columns are worth."""
    sums = sums_of(inputs)
    floats = inputs.bias is not None and inputs.bias.is_floating_point()
    if WRONG and floats and inputs.token_scale is not None:
        scaled = (sums.float() * scale_of(inputs) + inputs.bias.float()) * inputs.token_scale.unsqueeze(1)
        return scaled.to(inputs.output_dtype)
    return written(inputs, sums)


@npudiff.implementation("quant_matmul", name="b_qmm_06_transposed_weight", on_device=True)
def b06(inputs, target):
    """A weight whose matrix is square is taken as it lies."""
    weight = inputs.weight
    if WRONG and weight.shape[0] == weight.shape[1] and not weight.is_contiguous():
        weight = weight.t()
    return written(inputs, sums_of(inputs, weight=weight))


@npudiff.implementation("quant_matmul", name="b_qmm_07_scale_cut_with_token_scale", on_device=True)
def b07(inputs, target):
    """Scales of float16 output are packed."""
    packed = inputs.output_dtype in (torch.float16, torch.int8) and inputs.scale.dtype == torch.float32
    sums = sums_of(inputs)
    if inputs.output_dtype == torch.int32:
        return written(inputs, sums)
    return written(inputs, sums, scaled_of(inputs, sums, scale_of(inputs, packed if WRONG else None)))


@npudiff.implementation("quant_matmul", name="b_qmm_08_bias_of_each_split", on_device=True)
def b08(inputs, target):
    """The inner axis is split from 2048 elements on, and partial sums are added."""
    sums = sums_of(inputs)
    if inputs.bias is not None and inputs.bias.dtype == torch.int32 and WRONG and inputs.x.shape[1] > 2048:
        sums = sums + inputs.bias * ((inputs.x.shape[1] - 1) // 2048)
    return written(inputs, sums)


@npudiff.implementation("quant_matmul", name="b_qmm_09_int4_of_odd_inner_blocks", on_device=True)
def b09(inputs, target):
    """Four bits: 64 to a block of 32 bytes, the rest of a row by the scalar unit."""
    x = inputs.x
    if WRONG and inputs.bits == 4 and x.shape[1] % 64:
        x = x.clone()
        tail = x[:, x.shape[1] // 64 * 64 :]
        tail[:] = tail & 15  # no sign there
    return written(inputs, sums_of(inputs, x))


@npudiff.implementation("quant_matmul", name="b_qmm_10_half_before_token_scale", on_device=True)
def b10(inputs, target):
    """Column scales while writing, token scales by the vector unit."""
    sums = sums_of(inputs)
    if WRONG and inputs.output_dtype == torch.float16 and inputs.token_scale is not None:
        scaled = (sums.float() * scale_of(inputs)).half().float() * inputs.token_scale.unsqueeze(1)
        return written(inputs, sums, scaled)
    return written(inputs, sums)


@npudiff.implementation("quant_matmul", name="b_qmm_11_scalar_offset_dropped", on_device=True)
def b11(inputs, target):
    """Offsets go into the words of the scales, where there are as many."""
    sums = sums_of(inputs)
    if WRONG and inputs.offset is not None and len(inputs.offset) != len(inputs.scale):
        return scaled_of(inputs, sums).round().clamp(-128, 127).to(torch.int8)
    return written(inputs, sums)
