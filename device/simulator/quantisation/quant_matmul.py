"""``npu_quant_matmul``: a product of integers, with scales.

Sources: op-plugin's checks (ERR01003), its code and the golden of its test; the wheel's META rule and documentation of
the operator, whose table of dtypes for A2 and A3 is ``_ROWS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import grouped_scales
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.hardware_scales import decoded, encoded
from npudiff.device.simulator.quantisation.integers import INT8, PER_WORD, saturated, unpacked
from npudiff.device.simulator.quantisation.products import integer_product

_CHECK = ArgumentChecks("npu_quant_matmul", default=ErrorCode.PARAMETER)

OUTPUTS = {
    types.INT8: torch.int8,
    types.FLOAT16: torch.float16,
    types.BFLOAT16: torch.bfloat16,
    types.INT32: torch.int32,
}
"""ScalarType numbers of outputs."""

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


@dataclass(frozen=True)
class QuantMatmulRequest:
    """One call. Names are those of the schema."""

    x1: Tensor
    x2: Tensor
    """[..., m, k] and [..., k, n], int8, rank 2 to 6, batch axes broadcast. Or int32, eight integers of 4 bits in a
    word: [..., m, k / 8], and [k, n / 8] or a transposed [n, k / 8]. Or int8 [m, k] and int32 [k, n / 8]."""
    scale: Tensor
    """[1] or [n]: float32, bfloat16, or int64 of npu_trans_quant_param. Of float32 only 19 bits count where output is
    int8 or float16 and there is no pertoken_scale: op-plugin makes such words of it. Of two axes where it is of groups,
    see :mod:`grouped_scales`."""
    offset: Tensor | None
    """float32, [1] or [n]: added to what has been scaled, as an integer of 9 bits; for output int8. int8 by int32:
    float32 [n], ``8 * sum(w * scale)``. int4 with scales of groups: float16, what the weight is above."""
    pertoken_scale: Tensor | None
    """float32, [m]; [m, 1] with groups along k, [m, k / 128] with blocks."""
    bias: Tensor | None
    """[n], or [batch, 1, n] with an output of three axes. int32 is added to the product, floats at the end."""
    output_dtype: int | None
    """ScalarType: int8, which is the default, float16, bfloat16 or int32."""
    x1_dtype: int | None
    x2_dtype: int | None
    pertoken_scale_dtype: int | None
    scale_dtype: int | None
    """Options of Ascend 950, as is y_scale."""
    group_sizes: Sequence[int] | None
    """Zeros; [0, 0, 256] for int8 by int32, this or [1, 1, 256] for int4 with scales of groups, [1, 128, 128] for int8
    in blocks."""
    y_scale: Tensor | None

    @property
    def output(self) -> torch.dtype:
        """The dtype of the output.

        Raises
        ------
        OperatorRejected
            A2 and A3 do not have it.
        """
        if self.output_dtype is None:
            return torch.int8
        if self.output_dtype not in OUTPUTS:
            allowed = "None, " + ", ".join(f"{known} ({dtype})" for known, dtype in OUTPUTS.items())
            raise _CHECK.rejected("output_dtype", self.output_dtype, allowed)
        return OUTPUTS[self.output_dtype]

    @property
    def words(self) -> bool:
        """Whether inputs are words of eight integers."""
        return self.x1.dtype == torch.int32

    @property
    def has_int4_weight(self) -> bool:
        """Whether x2 is words of eight integers."""
        return self.x2.dtype == torch.int32

    @property
    def transposed_words(self) -> bool:
        """Whether the words of x2 lie along k: [k / 8, n], a view of [n, k / 8]."""
        return self.words and self.x1.shape[-1] == self.x2.shape[-2]

    @property
    def columns(self) -> int:
        """The n of the output."""
        return self.x2.shape[-1] * (PER_WORD if self.has_int4_weight and not self.transposed_words else 1)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return both inputs as int8, [..., m, k] and [..., k, n]."""
        if not self.words:
            return self.x1, self.x2
        right = unpacked(self.x2.t()).t() if self.transposed_words else unpacked(self.x2)
        return unpacked(self.x1), right

    def shape(self) -> list[int]:
        """Return the shape of the output; refuse ranks and batches that op-plugin refuses."""
        for argument, tensor in (("x1", self.x1), ("x2", self.x2)):
            _CHECK.rank(argument, tensor, range(2, 7), code=ErrorCode.WRAPPER)
        try:
            batch = torch.broadcast_shapes(self.x1.shape[:-2], self.x2.shape[:-2])  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            given, allowed = f"of shape {list(self.x2.shape)}", f"batch axes that broadcast with {list(self.x1.shape)}"
            raise _CHECK.rejected("x2", given, allowed, ErrorCode.WRAPPER) from error
        return [*batch, self.x1.shape[-2], self.columns]


def _check_group_sizes(group_sizes: Sequence[int] | None) -> None:
    """Refuse group sizes that op-plugin refuses."""
    if group_sizes is None:
        return
    given = list(group_sizes)
    if len(given) != 3:
        words = f"group_sizes only support input with three elements, but got {len(given)}"
        raise _CHECK.rejected("group_sizes", given, "three sizes", ErrorCode.WRAPPER, words)
    if not all(0 <= size <= _MAX_LAST_AXIS for size in given):
        words = f"group param value must conform to range [0, {_MAX_LAST_AXIS}]"
        raise _CHECK.rejected("group_sizes", given, f"three sizes from 0 to {_MAX_LAST_AXIS}", ErrorCode.WRAPPER, words)


