"""The arguments of ``npu_quant_matmul``, and which of them are refused.

Sources: op-plugin's checks and the wheel's META rule (ERR01003), and the wheel's documentation of the operator, whose
table of dtypes for A2 and A3 is ``_ROWS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode, OperatorRejected
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import PER_WORD, unpacked
from npudiff.device.simulator.quantisation.requirements import Requirements
from npudiff.device.simulator.rotary.requirements import dtype_name

NAME = "npu_quant_matmul"
_require = Requirements(NAME)

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
    """One call. Attributes are the operator's arguments; those of Ascend 950 are not among them."""

    x1: Tensor
    x2: Tensor
    scale: Tensor
    offset: Tensor | None
    pertoken_scale: Tensor | None
    bias: Tensor | None
    output: torch.dtype

    @property
    def words(self) -> bool:
        """Whether inputs are words of eight integers."""
        return self.x1.dtype == torch.int32

    @property
    def transposed_words(self) -> bool:
        """Whether the words of x2 lie along k: [k / 8, n], a view of [n, k / 8]."""
        return self.words and self.x1.shape[-1] == self.x2.shape[-2]

    @property
    def columns(self) -> int:
        """The n of the output."""
        return self.x2.shape[-1] * (PER_WORD if self.words and not self.transposed_words else 1)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return both inputs as int8, [..., m, k] and [..., k, n]."""
        if not self.words:
            return self.x1, self.x2
        right = unpacked(self.x2.t()).t() if self.transposed_words else unpacked(self.x2)
        return unpacked(self.x1), right

    def shape(self) -> list[int]:
        """Return the shape of the output; refuse ranks and batches that op-plugin refuses."""
        for argument, tensor in (("x1", self.x1), ("x2", self.x2)):
            _require.rank(argument, tensor, 2, 6, ErrorCode.WRAPPER)
        try:
            batch = torch.broadcast_shapes(self.x1.shape[:-2], self.x2.shape[:-2])  # type: ignore[no-untyped-call]
        except RuntimeError:
            given, allowed = f"of shape {list(self.x2.shape)}", f"batch axes that broadcast with {list(self.x1.shape)}"
            _require.refuse("x2", given, allowed, ErrorCode.WRAPPER)
        return [*batch, self.x1.shape[-2], self.columns]


def output_type(number: int | None) -> torch.dtype:
    """Return the dtype of the output; refuse one that A2 and A3 have not."""
    if number is not None and number not in OUTPUTS:
        allowed = "None, " + ", ".join(f"{known} ({dtype})" for known, dtype in OUTPUTS.items())
        _require.refuse("output_dtype", number, allowed)
    return torch.int8 if number is None else OUTPUTS[number]


def check_group_sizes(group_sizes: Sequence[int] | None) -> None:
    """Refuse group sizes that op-plugin refuses; those that are not 0 are not simulated.

    Raises
    ------
    OperatorRejected
        Not three sizes up to 65535; or sizes that int8 has not.
    NotSimulated
        [1, 128, 128].
    """
    if group_sizes is None:
        return
    given = list(group_sizes)
    if len(given) != 3 or not all(0 <= size <= _MAX_LAST_AXIS for size in given):
        _require.refuse("group_sizes", given, f"three sizes from 0 to {_MAX_LAST_AXIS}", ErrorCode.WRAPPER)
    if given == [1, 128, 128]:
        _require.missing("group_sizes", given, "None or [0, 0, 0]")
    if any(given):
        _require.refuse("group_sizes", given, "None, [0, 0, 0] or [1, 128, 128]")


def check_request(request: QuantMatmulRequest) -> None:
    """Refuse what the operator refuses.

    Raises
    ------
    OperatorRejected
        A dtype, rank, shape or format is not one that is allowed.
    NotSimulated
        int8 with words of int4; a scale per group; words of scales beside an offset.
    """
    shape = request.shape()
    _check_inputs(request)
    row = _row(request)
    _check_scale(request, row)
    if request.pertoken_scale is not None:
        _require.dtype("pertoken_scale", request.pertoken_scale, "float32")
        _require.shape("pertoken_scale", request.pertoken_scale, shape[-2:-1], meaning="[m]")
    _check_bias(request, row, shape)


def _check_inputs(request: QuantMatmulRequest) -> None:
    x1, x2 = request.x1, request.x2
    if (x1.dtype, x2.dtype) == (torch.int8, torch.int32):
        _require.missing("x2", "int32 with x1 int8", "x1 and x2 of one dtype")
    _require.dtype("x1", x1, "int8", "int32")
    _require.dtype("x2", x2, dtype_name(x1))
    storage = format_of(x2)
    if storage not in BASE_FORMATS | {Format.NCL, Format.FRACTAL_NZ}:
        _require.refuse("x2", f"in {storage.name}", "a base format or FRACTAL_NZ", ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2)):
        given = f"of shape {list(tensor.shape)}"
        if not tensor.numel():
            _require.refuse(argument, given, "a tensor with elements")
        if tensor.shape[-1] > _MAX_LAST_AXIS:
            _require.refuse(argument, given, f"a last axis up to {_MAX_LAST_AXIS}", ErrorCode.TILING)
    given, k = f"of shape {list(x2.shape)}", x1.shape[-1]
    if not request.words:
        if x2.shape[-2] != k:
            _require.refuse("x2", given, f"[..., {k}, n], as x1 of shape {list(x1.shape)}", ErrorCode.WRAPPER)
        return
    if x2.dim() != 2 or x2.shape[0] not in (k, k * PER_WORD):
        allowed = f"[{k * PER_WORD}, n / 8] or a transposed [n, {k}], as x1 of shape {list(x1.shape)}"
        _require.refuse("x2", given, allowed, ErrorCode.WRAPPER)
    for argument, tensor in (("x1", x1), ("x2", x2.t() if request.transposed_words else x2)):
        if not tensor.is_contiguous():
            _require.refuse(argument, f"not contiguous along k, strides {tensor.stride()}", "words without gaps")


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
        raise OperatorRejected(NAME, "output_dtype", request.output, allowed, ErrorCode.PARAMETER)
    given, allowed = ("given", "None") if pertoken else ("None", "a tensor")
    raise OperatorRejected(NAME, "pertoken_scale", given, f"{allowed} {what}", ErrorCode.PARAMETER)


def _check_scale(request: QuantMatmulRequest, row: _Row) -> None:
    scale, offset = request.scale, request.offset
    if scale.dim() == 2 and request.words:
        _require.missing("scale", f"of shape {list(scale.shape)}", "[1] or [n]")
    _require.dtype("scale", scale, *row.scale)
    shapes = ((1,), (request.columns,))
    _require.shape("scale", scale, *shapes, meaning="1 or n")
    if offset is None:
        return
    if not row.offset:
        _require.refuse("offset", "given", f"None with x1 {dtype_name(request.x1)} and output {request.output}")
    _require.dtype("offset", offset, "float32")
    _require.shape("offset", offset, *shapes, meaning="1 or n")
    if scale.dtype == torch.int64:
        _require.missing("offset", "given with scale int64", "an offset in the words of scale, or beside float32")


def _check_bias(request: QuantMatmulRequest, row: _Row, shape: list[int]) -> None:
    bias = request.bias
    if bias is None:
        return
    if not row.bias:
        _require.refuse("bias", "given", f"None with x1 {dtype_name(request.x1)} and pertoken_scale")
    _require.dtype("bias", bias, *row.bias)
    shapes = [[request.columns]]
    if len(shape) == 3 and not request.words:
        shapes.append([shape[0], 1, request.columns])
    _require.shape("bias", bias, *shapes, meaning="[n], or [batch, 1, n] of an output with three axes")
