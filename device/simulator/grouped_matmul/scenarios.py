"""What ``npu_grouped_matmul`` computes for which dtypes of x and weight, and what else a call of them may have.

ACLNN's and DOC's table of dtypes for A2 and A3. Each function here checks a call and returns a kernel, which gives the
product of some rows with the weight of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, dtype_name
from npudiff.device.simulator.grouped_matmul import int4
from npudiff.device.simulator.grouped_matmul.checks import per_expert
from npudiff.device.simulator.grouped_matmul.products import INT4_PRODUCT, INT8_PRODUCT, integer_product, product
from npudiff.device.simulator.grouped_matmul.request import CHECK, ONE_EACH, ROWS, GroupedRequest
from npudiff.device.simulator.quantisation.hardware_scales import decoded
from npudiff.device.simulator.quantisation.integers import INT8, saturated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npudiff.device.simulator.profiles import CannProfile


class Part(NamedTuple):
    """Rows from ``start`` to before ``stop`` of x number ``number`` are of ``expert``."""

    expert: int
    number: int
    start: int
    stop: int


Kernel = Callable[[Part], Tensor]
"""Gives the product of a part, [rows, columns] in the dtype of the output."""

_QUANTISATION = ("scale", "offset", "antiquant_scale", "antiquant_offset", "per_token_scale")
_FLOAT_BIAS = {"float16": "float16", "bfloat16": "float32", "float32": "float32"}


def kernel(request: GroupedRequest, profile: CannProfile) -> Kernel:
    """Choose by the dtypes of x and weight.

    Raises
    ------
    OperatorRejected
        An argument has another dtype or shape, is missing or is not for these dtypes.
    NotSimulated
        Offsets of int8 by int4.
    """
    for argument, tensors in (("x", request.x), ("weight", request.weight)):
        for tensor in tensors[1:]:
            CHECK.dtype(argument, tensor, dtype_name(tensors[0]))
    x, weight = dtype_name(request.x[0]), dtype_name(request.weight[0])
    if request.group_list_type == 2 and (x, weight) != ("int8", "int8"):
        raise CHECK.rejected("group_list_type", 2, f"0 or 1, with x of {x} and weight of {weight}")
    if x == weight and x in FLOATS:
        return _floating(request)
    if (x, weight) == ("int8", "int8"):
        return _int8(request, profile)
    if (x, weight) == ("int8", "int32"):
        return _a8w4(request, profile)
    if x in ("float16", "bfloat16") and weight in ("int8", "int32"):
        return _weight_only(request)
    if (x, weight) == ("int32", "int32"):
        return _a4w4(request, profile)
    weights = {"int8": "int8 or int32 (int4 in eights), with int8 x", "int32": "int32 (int4 in eights), with int32 x"}
    if x in FLOATS or x in weights:
        allowed = weights.get(x, f"int8, int32 (int4 in eights), or {x} as x")
        raise CHECK.rejected("weight", weight, allowed)
    raise CHECK.rejected("x", x, "float16, bfloat16, float32, int8 or int32 (int4 in eights)")


def rows(request: GroupedRequest, part: Part) -> Tensor:
    """Return the rows of a part, [rows, inner]."""
    return request.x[part.number].flatten(0, -2)[part.start : part.stop]


def _floating(request: GroupedRequest) -> Kernel:
    """Products of one dtype: float32 sums and bias, one rounding."""
    dtype = dtype_name(request.x[0])
    _refuse(request, _QUANTISATION, dtype)
    _require_output(request, (dtype,))
    if request.bias:
        per_expert(request, "bias", request.bias, (_FLOAT_BIAS[dtype],))

    def run(part: Part) -> Tensor:
        total = product(rows(request, part), request.of_expert(request.weight, part.expert))
        return _plus_bias(request, part, total).to(request.dtype)

    return run


def _int8(request: GroupedRequest, profile: CannProfile) -> Kernel:
    """int32 sums and bias, times a scale per column and one per row in float32."""
    _refuse(request, ("offset", "antiquant_scale", "antiquant_offset"), "int8")
    output = request.dtype
    if not request.scale:
        _require_output(request, ("int32",))
        _refuse(request, ("bias", "per_token_scale"), "int32 output")
        return lambda part: _sums(request, part)
    scale = dtype_name(request.scale[0])
    if int4.are_bits(request.scale[0]):
        return _int8_to_int8(request)
    outputs = sorted(given for by, given in profile.gmm_int8_outputs if by == scale)
    if not outputs:
        raise CHECK.rejected("scale", scale, " or ".join(sorted({by for by, _ in profile.gmm_int8_outputs})))
    _require_output(request, outputs)
    per_expert(request, "scale", request.scale, (scale,))
    if request.bias:
        floats = ("bfloat16", "float32") if output == torch.bfloat16 else ()
        per_expert(request, "bias", request.bias, ("int32", *floats))
    _check_per_token(request)

    def run(part: Part) -> Tensor:
        total = _sums(request, part)
        bias_first = bool(request.bias) and request.bias[0].dtype == torch.int32
        if bias_first:
            total = total + request.of_expert(request.bias, part.expert)
        values = total.float() * request.of_expert(request.scale, part.expert).float()
        if request.per_token_scale:
            values = values * request.per_token_scale[part.number][part.start : part.stop].unsqueeze(1)
        return (values if bias_first else _plus_bias(request, part, values)).to(output)

    return run


def _int8_to_int8(request: GroupedRequest) -> Kernel:
    """int32 sums and bias, scaled on their way out of the matrix unit by words of npu_trans_quant_param."""
    _require_output(request, ("int8",))
    _refuse(request, ("per_token_scale",), "scale of int64")
    per_expert(request, "scale", request.scale, (dtype_name(request.scale[0]),))
    if request.bias:
        per_expert(request, "bias", request.bias, ("int32",))

    def run(part: Part) -> Tensor:
        total = _sums(request, part)
        if request.bias:
            total = total + request.of_expert(request.bias, part.expert)
        scale, offset = decoded(request.of_expert(request.scale, part.expert).view(torch.int64))
        return saturated(total.float() * scale + offset, INT8, torch.int8)

    return run


def _a4w4(request: GroupedRequest, profile: CannProfile) -> Kernel:
    """int4 by int4, times a scale per column, or per column and group of rows; the scale of the row comes last."""
    _refuse(request, ("bias", "offset", "antiquant_scale", "antiquant_offset"), "int4 weights and int4 x")
    _require_stacked(request, "int4 x")
    if len(request.scale) != 1:
        raise CHECK.rejected("scale", f"of {len(request.scale)} tensors", "1 tensor, with int4 x")
    _require_output(request, ("bfloat16", "float16"))
    _check_per_token(request)
    scale = int4.grouped_scale(CHECK, "scale", request.scale[0], (request.experts, request.inner, request.columns(0)))
    dtype = torch.float16 if profile.gmm_a4w4_products == "float16" else torch.float32

    def run(part: Part) -> Tensor:
        x, weight = int4.unpacked(rows(request, part)), int4.unpacked(request.weight[0][part.expert])
        total = torch.zeros(len(x), weight.shape[1], dtype=dtype)
        size = len(weight) // scale.shape[1]
        for group, factors in enumerate(scale[part.expert]):
            inner = slice(group * size, (group + 1) * size)
            total += (integer_product(x[:, inner], weight[inner], INT4_PRODUCT).float() * factors).to(dtype)
        values = total.float()
        if request.per_token_scale:
            values = values * request.per_token_scale[0].view(-1, 1)[part.start : part.stop]
        return values.to(request.dtype)

    return run


def _require_stacked(request: GroupedRequest, why: str) -> None:
    """Require one weight of all experts and rows in groups."""
    if request.is_list or request.group_type != ROWS or not request.is_stacked or request.split_item in ONE_EACH:
        given = f"of {len(request.weight)} tensors, with group_type {request.group_type}"
        allowed = f"1 tensor [E, K, N / 8], with group_type 0 and a tensor group_list, for {why}"
        raise CHECK.rejected("weight", given, allowed)


def _a8w4(request: GroupedRequest, profile: CannProfile) -> Kernel:
    """int8 by int4, as ``int4`` explains; the scale of the row comes last."""
    _refuse(request, ("antiquant_scale", "antiquant_offset"), "int4 weights and int8 x")
    if request.offset:
        raise CHECK.not_simulated("offset", f"of {len(request.offset)} tensors", "None")
    _require_stacked(request, "int4 weights and int8 x")
    for argument in ("scale", "bias", "per_token_scale"):
        if len(getattr(request, argument)) != 1:
            given = f"of {len(getattr(request, argument))} tensors"
            raise CHECK.rejected(argument, given, "1 tensor, with int4 weights and int8 x")
    _require_output(request, ("bfloat16", "float16"))
    _check_per_token(request)
    per_expert(request, "bias", request.bias, ("float32",))
    scale = int4.checked_scale(CHECK, "scale", request.scale[0], request.weight[0], profile)

    def run(part: Part) -> Tensor:
        words, assist = request.weight[0][part.expert], request.bias[0][part.expert]
        values = int4.dequantised(rows(request, part), words, scale[part.expert], assist, profile)
        return (values * request.per_token_scale[0].view(-1, 1)[part.start : part.stop]).to(request.dtype)

    return run


def _weight_only(request: GroupedRequest) -> Kernel:
    """Integer weights that become the dtype of x first: ``(weight + offset) * scale``."""
    dtype = dtype_name(request.x[0])
    _refuse(request, ("scale", "offset", "per_token_scale"), f"integer weights and {dtype} x")
    _require_output(request, (dtype,))
    _check_antiquant(request, "antiquant_scale", request.antiquant_scale, dtype)
    if request.antiquant_offset:
        _check_antiquant(request, "antiquant_offset", request.antiquant_offset, dtype)
        for scale, offset in zip(request.antiquant_scale, request.antiquant_offset, strict=True):
            CHECK.shape("antiquant_offset", offset, scale.shape, meaning="as antiquant_scale")
    if request.bias:
        per_expert(request, "bias", request.bias, (_FLOAT_BIAS[dtype],))

    def run(part: Part) -> Tensor:
        total = product(rows(request, part), _antiquantised(request, part.expert))
        return _plus_bias(request, part, total).to(request.dtype)

    return run


def _antiquantised(request: GroupedRequest, expert: int) -> Tensor:
    """Return a weight in the dtype of x. GOLDEN: bfloat16 goes through float32, float16 stays float16."""
    weight, dtype = request.of_expert(request.weight, expert), request.x[0].dtype
    weight = int4.unpacked(weight) if weight.dtype == torch.int32 else weight
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    values = weight.to(wide)
    if request.antiquant_offset:
        values = values + _spread(request.of_expert(request.antiquant_offset, expert), len(weight)).to(wide)
    return (values * _spread(request.of_expert(request.antiquant_scale, expert), len(weight)).to(wide)).to(dtype)


def _spread(factors: Tensor, inner: int) -> Tensor:
    """Return factors [N] as they are, and [groups, N] as [inner, N]."""
    return factors if factors.dim() == 1 else factors.repeat_interleave(inner // len(factors), 0)


def _check_antiquant(request: GroupedRequest, argument: str, tensors: Sequence[Tensor], dtype: str) -> None:
    """Require [E, N] or [E, groups, N]; of several weights [N] or [groups, N]."""
    if len(tensors) != len(request.weight):
        given = f"of {len(tensors)} tensors"
        raise CHECK.rejected(argument, given, f"{len(request.weight)}, one for each weight of integers")
    leading = (request.experts,) if request.is_stacked else ()
    for number, tensor in enumerate(tensors):
        CHECK.dtype(argument, tensor, dtype)
        CHECK.rank(argument, tensor, (len(leading) + 1, len(leading) + 2))
        groups = tensor.shape[len(leading) : -1]
        CHECK.shape(argument, tensor, (*leading, *groups, request.columns(number)), meaning="[E, N] or [E, groups, N]")
        inner = request.weight[number].shape[-2]
        if groups and (not groups[0] or inner % groups[0]):
            raise CHECK.rejected(argument, f"of {groups[0]} groups", f"a divisor of the inner axis, {inner}")


def _sums(request: GroupedRequest, part: Part) -> Tensor:
    return integer_product(rows(request, part), request.of_expert(request.weight, part.expert), INT8_PRODUCT)


def _plus_bias(request: GroupedRequest, part: Part, values: Tensor) -> Tensor:
    return values + request.of_expert(request.bias, part.expert).float() if request.bias else values


def _check_per_token(request: GroupedRequest) -> None:
    if not request.per_token_scale:
        return
    if len(request.per_token_scale) != len(request.x):
        given = f"of {len(request.per_token_scale)} tensors"
        raise CHECK.rejected("per_token_scale", given, f"{len(request.x)}, one for each x")
    for scale, x in zip(request.per_token_scale, request.x, strict=True):
        CHECK.dtype("per_token_scale", scale, "float32")
        rows = x.shape[:-1].numel()
        shapes = ((rows,), (rows, 1)) if int4.is_packed(request.weight[0]) else ((rows,),)
        CHECK.shape("per_token_scale", scale, *shapes, meaning="[M], or [M, 1] with int4 weights")


def _refuse(request: GroupedRequest, arguments: Sequence[str], why: str) -> None:
    for argument in arguments:
        if getattr(request, argument):
            given = f"of {len(getattr(request, argument))} tensors"
            raise CHECK.rejected(argument, given, f"None, with {why}")


def _require_output(request: GroupedRequest, names: Sequence[str]) -> None:
    given = str(request.dtype).removeprefix("torch.")
    if given not in names:
        shown = f"None, which means {given}" if request.output_dtype is None else given
        raise CHECK.rejected("output_dtype", shown, " or ".join(names))
