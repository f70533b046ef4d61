"""``npu_weight_quant_batchmatmul``: a product with a weight of integers, which are made floats first.

Sources: op-plugin's checks (ERR01003) and the golden of its test, the wheel's documentation of the operator and its
META rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded, encoded
from npudiff.device.simulator.quantisation.integers import INT8, PER_WORD, saturated, unpacked

_CHECK = ArgumentChecks("npu_weight_quant_batchmatmul", default=ErrorCode.PARAMETER)

_GROUP_STEP = 32
_WORD_ROWS, _WORD_STEP = 96, 64
_MAX_SIZE = 65535


@dataclass(frozen=True)
class WeightQuantRequest:
    """One call. Names are those of the schema."""

    x: Tensor
    """[..., M, K], float16 or bfloat16."""
    weight: Tensor
    """[..., K, N], int8; or int32 with eight integers of 4 bits in a word, [..., K, N / 8] without gaps or a transposed
    [..., N, K / 8]. Batch axes are those of x, or one of both has none."""
    antiquant_scale: Tensor
    """The dtype of x: [1] or [1, 1]; [N] or [1, N]; with groups also [ceil(K / group size), N]. Or int64 of
    npu_trans_quant_param, [N] or [1, N], with float16 x of up to 96 rows and a transposed int8 weight [K, N], K and N
    multiples of 64."""
    antiquant_offset: Tensor | None
    """Shape and dtype of antiquant_scale; int32 beside int64."""
    quant_scale: Tensor | None
    """float32, of which 19 bits count, or int64 of npu_trans_quant_param; [1], [N] or [1, N]."""
    quant_offset: Tensor | None
    """float32, the shape of quant_scale; an integer of 9 bits is made of it."""
    bias: Tensor | None
    """float16 for float16, float32 for bfloat16; [1], [N] or [1, N]."""
    antiquant_group_size: int
    """0, or a multiple of 32 below K: how many rows of the weight have a scale together."""
    inner_precise: int
    """0."""
    weight_dtype: int | None
    """An option of Ascend 950."""

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
                raise _CHECK.rejected(argument, f"of rank {tensor.dim()}", "rank 2 or more", code)
        given = f"of shape {list(weight.shape)} for x of shape {list(x.shape)}"
        if x.dim() > 2 and weight.dim() > 2 and x.shape[:-2] != weight.shape[:-2]:
            raise _CHECK.rejected("weight", given, "the batch axes of x, or none", code)
        k, n = self.weight_sizes
        if k != x.shape[-1]:
            what = f", of which K is {k} in words of int4" if self.words else ""
            raise _CHECK.rejected("weight", given + what, f"K of {x.shape[-1]}", code)
        longer = x if x.dim() >= weight.dim() else weight
        return [*longer.shape[:-2], x.shape[-2], n]


def _check(request: WeightQuantRequest) -> None:
    """Refuse what the operator refuses, and what is not simulated."""
    if request.weight_dtype is not None:
        raise _CHECK.not_simulated("weight_dtype", request.weight_dtype, "None; others are for Ascend 950")
    request.output_shape()
    _check_attributes(request)
    _check_inputs(request)
    _check_weight_scales(request)
    _check_output_scales(request)
    if request.bias is not None:
        _CHECK.dtype("bias", request.bias, "float16" if request.x.dtype == torch.float16 else "float32")
        _row("bias", request, request.bias)


def _check_attributes(request: WeightQuantRequest) -> None:
    size, k = request.antiquant_group_size, request.weight_sizes[0]
    if size and (size % _GROUP_STEP or not _GROUP_STEP <= size <= k - 1):
        allowed = f"0 or a multiple of {_GROUP_STEP} from {_GROUP_STEP} to {k - 1}"
        raise _CHECK.rejected("antiquant_group_size", size, allowed, ErrorCode.WRAPPER)
    if request.quant_offset is not None and request.quant_scale is None:
        raise _CHECK.rejected("quant_offset", "given", "None without quant_scale", ErrorCode.WRAPPER)
    _CHECK.choice("inner_precise", request.inner_precise, (0, 1), ErrorCode.WRAPPER)
    if request.inner_precise == 1:
        raise _CHECK.not_simulated("inner_precise", 1, "0, the precise mode")


def _check_inputs(request: WeightQuantRequest) -> None:
    x, weight = request.x, request.weight
    _CHECK.dtype("x", x, "float16", "bfloat16")
    if weight.dtype == torch.float32:
        raise _CHECK.not_simulated("weight", "float32", "int8, or words of int4 in int32")
    _CHECK.dtype("weight", weight, "int8", "int32")
    for argument, tensor in (("x", x), ("weight", weight)):
        _CHECK.not_empty(argument, tensor)
    if max(request.weight_sizes) > _MAX_SIZE:
        given = f"of shape {list(weight.shape)}"
        raise _CHECK.rejected("weight", given, f"K and N up to {_MAX_SIZE}", ErrorCode.TILING)
    if request.words and not (weight.is_contiguous() or weight.transpose(-1, -2).is_contiguous()):
        raise _CHECK.rejected(
            "weight", f"words with strides {weight.stride()}", "words without gaps, or their transpose"
        )
    storage = format_of(weight)
    if storage == Format.FRACTAL_NZ:
        if active_profile().weight_quant_eager_nz == "rejected":
            raise _CHECK.rejected("weight", "in FRACTAL_NZ", "ND outside of graphs")
        if request.words:
            raise _CHECK.not_simulated("weight", "int32 in FRACTAL_NZ", "words of int4 in ND")
        if request.quant_scale is not None:
            raise _CHECK.rejected("quant_scale", "given", "None with a weight in FRACTAL_NZ")
    elif storage not in BASE_FORMATS | {Format.NCL}:
        raise _CHECK.rejected("weight", f"in {storage.name}", "a base format or FRACTAL_NZ")


def _check_weight_scales(request: WeightQuantRequest) -> None:
    scale, offset = request.antiquant_scale, request.antiquant_offset
    if scale.dtype == torch.int64:
        _check_word_scales(request)
        return
    _CHECK.dtype("antiquant_scale", scale, dtype_name(request.x))
    n = request.weight_sizes[1]
    shapes, meaning = [[1], [1, 1], [n], [1, n]], "one, or one per column"
    if request.groups:
        shapes.append([request.groups, n])
        meaning += ", or one per column and group"
    _CHECK.shape("antiquant_scale", scale, *shapes, meaning=meaning)
    if offset is not None:
        _CHECK.dtype("antiquant_offset", offset, dtype_name(scale))
        _CHECK.shape("antiquant_offset", offset, scale.shape, meaning="as antiquant_scale")


def _check_word_scales(request: WeightQuantRequest) -> None:
    """DOC's constraints of antiquant_scale int64."""
    x, weight, (k, n) = request.x, request.weight, request.weight_sizes
    why = "with antiquant_scale int64"
    if x.dtype != torch.float16:
        raise _CHECK.rejected("x", dtype_name(x), f"float16, {why}")
    if weight.dtype != torch.int8:
        raise _CHECK.rejected("weight", dtype_name(weight), f"int8, {why}")
    for argument, tensor in (("x", x), ("weight", weight)):
        _CHECK.rank(argument, tensor, 2)
    _CHECK.between("M of x", len(x), 1, _WORD_ROWS, ErrorCode.TILING)
    _CHECK.contiguous(x=x)
    if format_of(weight) == Format.FRACTAL_NZ or not weight.t().is_contiguous():
        raise _CHECK.rejected("weight", f"of strides {weight.stride()}", f"a transposed [N, K] in ND, {why}")
    if k % _WORD_STEP or n % _WORD_STEP:
        raise _CHECK.rejected("weight", f"of shape {[k, n]}", f"multiples of {_WORD_STEP}, {why}", ErrorCode.TILING)
    for argument in ("quant_scale", "quant_offset", "antiquant_group_size"):
        given = getattr(request, argument)
        if isinstance(given, Tensor) or given:
            raise _CHECK.rejected(argument, "given", f"None, {why}")
    _CHECK.shape("antiquant_scale", request.antiquant_scale, [n], [1, n], meaning="one per column")
    if request.antiquant_offset is not None:
        _CHECK.dtype("antiquant_offset", request.antiquant_offset, "int32")
        _CHECK.shape(
            "antiquant_offset", request.antiquant_offset, request.antiquant_scale.shape, meaning="as its scale"
        )


