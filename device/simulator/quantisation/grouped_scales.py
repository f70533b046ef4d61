"""``npu_quant_matmul`` with scales of groups: along k, or of blocks of the weight, and int8 by int4 in any case.

Sources: the constraints of aclnnQuantMatmulV5 for A2 and A3 (NN), and the goldens of op-plugin's test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded
from npudiff.device.simulator.quantisation.integers import unpacked
from npudiff.device.simulator.quantisation.products import integer_product

if TYPE_CHECKING:
    from npudiff.device.simulator.argument_checks import ArgumentChecks
    from npudiff.device.simulator.quantisation.quant_request import QuantMatmulRequest

_GROUP = 256
_BLOCK = 128
_INT4_PRODUCT, _INT8_PRODUCT = 64, 2**14
_A8W4_INNER_END = 29576


@dataclass(frozen=True)
class Form:
    """A kind of inputs whose scales may be of groups."""

    name: str
    """For messages."""
    sizes: tuple[tuple[int, int, int], ...]
    """What group_sizes may be."""
    outputs: tuple[torch.dtype, ...]
    """What output_dtype may be."""
    check: Callable[[ArgumentChecks, QuantMatmulRequest], None]
    """Refuses shapes and dtypes of everything but x1 and x2."""
    values: Callable[[QuantMatmulRequest], Tensor]
    """Gives float32 [m, n]."""


def form_of(request: QuantMatmulRequest) -> Form | None:
    """Return the form of a call, or None of one without groups."""
    sizes = tuple(request.group_sizes or ())
    if (request.x1.dtype, request.x2.dtype) == (torch.int8, torch.int32):
        return INT8_BY_INT4
    if request.words and request.scale.dim() == 2:
        return INT4
    return INT8_BLOCKS if sizes in INT8_BLOCKS.sizes and not request.words else None


def check(check: ArgumentChecks, request: QuantMatmulRequest, form: Form) -> None:
    """Refuse what the operator refuses of a form, besides x1 and x2."""
    given = tuple(request.group_sizes or (0, 0, 0))
    if given not in form.sizes:
        listed = " or ".join(str(list(sizes)) for sizes in form.sizes)
        raise check.rejected("group_sizes", list(given), f"{listed}, with {form.name}")
    if request.output not in form.outputs:
        allowed = " or ".join(map(str, form.outputs))
        raise check.rejected("output_dtype", request.output, f"{allowed}, with {form.name}")
    if request.pertoken_scale is None:
        raise check.rejected("pertoken_scale", None, f"a tensor, with {form.name}")
    check.dtype("pertoken_scale", request.pertoken_scale, "float32")
    if request.bias is not None and form is not INT8_BLOCKS:
        raise check.rejected("bias", "given", f"None, with {form.name}")
    for argument, tensor in (("x1", request.x1), ("x2", request.x2)):
        check.rank(argument, tensor, 2)
    form.check(check, request)


def values(request: QuantMatmulRequest, form: Form) -> Tensor:
    """Return the output of a form."""
    return form.values(request).to(request.output)


def _check_int8_by_int4(check: ArgumentChecks, request: QuantMatmulRequest) -> None:
    rows, inner, columns = len(request.x1), request.x1.shape[1], request.columns
    check.contiguous(x1=request.x1, x2=request.x2)
    check.dtype("scale", request.scale, "int64")
    grouped = request.scale.dim() == 2
    if grouped:
        if inner % _GROUP or inner >= _A8W4_INNER_END:
            allowed = f"a multiple of {_GROUP} below {_A8W4_INNER_END}, with scales of groups"
            raise check.rejected("x1", f"of last axis {inner}", allowed)
        check.shape("scale", request.scale, (inner // _GROUP, columns), meaning=f"[k / {_GROUP}, n]")
    else:
        check.shape("scale", request.scale, (1,), (columns,), meaning="1 or n")
    if grouped != any(request.group_sizes or ()):
        given = list(request.group_sizes or ())
        allowed = f"[0, 0, {_GROUP}] with a scale of two axes, and zeros with one"
        raise check.rejected("group_sizes", given, allowed)
    shape = (rows, 1) if grouped else (rows,)
    check.shape("pertoken_scale", _given(request.pertoken_scale), shape, meaning="[m, 1], or [m] without groups")
    if request.offset is None:
        raise check.rejected("offset", None, "float32 [n], with x1 int8 and x2 int32")
    check.dtype("offset", request.offset, "float32")
    check.shape("offset", request.offset, (columns,), meaning="[n]")


def _int8_by_int4(request: QuantMatmulRequest) -> Tensor:
    """Multiply both halves of an int8, which are int4, by int4. The offset has to be what their parting takes away."""
    x, weight, scale = request.x1, unpacked(request.x2), decoded(request.scale)[0]
    halves = torch.cat((x >> 4, (x & 15) - 8))
    dtype = torch.float16 if active_profile().quant_matmul_a8w4_products == "float16" else torch.float32
    groups = scale if scale.dim() == 2 else scale.unsqueeze(0)
    total = torch.zeros(len(halves), weight.shape[1], dtype=dtype)
    for inner, factors in zip(_slices(len(weight), len(groups)), groups, strict=True):
        sums = integer_product(halves[:, inner], weight[inner], _INT4_PRODUCT).float()
        total += (sums * factors).to(dtype)
    upper, lower = total.float().chunk(2)
    return (16.0 * upper + lower + _given(request.offset)) * _given(request.pertoken_scale).view(-1, 1)


def _check_int4(check: ArgumentChecks, request: QuantMatmulRequest) -> None:
    left, right = request.integers()
    rows, inner, columns = len(left), left.shape[1], right.shape[1]
    if not request.transposed_words:
        raise check.rejected(
            "x2", f"of shape {list(request.x2.shape)}", "a transposed [n, k / 8], with scales of groups"
        )
    for argument, size, unit in (("x1", inner, 4 * _GROUP), ("x2", columns, _GROUP)):
        if size % unit:
            allowed = f"a multiple of {unit}, with scales of groups"
            raise check.rejected(argument, f"of {size} int4 on the last axis", allowed)
    shape = (inner // _GROUP, columns)
    check.dtype("scale", request.scale, "float32")
    check.shape("scale", request.scale, shape, meaning=f"[k / {_GROUP}, n]")
    if request.offset is None:
        raise check.rejected("offset", None, "float16 in the shape of scale, with a scale of two axes")
    check.dtype("offset", request.offset, "float16")
    check.shape("offset", request.offset, shape, meaning="as scale")
    check.shape("pertoken_scale", _given(request.pertoken_scale), (rows, 1), meaning="[m, 1]")


def _int4(request: QuantMatmulRequest) -> Tensor:
    """Add the products of groups, each with an offset of its own that the weight is above."""
    left, right = request.integers()
    scale, offset = request.scale, _given(request.offset).float()
    total = torch.zeros(len(left), right.shape[1])
    for group, inner in enumerate(_slices(len(right), len(scale))):
        sums = integer_product(left[:, inner], right[inner], _INT4_PRODUCT).float()
        above = left[:, inner].float().sum(1, keepdim=True) * offset[group]
        total += (sums - above) * scale[group]
    return total * _given(request.pertoken_scale)


def _check_blocks(check: ArgumentChecks, request: QuantMatmulRequest) -> None:
    (rows, inner), columns = request.x1.shape, request.columns
    if not request.x2.t().is_contiguous():
        raise check.rejected("x2", f"of strides {request.x2.stride()}", "a transposed view of [n, k], with blocks")
    for argument, size, unit in (("x1", inner, 4 * _BLOCK), ("x2", columns, 2 * _BLOCK)):
        if size % unit:
            raise check.rejected(argument, f"of last axis {size}", f"a multiple of {unit}, with blocks")
    check.dtype("scale", request.scale, "float32")
    blocks = (inner // _BLOCK, columns // _BLOCK)
    check.shape("scale", request.scale, blocks, meaning=f"[k / {_BLOCK}, n / {_BLOCK}]")
    words = "Input x2 tensor and scale tensor's transpose are not same, please check input."
    if not request.scale.t().is_contiguous():
        given = f"of strides {request.scale.stride()}"
        raise check.rejected("scale", given, "a transposed view, as x2", words=words)
    shape = (rows, inner // _BLOCK)
    check.shape("pertoken_scale", _given(request.pertoken_scale), shape, meaning=f"[m, k / {_BLOCK}]")
    if request.offset is not None:
        raise check.rejected("offset", "given", "None, with blocks")
    if request.bias is not None:
        check.dtype("bias", request.bias, "float32")
        check.shape("bias", request.bias, (columns,), meaning="[n]")


def _blocks(request: QuantMatmulRequest) -> Tensor:
    """Add the products of blocks of k, each times the scale of the row and that of the columns' block."""
    left, right, by_row = request.x1, request.x2, _given(request.pertoken_scale)
    total = torch.zeros(len(left), right.shape[1])
    for block, inner in enumerate(_slices(len(right), len(request.scale))):
        sums = integer_product(left[:, inner], right[inner], _INT8_PRODUCT).float()
        total += sums * (by_row[:, block : block + 1] * request.scale[block].repeat_interleave(_BLOCK))
    return total if request.bias is None else total + request.bias


def _slices(inner: int, groups: int) -> list[slice]:
    size = inner // groups
    return [slice(group * size, (group + 1) * size) for group in range(groups)]


def _given(tensor: Tensor | None) -> Tensor:
    """Return what the checks have seen to be given."""
    if tensor is None:
        raise ValueError("a tensor that checks require is missing")
    return tensor


_FLOAT16S = (torch.float16, torch.bfloat16)
INT8_BY_INT4 = Form("x1 int8 and x2 int32", ((0, 0, 0), (0, 0, _GROUP)), _FLOAT16S, _check_int8_by_int4, _int8_by_int4)
# NN has zeros in front, op-plugin's test ones.
INT4 = Form("int4 and a scale of two axes", ((0, 0, _GROUP), (1, 1, _GROUP)), _FLOAT16S, _check_int4, _int4)
INT8_BLOCKS = Form("int8 in blocks", ((1, _BLOCK, _BLOCK),), (torch.bfloat16,), _check_blocks, _blocks)