def _check(request: QuantMatmulRequest) -> None:
    """Refuse what the operator refuses, and what is not simulated."""
    for argument in ("x1_dtype", "x2_dtype", "pertoken_scale_dtype", "scale_dtype", "y_scale"):
        given = getattr(request, argument)
        if given is not None:
            shown = "given" if isinstance(given, Tensor) else given
            raise _CHECK.not_simulated(argument, shown, "None; others are for dtypes of Ascend 950")
    _check_group_sizes(request.group_sizes)
    shape = request.shape()
    _check_inputs(request)
    form = grouped_scales.form_of(request)
    if form is not None:
        grouped_scales.check(_CHECK, request, form)
        return
    if any(request.group_sizes or ()):
        allowed = "zeros, or [1, 128, 128] with int8"
        raise _CHECK.rejected("group_sizes", list(request.group_sizes or ()), allowed)
    row = _row(request)
    _check_scale(request, row)
    if request.pertoken_scale is not None:
        _CHECK.dtype("pertoken_scale", request.pertoken_scale, "float32")
        _CHECK.shape("pertoken_scale", request.pertoken_scale, shape[-2:-1], meaning="[m]")
    _check_bias(request, row, shape)


def _check_inputs(request: QuantMatmulRequest) -> None:
    x1, x2 = request.x1, request.x2
    _CHECK.dtype("x1", x1, "int8", "int32")
    _CHECK.dtype("x2", x2, *(("int32",) if request.words else ("int8", "int32")))
    storage = format_of(x2)
    if storage not in BASE_FORMATS | {Format.NCL, Format.FRACTAL_NZ}:
        raise _CHECK.rejected("x2", f"in {storage.name}", "a base format or FRACTAL_NZ", ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2)):
        _CHECK.not_empty(argument, tensor)
        if tensor.shape[-1] > _MAX_LAST_AXIS and not _may_be_long(request):
            given = f"of shape {list(tensor.shape)}"
            raise _CHECK.rejected(argument, given, f"a last axis up to {_MAX_LAST_AXIS}", ErrorCode.TILING)
    given, k = f"of shape {list(x2.shape)}", x1.shape[-1]
    if not request.words:
        if x2.shape[-2] != k:
            raise _CHECK.rejected("x2", given, f"[..., {k}, n], as x1 of shape {list(x1.shape)}", ErrorCode.WRAPPER)
        return
    if x2.dim() != 2 or x2.shape[0] not in (k, k * PER_WORD):
        allowed = f"[{k * PER_WORD}, n / 8] or a transposed [n, {k}], as x1 of shape {list(x1.shape)}"
        raise _CHECK.rejected("x2", given, allowed, ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2.t() if request.transposed_words else x2)):
        if not tensor.is_contiguous():
            raise _CHECK.rejected(argument, f"not contiguous along k, strides {tensor.stride()}", "words without gaps")


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
        return _ROWS[kind]
    what = f"with x1 {dtype_name(request.x1)} and output {request.output}"
    if (request.words, request.output, not pertoken) not in _ROWS:
        outputs = sorted({str(output) for words, output, _ in _ROWS if words == request.words})
        allowed = f"{' or '.join(outputs)} with x1 {dtype_name(request.x1)}"
        raise _CHECK.rejected("output_dtype", request.output, allowed)
    given, allowed = ("given", "None") if pertoken else ("None", "a tensor")
    raise _CHECK.rejected("pertoken_scale", given, f"{allowed} {what}")


def _check_scale(request: QuantMatmulRequest, row: _Row) -> None:
    scale, offset = request.scale, request.offset
    _CHECK.dtype("scale", scale, *row.scale)
    shapes = ((1,), (request.columns,))
    _CHECK.shape("scale", scale, *shapes, meaning="1 or n")
    if offset is None:
        return
    if not row.offset:
        raise _CHECK.rejected("offset", "given", f"None with x1 {dtype_name(request.x1)} and output {request.output}")
    _CHECK.dtype("offset", offset, "float32")
    _CHECK.shape("offset", offset, *shapes, meaning="1 or n")
    if scale.dtype == torch.int64:
        raise _CHECK.not_simulated(
            "offset", "given with scale int64", "an offset in the words of scale, or beside float32"
        )


def _check_bias(request: QuantMatmulRequest, row: _Row, shape: list[int]) -> None:
    bias = request.bias
    if bias is None:
        return
    if not row.bias:
        raise _CHECK.rejected("bias", "given", f"None with x1 {dtype_name(request.x1)} and pertoken_scale")
    _CHECK.dtype("bias", bias, *row.bias)
    shapes = [[request.columns]]
    if len(shape) == 3 and not request.words:
        shapes.append([shape[0], 1, request.columns])
    _CHECK.shape("bias", bias, *shapes, meaning="[n], or [batch, 1, n] of an output with three axes")


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