def _check_output_scales(request: WeightQuantRequest) -> None:
    scale, offset = request.quant_scale, request.quant_offset
    if scale is None:
        return
    _CHECK.dtype("quant_scale", scale, "float32", "int64")
    _row("quant_scale", request, scale)
    if offset is not None:
        if scale.dtype == torch.int64:
            raise _CHECK.not_simulated(
                "quant_offset", "given with quant_scale int64", "an offset in the words, or beside float32"
            )
        _CHECK.dtype("quant_offset", offset, "float32")
        _CHECK.shape("quant_offset", offset, scale.shape, meaning="as quant_scale")


def _row(argument: str, request: WeightQuantRequest, tensor: Tensor) -> None:
    n = request.weight_sizes[1]
    _CHECK.shape(argument, tensor, [1], [n], [1, n], meaning="one, or one per column")


def weight_quant_batchmatmul(request: WeightQuantRequest) -> Tensor:
    """Return ``x @ ((weight + antiquant_offset) * antiquant_scale) + bias``, or integers of it.

    Returns
    -------
    Tensor
        [..., M, N] in the dtype of x, or int8 with quant_scale: ``round(y * quant_scale + quant_offset)``. The weight
        is rounded to the dtype of x; the product, the bias and the last scale are float32. Scales of int64 multiply
        the sums.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, format or attribute is not one of the above.
    NotSimulated
        Words of int4 in FRACTAL_NZ, inner_precise 1, an option of Ascend 950.
    """
    _check(request)
    if request.antiquant_scale.dtype == torch.int64:
        values = _scaled_sums(request)
    else:
        values = request.x.float() @ _dequantised(request).float()
    if request.bias is not None:
        values = values + request.bias.float()
    if request.quant_scale is None:
        return values.to(request.x.dtype)
    return _quantised(values, request.quant_scale, request.quant_offset)


