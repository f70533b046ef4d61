"""``npu_quant_matmul``: a product of integers, with scales.

Sources: op-plugin's checks (ERR01003), its code and the golden of its test; the wheel's META rule and documentation of
the operator, whose table of dtypes for A2 and A3 is ``_ROWS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import dtype_name
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import grouped_scales
from npudiff.device.simulator.quantisation.hardware_scales import decoded, encoded
from npudiff.device.simulator.quantisation.integers import INT8, PER_WORD, saturated
from npudiff.device.simulator.quantisation.products import integer_product
from npudiff.device.simulator.quantisation.quant_request import CHECK, QuantMatmulRequest

_MAX_LAST_AXIS = 65535


@dataclass(frozen=True)
class _Row:
    """One column of DOC's table: the dtypes of what goes with one kind of input and output."""

    scale: tuple[str, ...]
    bias: tuple[str, ...] = ("int32",)
    offset: bool = False


_WORDS = ("int64", "float32")
_FLOAT = ("float32", "bfloat16")

# By: whether inputs are words of int4, output, whether there is a pertoken_scale.
_ROWS = {
    (False, torch.float16, False): _Row(_WORDS),
    (False, torch.int8, False): _Row(_WORDS, offset=True),
    (False, torch.bfloat16, False): _Row(_FLOAT, ("int32", "bfloat16", "float32")),
    (False, torch.bfloat16, True): _Row(_FLOAT, ("int32", "bfloat16", "float32")),
    (False, torch.float16, True): _Row(("float32",), ("int32", "float16", "float32")),
    (False, torch.int32, False): _Row(_FLOAT),
    (True, torch.float16, False): _Row(_WORDS),
    (True, torch.float16, True): _Row(("float32",), ()),
    (True, torch.bfloat16, True): _Row(("float32",), ()),
}
_WORDS_BY_TOKEN = (True, torch.bfloat16, True)


def _check_group_sizes(group_sizes: Sequence[int] | None) -> None:
    """Refuse group sizes that op-plugin refuses."""
    if group_sizes is None:
        return
    given = list(group_sizes)
    if len(given) != 3:
        words = f"group_sizes only support input with three elements, but got {len(given)}"
        raise CHECK.rejected("group_sizes", given, "three sizes", ErrorCode.WRAPPER, words)
    if not all(0 <= size <= _MAX_LAST_AXIS for size in given):
        words = f"group param value must conform to range [0, {_MAX_LAST_AXIS}]"
        raise CHECK.rejected("group_sizes", given, f"three sizes from 0 to {_MAX_LAST_AXIS}", ErrorCode.WRAPPER, words)


def _check(request: QuantMatmulRequest) -> None:
    """Refuse what the operator refuses, and what is not simulated."""
    for argument in ("x1_dtype", "x2_dtype", "pertoken_scale_dtype", "scale_dtype", "y_scale"):
        given = getattr(request, argument)
        if given is not None:
            shown = "given" if isinstance(given, Tensor) else given
            raise CHECK.not_simulated(argument, shown, "None; others are for dtypes of Ascend 950")
    _check_group_sizes(request.group_sizes)
    shape = request.shape()
    _check_inputs(request)
    form = grouped_scales.form_of(request)
    if form is not None:
        grouped_scales.check(CHECK, request, form)
        return
    if any(request.group_sizes or ()):
        allowed = "zeros, or [1, 128, 128] with int8"
        raise CHECK.rejected("group_sizes", list(request.group_sizes or ()), allowed)
    row = _row(request)
    _check_scale(request, row)
    if request.pertoken_scale is not None:
        CHECK.dtype("pertoken_scale", request.pertoken_scale, "float32")
        CHECK.shape("pertoken_scale", request.pertoken_scale, shape[-2:-1], meaning="[m]")
    _check_bias(request, row, shape)


def _check_inputs(request: QuantMatmulRequest) -> None:
    x1, x2 = request.x1, request.x2
    CHECK.dtype("x1", x1, "int8", "int32")
    CHECK.dtype("x2", x2, *(("int32",) if request.words else ("int8", "int32")))
    storage = format_of(x2)
    if storage not in BASE_FORMATS | {Format.NCL, Format.FRACTAL_NZ}:
        raise CHECK.rejected("x2", f"in {storage.name}", "a base format or FRACTAL_NZ", ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2)):
        CHECK.not_empty(argument, tensor)
        if tensor.shape[-1] > _MAX_LAST_AXIS and not _may_be_long(request):
            given = f"of shape {list(tensor.shape)}"
            raise CHECK.rejected(argument, given, f"a last axis up to {_MAX_LAST_AXIS}", ErrorCode.TILING)
    given, k = f"of shape {list(x2.shape)}", x1.shape[-1]
    if not request.words:
        if x2.shape[-2] != k:
            raise CHECK.rejected("x2", given, f"[..., {k}, n], as x1 of shape {list(x1.shape)}", ErrorCode.WRAPPER)
        return
    if x2.dim() != 2 or x2.shape[0] not in (k, k * PER_WORD):
        allowed = f"[{k * PER_WORD}, n / 8] or a transposed [n, {k}], as x1 of shape {list(x1.shape)}"
        raise CHECK.rejected("x2", given, allowed, ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2.t() if request.transposed_words else x2)):
        if not tensor.is_contiguous():
            raise CHECK.rejected(argument, f"not contiguous along k, strides {tensor.stride()}", "words without gaps")


