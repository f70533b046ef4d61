"""Wrong kernels of quant_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _cut(scale):
    """The upper 19 bits of float32 numbers."""
    return (scale.contiguous().view(torch.int32) & -(2**13)).view(torch.float32)


def _sums(inputs, times_bias=1):
    sums = inputs.x.double() @ inputs.weight.double()
    if inputs.bias is not None and inputs.bias.dtype == torch.int32:
        sums = sums + inputs.bias.double() * times_bias
    return sums


def _scale(inputs):
    return (_cut(inputs.scale) if inputs.scale_is_cut else inputs.scale).double()


def _scaled(inputs, sums, scale=None):
    result = sums * (_scale(inputs) if scale is None else scale)
    return result if inputs.token_scale is None else result * inputs.token_scale.double().unsqueeze(1)


def _written(inputs, sums, scale=None, first_limit=False):
    if inputs.output_dtype == torch.int32:
        whole = sums.to(torch.int64)
        return {"output": whole.to(torch.int32)}
    scaled = _scaled(inputs, sums, scale)
    if inputs.output_dtype == torch.int8:
        if first_limit:
            scaled = scaled.round().clamp(-128, 127)
        if inputs.offset is not None:
            scaled = scaled + inputs.offset.double()
        return {"output": scaled.round().clamp(-128, 127).to(torch.int8)}
    if inputs.bias is not None and inputs.bias.is_floating_point():
        scaled = scaled + inputs.bias.double()
    return {"output": scaled.to(inputs.output_dtype)}


@npudiff.implementation("quant_matmul", name="d_quant_matmul_01_sums_in_float16", on_device=True)
def d01(inputs, target):
    """Sums are cast to a 16-bit float before they are scaled: bfloat16 where that comes out, else float16."""
    sums = _sums(inputs)
    if WRONG and inputs.output_dtype != torch.int32:
        narrow = torch.bfloat16 if inputs.output_dtype == torch.bfloat16 else torch.float16
        largest = torch.finfo(narrow).max
        sums = sums.clamp(-largest, largest).to(narrow).double()
    return _written(inputs, sums)


@npudiff.implementation("quant_matmul", name="d_quant_matmul_02_every_scale_is_cut", on_device=True)
def d02(inputs, target):
    """The scale is packed to 19 bits in every case, also where it is applied by the vector unit."""
    scale = None
    if WRONG and inputs.scale.dtype == torch.float32:
        scale = _cut(inputs.scale).double()
    return _written(inputs, _sums(inputs), scale)


@npudiff.implementation("quant_matmul", name="d_quant_matmul_03_bias_of_every_part", on_device=True)
def d03(inputs, target):
    """Where the inner axis is split into parts of 512, each part's sums begin with the int32 bias."""
    parts = max(1, -(-inputs.x.shape[1] // 512)) if WRONG else 1
    return _written(inputs, _sums(inputs, parts))


@npudiff.implementation("quant_matmul", name="d_quant_matmul_04_int32_through_float32", on_device=True)
def d04(inputs, target):
    """Parts of the inner axis are added in a float32 workspace, from which int32 sums beyond 2**24 come out rounded."""
    sums = _sums(inputs)
    if WRONG and inputs.output_dtype == torch.int32:
        sums = sums.float().double().clamp(-(2**31), 2**31 - 1)
    return _written(inputs, sums)


@npudiff.implementation("quant_matmul", name="d_quant_matmul_05_offset_after_the_limit", on_device=True)
def d05(inputs, target):
    """int8 is rounded and limited as it is written, and the offset is added to what was limited."""
    return _written(inputs, _sums(inputs), first_limit=WRONG)