def weight_quant_batchmatmul_meta(request: WeightQuantRequest) -> Tensor:
    """Allocate the output in the shape that eager gives; torch_npu's META has only that of two axes."""
    dtype = request.x.dtype if request.quant_scale is None else torch.int8
    return request.x.new_empty(request.output_shape(), dtype=dtype)


def _scaled_sums(request: WeightQuantRequest) -> Tensor:
    """Scale the sums on their way out of the matrix unit, for which such words are (inferred), or the weight."""
    weight = request.weight.to(torch.float16)
    if request.antiquant_offset is not None:
        weight = weight + request.antiquant_offset.to(torch.float16)
    scale, _ = decoded(request.antiquant_scale)
    if active_profile().weight_quant_word_scales == "weight":
        return request.x.float() @ (weight.float() * scale).to(torch.float16).float()
    return request.x.float() @ weight.float() * scale


def _dequantised(request: WeightQuantRequest) -> Tensor:
    """Return the weight in the dtype of x."""
    dtype = request.x.dtype
    arithmetic = dtype if active_profile().weight_quant_dequantised == "rounded_twice" else torch.float32
    values = request.integers().to(arithmetic)
    if request.antiquant_offset is not None:
        values = values + _of_rows(request, request.antiquant_offset).to(arithmetic)
    return (values * _of_rows(request, request.antiquant_scale).to(arithmetic)).to(dtype)


def _of_rows(request: WeightQuantRequest, tensor: Tensor) -> Tensor:
    """Return what broadcasts over [K, N]: a row of a tensor for each row of the weight, where there are groups."""
    if request.groups < 2 or tensor.dim() < 2 or len(tensor) == 1:
        return tensor
    k = request.weight_sizes[0]
    return tensor.repeat_interleave(request.antiquant_group_size, 0)[:k]


def _quantised(values: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    words = scale if scale.dtype == torch.int64 else encoded(scale, offset)
    factor, summand = decoded(words)
    return saturated(values * factor + summand, INT8, torch.int8)
