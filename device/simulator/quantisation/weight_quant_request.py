"""The arguments of ``npu_weight_quant_batchmatmul``, and which of them are refused.

Sources: op-plugin's checks (ERR01003), and the wheel's documentation of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.integers import PER_WORD, unpacked
from npudiff.device.simulator.quantisation.requirements import Requirements
from npudiff.device.simulator.rotary.requirements import dtype_name

NAME = "npu_weight_quant_batchmatmul"
_require = Requirements(NAME)

_GROUP_STEP = 32
_MAX_SIZE = 65535


@dataclass(frozen=True)
class WeightQuantRequest:
    """One call. Attributes are the operator's arguments; that of Ascend 950 is not among them."""

    x: Tensor
    weight: Tensor
    antiquant_scale: Tensor
    antiquant_offset: Tensor | None
    quant_scale: Tensor | None
    quant_offset: Tensor | None
    bias: Tensor | None
    antiquant_group_size: int
    inner_precise: int

    @property
    def words(self) -> bool:
        """Whether the weight is words of eight integers."""
        return self.weight.dtype == torch.int32

    @property
    def weight_sizes(self) -> tuple[int, int]:
        """K and N. Words lie along N in a weight without gaps, and along K in any other."""
        k, n = self.weight.shape[-2:]
        if not self.words:
            return k, n
        return (k, n * PER_WORD) if self.weight.is_contiguous() else (k * PER_WORD, n)

    @property
    def groups(self) -> int:
        """How many groups K has; 0 without."""
        size = self.antiquant_group_size
        return -(-self.weight_sizes[0] // size) if size else 0

    def integers(self) -> Tensor:
        """Return the weight as int8, [..., K, N]."""
        if not self.words:
            return self.weight
        if self.weight.is_contiguous():
            return unpacked(self.weight)
        return unpacked(self.weight.transpose(-1, -2)).transpose(-1, -2)

    def output_shape(self) -> list[int]:
        """Return the shape of the output; refuse what op-plugin refuses of shapes."""
        code, x, weight = ErrorCode.WRAPPER, self.x, self.weight
        for argument, tensor in (("x", x), ("weight", weight)):
            if tensor.dim() < 2:
                _require.refuse(argument, f"of rank {tensor.dim()}", "rank 2 or more", code)
        given = f"of shape {list(weight.shape)} for x of shape {list(x.shape)}"
        if x.dim() > 2 and weight.dim() > 2 and x.shape[:-2] != weight.shape[:-2]:
            _require.refuse("weight", given, "the batch axes of x, or none", code)
        k, n = self.weight_sizes
        if k != x.shape[-1]:
            what = f", of which K is {k} in words of int4" if self.words else ""
            _require.refuse("weight", given + what, f"K of {x.shape[-1]}", code)
        longer = x if x.dim() >= weight.dim() else weight
        return [*longer.shape[:-2], x.shape[-2], n]


def check_weight_quant(request: WeightQuantRequest) -> None:
    """Refuse what the operator refuses.

    Raises
    ------
    OperatorRejected
        A dtype, rank, shape, format or attribute is not one that is allowed.
    NotSimulated
        Scales of int64 for the weight, words of int4 in FRACTAL_NZ, inner_precise 1, int64 scales beside an offset.
    """
    request.output_shape()
    _check_attributes(request)
    _check_inputs(request)
    _check_weight_scales(request)
    _check_output_scales(request)
    if request.bias is not None:
        _require.dtype("bias", request.bias, "float16" if request.x.dtype == torch.float16 else "float32")
        _row("bias", request, request.bias)


def _check_attributes(request: WeightQuantRequest) -> None:
    size, k = request.antiquant_group_size, request.weight_sizes[0]
    if size and (size % _GROUP_STEP or not _GROUP_STEP <= size <= k - 1):
        allowed = f"0 or a multiple of {_GROUP_STEP} from {_GROUP_STEP} to {k - 1}"
        _require.refuse("antiquant_group_size", size, allowed, ErrorCode.WRAPPER)
    if request.quant_offset is not None and request.quant_scale is None:
        _require.refuse("quant_offset", "given", "None without quant_scale", ErrorCode.WRAPPER)
    _require.one_of("inner_precise", request.inner_precise, (0, 1))
    if request.inner_precise == 1:
        _require.missing("inner_precise", 1, "0, the precise mode")


def _check_inputs(request: WeightQuantRequest) -> None:
    x, weight = request.x, request.weight
    _require.dtype("x", x, "float16", "bfloat16")
    if weight.dtype == torch.float32:
        _require.missing("weight", "float32", "int8, or words of int4 in int32")
    _require.dtype("weight", weight, "int8", "int32")
    for argument, tensor in (("x", x), ("weight", weight)):
        if not tensor.numel():
            _require.refuse(argument, f"of shape {list(tensor.shape)}", "a tensor with elements")
    if max(request.weight_sizes) > _MAX_SIZE:
        given = f"of shape {list(weight.shape)}"
        _require.refuse("weight", given, f"K and N up to {_MAX_SIZE}", ErrorCode.TILING)
    if request.words and not (weight.is_contiguous() or weight.transpose(-1, -2).is_contiguous()):
        _require.refuse("weight", f"words with strides {weight.stride()}", "words without gaps, or their transpose")
    storage = format_of(weight)
    if storage == Format.FRACTAL_NZ:
        if active_profile().weight_quant_eager_nz == "rejected":
            _require.refuse("weight", "in FRACTAL_NZ", "ND outside of graphs")
        if request.words:
            _require.missing("weight", "int32 in FRACTAL_NZ", "words of int4 in ND")
        if request.quant_scale is not None:
            _require.refuse("quant_scale", "given", "None with a weight in FRACTAL_NZ")
    elif storage not in BASE_FORMATS | {Format.NCL}:
        _require.refuse("weight", f"in {storage.name}", "a base format or FRACTAL_NZ")


def _check_weight_scales(request: WeightQuantRequest) -> None:
    scale, offset = request.antiquant_scale, request.antiquant_offset
    if scale.dtype == torch.int64:
        _require.missing("antiquant_scale", "int64", f"the dtype of x, {dtype_name(request.x)}")
    _require.dtype("antiquant_scale", scale, dtype_name(request.x))
    n = request.weight_sizes[1]
    shapes, meaning = [[1], [1, 1], [n], [1, n]], "one, or one per column"
    if request.groups:
        shapes.append([request.groups, n])
        meaning += ", or one per column and group"
    _require.shape("antiquant_scale", scale, *shapes, meaning=meaning)
    if offset is not None:
        _require.dtype("antiquant_offset", offset, dtype_name(scale))
        _require.shape("antiquant_offset", offset, scale.shape, meaning="as antiquant_scale")


def _check_output_scales(request: WeightQuantRequest) -> None:
    scale, offset = request.quant_scale, request.quant_offset
    if scale is None:
        return
    _require.dtype("quant_scale", scale, "float32", "int64")
    _row("quant_scale", request, scale)
    if offset is not None:
        if scale.dtype == torch.int64:
            _require.missing(
                "quant_offset", "given with quant_scale int64", "an offset in the words, or beside float32"
            )
        _require.dtype("quant_offset", offset, "float32")
        _require.shape("quant_offset", offset, scale.shape, meaning="as quant_scale")


def _row(argument: str, request: WeightQuantRequest, tensor: Tensor) -> None:
    n = request.weight_sizes[1]
    _require.shape(argument, tensor, [1], [n], [1, n], meaning="one, or one per column")
