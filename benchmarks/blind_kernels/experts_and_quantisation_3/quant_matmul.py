"""Wrong kernels of quant_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def product(inputs):
    return inputs.x.double() @ inputs.weight.double()


def finish(inputs, sums, *, token_scale=None, scaled_bias=False, limit_first=False):
    bias = inputs.bias
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias.double()
        bias = None
    if inputs.output_dtype == torch.int32:
        return {"output": sums.clamp(-(2**31), 2**31 - 1).to(torch.int32)}
    scale = inputs.scale
    if inputs.scale_is_cut:
        scale = scale.contiguous().view(torch.int32).bitwise_and(-(2**13)).view(torch.float32)
    total = sums * scale.double()
    if bias is not None and scaled_bias:
        total, bias = total + bias.double(), None
    if inputs.token_scale is not None:
        by_row = inputs.token_scale.double().unsqueeze(1) if token_scale is None else token_scale
        total = total * by_row
    if inputs.output_dtype == torch.int8:
        if limit_first:
            total = total.round().clamp(-128, 127)
        if inputs.offset is not None:
            total = total + inputs.offset.double()
        return {"output": total.round().clamp(-128, 127).to(torch.int8)}
    if bias is not None:
        total = total + bias.double()
    return {"output": total.to(inputs.output_dtype)}


@npudiff.implementation("quant_matmul", name="e_quant_matmul_01_sums_in_float32", on_device=True)
def e01(inputs, target):
    """The product is computed in float32, which has no room for whole numbers beyond 2**24."""
    sums = (inputs.x.float() @ inputs.weight.float()).double() if WRONG else product(inputs)
    return finish(inputs, sums)


@npudiff.implementation("quant_matmul", name="e_quant_matmul_02_limited_before_offset", on_device=True)
def e02(inputs, target):
    """The scaled sum becomes int8, which saturates, and then the offset is added, which saturates again."""
    return finish(inputs, product(inputs), limit_first=WRONG and inputs.offset is not None)


@npudiff.implementation("quant_matmul", name="e_quant_matmul_03_bias_times_token_scale", on_device=True)
def e03(inputs, target):
    """The epilogue adds a float bias after the scale of the column, and multiplies the scale of the token on both."""
    return finish(inputs, product(inputs), scaled_bias=WRONG and inputs.token_scale is not None)


@npudiff.implementation("quant_matmul", name="e_quant_matmul_04_square_broadcast", on_device=True)
def e04(inputs, target):
    """Scales of as many elements as there are columns are those of columns: with as many tokens, so are the tokens'."""
    given, columns = inputs.token_scale, inputs.weight.shape[1]
    along = WRONG and given is not None and len(given) == columns
    return finish(inputs, product(inputs), token_scale=given.double().unsqueeze(0) if along else None)


@npudiff.implementation("quant_matmul", name="e_quant_matmul_05_stale_inner_tail", on_device=True)
def e05(inputs, target):
    """The last block of the inner axis is not filled up with zeros: behind its end lies the block before."""
    sums = product(inputs)
    block = 32 if inputs.bits == 8 else 64
    inner = inputs.x.shape[1]
    whole, rest = inner // block * block, inner % block
    if WRONG and whole and rest:
        stale = slice(whole - block + rest, whole)
        sums = sums + inputs.x[:, stale].double() @ inputs.weight[stale].double()
    return finish(inputs, sums)
