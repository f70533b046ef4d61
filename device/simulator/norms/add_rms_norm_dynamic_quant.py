"""``npu_add_rms_norm_dynamic_quant``: a sum, its norm, and one or two forms of it in integers, with a scale per row.

Sources: op-plugin's documentation and checks, the wheel's META rule, and CANN's ``add_rms_norm_dynamic_quant`` (ops-nn:
checks of ``aclnnAddRmsNormDynamicQuantV2``, kernel for A2 and A3, which is float32 from the sum to the integers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.rms import reciprocal_root
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.dynamic_quant import scaled_by_row
from npudiff.device.simulator.quantisation.integers import INT4, INT8, PER_WORD, packed

_CHECK = ArgumentChecks("npu_add_rms_norm_dynamic_quant", default=ErrorCode.PARAMETER)

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DynamicQuantRequest:
    """One call, with the names of the schema."""

    x1: Tensor
    """float16 or bfloat16, rank 2 to 8, not empty."""
    x2: Tensor
    """Shape and dtype of x1."""
    gamma: Tensor
    """[H], dtype of x1, as are the three below, which are optional."""
    smooth_scale1: Tensor | None
    smooth_scale2: Tensor | None
    """Factors of the norm, for the first and the second pair of outputs."""
    beta: Tensor | None
    """Added to the norm."""
    epsilon: float
    """Added to the mean of squares."""
    output_mask: Sequence[bool] | None
    """Which pairs are wanted. None: the first, and the second with both smooth scales."""
    y_dtype: int | None
    """ScalarType: int8, which is the default, or quint4x2."""

    @property
    def wanted(self) -> tuple[bool, bool]:
        """Which of both pairs of outputs are wanted.

        Raises
        ------
        OperatorRejected
            output_mask wants none.
        """
        if self.output_mask is None:
            return True, self.smooth_scale1 is not None and self.smooth_scale2 is not None
        first, second = self.output_mask
        if not first and not second:
            words = "When the output_mask is not empty, at least one of y1 and y2 must be output. "
            raise _CHECK.rejected("output_mask", [first, second], "one True or two", ErrorCode.WRAPPER, words)
        return first, second

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of a quantised output."""
        if self.y_dtype not in (types.QUINT4X2, types.NPU_INT4):
            return tuple(self.x1.shape)
        if self.x1.shape[-1] % PER_WORD:
            words = "The last dim input shape must be divisible by 8 if y dtype is torch_npu.int4 or torch.quint4x2"
            given = f"of shape {list(self.x1.shape)} with y_dtype {self.y_dtype}"
            raise _CHECK.rejected("x1", given, f"a multiple of {PER_WORD}", ErrorCode.WRAPPER, words)
        return *self.x1.shape[:-1], self.x1.shape[-1] // PER_WORD


def add_rms_norm_dynamic_quant(request: DynamicQuantRequest) -> Outputs:
    """Add two tensors, normalise the sum, and quantise its rows.

    Returns
    -------
    y1, y2 : Tensor
        int8 in the shape of x1, or int32 with eight integers of 4 bits in a word. [] if not wanted, unwritten.
    x : Tensor
        The sum, in the dtype of x1; the norm is of the sum before it is rounded.
    scale1, scale2 : Tensor
        float32, the shape of x1 without its last axis: ``1 / (127 / max)``. [] if not wanted, unwritten.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or mask is not one of the above, or a smooth scale is given for a pair that is not wanted.
    NotSimulated
        Another y_dtype: the others are of Ascend 950.
    """
    wanted = request.wanted
    _check(request, wanted)
    total = request.x1.float() + request.x2.float()
    y = total * reciprocal_root(total * total, 1, request.epsilon, scale_first=False) * request.gamma.float()
    if request.beta is not None:
        y = y + request.beta.float()
    pairs = [
        _pair(request, y if smooth is None else y * smooth.float(), wanted=one)
        for one, smooth in zip(wanted, (request.smooth_scale1, request.smooth_scale2), strict=True)
    ]
    return pairs[0][0], pairs[1][0], total.to(request.x1.dtype), pairs[0][1], pairs[1][1]


def add_rms_norm_dynamic_quant_meta(request: DynamicQuantRequest) -> Outputs:
    """Allocate the outputs; what is not wanted is empty here, as in torch_npu's META, and [] where it runs."""
    shape, x = request.y_shape, request.x1
    dtype = torch.int8 if shape == tuple(x.shape) else torch.int32
    wanted = request.wanted
    y = [x.new_empty(shape if one else (0,), dtype=dtype) for one in wanted]
    scale = [x.new_empty(x.shape[:-1] if one else (0,), dtype=torch.float32) for one in wanted]
    return y[0], y[1], x.new_empty(x.shape), scale[0], scale[1]


def _pair(request: DynamicQuantRequest, values: Tensor, *, wanted: bool) -> tuple[Tensor, Tensor]:
    words = request.y_shape != tuple(request.x1.shape)
    if not wanted:
        return unwritten((), torch.int32 if words else torch.int8), unwritten((), torch.float32)
    integers, scale = scaled_by_row(values, INT4 if words else INT8)
    return packed(integers) if words else integers, scale


def _check(request: DynamicQuantRequest, wanted: tuple[bool, bool]) -> None:
    wrapper, x1 = ErrorCode.WRAPPER, request.x1
    for argument, tensor in (("x1", x1), ("x2", request.x2)):
        if not 2 <= tensor.dim() <= 8:
            given = f"of rank {tensor.dim()}, {list(tensor.shape)}"
            raise _CHECK.rejected(argument, given, "rank 2 to 8", wrapper, f"The {argument} should be in 2~8D")
    if x1.shape != request.x2.shape:
        words = "The shape of x1 and x2 must be the same"
        raise _CHECK.rejected("x2", f"of shape {list(request.x2.shape)}", f"{list(x1.shape)}, as x1", wrapper, words)
    if request.y_dtype not in (None, types.INT8, types.QUINT4X2, types.NPU_INT4):
        simulated = f"None, {types.INT8} (torch.int8), {types.QUINT4X2} (torch.quint4x2) or {types.NPU_INT4}"
        raise _CHECK.not_simulated("y_dtype", request.y_dtype, simulated)
    _CHECK.dtype("x1", x1, "float16", "bfloat16")
    _CHECK.not_empty("x1", x1)
    _check_rows(request)
    for number, one in enumerate(wanted, 1):
        if getattr(request, f"smooth_scale{number}") is not None and not one:
            allowed = f"None where pair {number} is not wanted, with output_mask {request.output_mask}"
            raise _CHECK.rejected(f"smooth_scale{number}", "given", allowed)


def _check_rows(request: DynamicQuantRequest) -> None:
    for argument in ("x2", "gamma", "smooth_scale1", "smooth_scale2", "beta"):
        tensor = getattr(request, argument)
        if tensor is not None:
            _CHECK.same_dtype(argument, tensor, "x1", request.x1)
            if argument != "x2":
                _CHECK.shape(argument, tensor, request.x1.shape[-1:], meaning="the last axis of x1")