def _may_be_long(request: QuantMatmulRequest) -> bool:
    """Whether CANN leaves the last axes unchecked: of int8 with a scale per token, and one per column."""
    scale, pertoken = request.scale, request.pertoken_scale
    return (
        active_profile().quant_matmul_last_axis == "free_per_token"
        and (request.x1.dtype, request.x2.dtype) == (torch.int8, torch.int8)
        and (pertoken is not None and pertoken.dim() == 1)
        and (scale.dim() == 1 and dtype_name(scale) in _FLOAT)
    )


def _row(request: QuantMatmulRequest) -> _Row:
    """Return the dtypes that go with inputs and output."""
    pertoken = request.pertoken_scale is not None
    kind = (request.words, request.output, pertoken)
    if kind in _ROWS:
        row = _ROWS[kind]
        free = kind == _WORDS_BY_TOKEN and active_profile().quant_matmul_int4_scales == "any_float"
        return replace(row, scale=_FLOAT) if free else row
    what = f"with x1 {dtype_name(request.x1)} and output {request.output}"
    if (request.words, request.output, not pertoken) not in _ROWS:
        outputs = sorted({str(output) for words, output, _ in _ROWS if words == request.words})
        allowed = f"{' or '.join(outputs)} with x1 {dtype_name(request.x1)}"
        raise CHECK.rejected("output_dtype", request.output, allowed)
    given, allowed = ("given", "None") if pertoken else ("None", "a tensor")
    raise CHECK.rejected("pertoken_scale", given, f"{allowed} {what}")


def _check_scale(request: QuantMatmulRequest, row: _Row) -> None:
    scale, offset = request.scale, request.offset
    CHECK.dtype("scale", scale, *row.scale)
    shapes = ((1,), (request.columns,))
    CHECK.shape("scale", scale, *shapes, meaning="1 or n")
    if offset is None:
        return
    if not row.offset:
        raise CHECK.rejected("offset", "given", f"None with x1 {dtype_name(request.x1)} and output {request.output}")
    CHECK.dtype("offset", offset, "float32")
    CHECK.shape("offset", offset, *shapes, meaning="1 or n")
    if scale.dtype == torch.int64:
        raise CHECK.not_simulated(
            "offset", "given with scale int64", "an offset in the words of scale, or beside float32"
        )


def _check_bias(request: QuantMatmulRequest, row: _Row, shape: list[int]) -> None:
    bias = request.bias
    if bias is None:
        return
    if not row.bias:
        raise CHECK.rejected("bias", "given", f"None with x1 {dtype_name(request.x1)} and pertoken_scale")
    CHECK.dtype("bias", bias, *row.bias)
    shapes = [[request.columns]]
    if len(shape) == 3 and not request.words:
        shapes.append([shape[0], 1, request.columns])
    CHECK.shape("bias", bias, *shapes, meaning="[n], or [batch, 1, n] of an output with three axes")


_INT32 = (-(2**31), 2**31 - 1)


def quant_matmul(request: QuantMatmulRequest) -> Tensor:
    """Return ``(x1 @ x2 + bias) * scale``, with more factors and summands as the dtypes allow.

    Returns
    -------
    Tensor
        [..., m, n]. Scales and float biases are applied in float32, in this order: scale, pertoken_scale, offset or
        bias, and one rounding.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or format is not one of the above, or they do not go together.
    NotSimulated
        An option of Ascend 950; words of scales beside an offset.
    """
    _check(request)
    form = grouped_scales.form_of(request)
    if form is not None:
        return grouped_scales.values(request, form)
    accumulators = integer_product(*request.integers(), largest=64 if request.words else 2**14)
    if request.bias is not None and request.bias.dtype == torch.int32:
        accumulators = accumulators + request.bias
    return _scaled(request, accumulators.to(torch.int32))


def quant_matmul_meta(request: QuantMatmulRequest) -> Tensor:
    """Allocate the output, after torch_npu's checks of ranks, batches and the dtype of the output."""
    dtype = request.output
    return request.x1.new_empty(request.shape(), dtype=dtype)


def _scaled(request: QuantMatmulRequest, accumulators: Tensor) -> Tensor:
    if request.output == torch.int32 and active_profile().quant_matmul_int32 == "accumulators":
        return accumulators
    scale, offset = _factors(request)
    values = accumulators.float() * scale
    if request.pertoken_scale is not None:
        values = values * request.pertoken_scale.view(-1, 1)
    if request.output == torch.int32:
        return saturated(values.double(), _INT32, torch.int32)
    if request.output == torch.int8:
        return saturated(values + offset, INT8, torch.int8)
    if request.bias is not None and request.bias.dtype != torch.int32:
        values = values + request.bias.float()
    return values.to(request.output)


def _factors(request: QuantMatmulRequest) -> tuple[Tensor, Tensor]:
    """Return scale and offset in float32, as the matrix unit sees them."""
    if request.scale.dtype == torch.int64:
        return decoded(request.scale)
    if request.output in (torch.int8, torch.float16) and request.pertoken_scale is None:
        # Apart, since the shapes may be [1] and [n] in either order.
        scale, _ = decoded(encoded(request.scale, None))
        if request.offset is None:
            return scale, torch.zeros(1)
        return scale, decoded(encoded(torch.zeros_like(request.offset), request.offset))[1]
    return request.scale.float(), torch.zeros(1)
