"""``npu_grouped_matmul_finalize_routing``: products of experts' rows, weighted and added to their tokens' rows.

Sources: its documentation (DOC), op-plugin's host checks, the wheel's META rules and the expected values of op-plugin's
tests. All is float32 behind the sums of integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul import int4
from npudiff.device.simulator.grouped_matmul.groups import check_group_list, read_groups
from npudiff.device.simulator.grouped_matmul.products import INT8_PRODUCT, integer_product
from npudiff.device.simulator.grouped_matmul.tiled_weights import check_whole_tiles
from npudiff.device.simulator.profiles import CannProfile, active_profile

_CHECK = ArgumentChecks("npu_grouped_matmul_finalize_routing", default=ErrorCode.PARAMETER)
_OF_950 = ("x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype")
_FACTORS = ("scale", "pertoken_scale", "logit", "row_index")


@dataclass(frozen=True)
class FinalizeRequest:
    """One call. Names and defaults are those of the schema."""

    x: Tensor
    """int8 [M, K], rows sorted by expert."""
    w: Tensor
    """int8 [E, K, N], or int32 [E, K, N / 8] with eight int4 each."""
    group_list: Tensor
    """int64 [E]."""
    scale: Tensor | None = None
    """[E, N], float32 or bfloat16; for int4 as in :func:`int4.checked_scale`."""
    bias: Tensor | None = None
    """float32 [E, N], for int4 only, which need it: ``8 * sum(w * scale)``."""
    offset: Tensor | None = None
    """float32 [E, groups, N], for int4 only: what each row of the weight's group is more, scale included."""
    pertoken_scale: Tensor | None = None
    """float32 [M]; ones if it is not given."""
    shared_input: Tensor | None = None
    """bfloat16 [L, N], added to L rows of the output from ``shared_input_offset`` on."""
    logit: Tensor | None = None
    """float32 [M], the weights of the rows."""
    row_index: Tensor | None = None
    """int64 or int32 [M], the tokens of the rows."""
    dtype: torch.dtype | None = None
    """float32."""
    shared_input_weight: float = 1.0
    """What shared_input is multiplied by."""
    shared_input_offset: int = 0
    """Its first row."""
    output_bs: int = 0
    """Rows of the output; 0 means M."""
    group_list_type: int = 1
    """0: ends. 1: counts, the default."""
    tuning_config: object = None
    x_dtype: int | None = None
    w_dtype: int | None = None
    scale_dtype: int | None = None
    pertoken_scale_dtype: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the output."""
        columns = self.w.shape[-1] * (int4.PER_WORD if self.w.dtype == torch.int32 else 1)
        return self.output_bs or len(self.x), columns


@dataclass(frozen=True)
class _Factors:
    """What the sums are multiplied by: float32 [E, (groups,) N], [M], [M], and int64 [M] of tokens."""

    scale: Tensor
    by_row: Tensor
    logit: Tensor
    tokens: Tensor


def finalize_routing(request: FinalizeRequest) -> Tensor:
    """Return ``out[row_index[r]] += logit[r] * (x[r] @ w[e]) * scale[e] * pertoken_scale[r]`` over all rows r.

    Rows behind the last group are left out. The arguments are those of :class:`FinalizeRequest`.

    Returns
    -------
    Tensor
        float32 [output_bs or M, N], which begins with zeros and shared_input.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        bias with int8 weights; a call without scale, logit or row_index.
    DeviceFault, UndefinedBehaviour
        Groups or tokens that are none.
    """
    profile = active_profile()
    factors = _check(request, profile)
    groups = read_groups(_CHECK, request.group_list, request.group_list_type, len(request.w), len(request.x))
    used = groups[-1].stop if groups else 0
    _CHECK.indices("row_index", factors.tokens[:used], request.shape[0], "rows of the output")
    output = torch.zeros(request.shape)
    if profile.gmm_finalize_order == "shared_first":
        _add_shared(request, output)
    for expert, start, stop in groups:
        values = _products(request, factors, expert, slice(start, stop), profile)
        output.index_add_(0, factors.tokens[start:stop], values)
    if profile.gmm_finalize_order == "shared_last":
        _add_shared(request, output)
    return output


def finalize_routing_meta(request: FinalizeRequest) -> Tensor:
    """Allocate the output, after the checks of the host."""
    _check_host(request)
    return request.x.new_empty(request.shape, dtype=torch.float32)


def normalise(**arguments: Any) -> FinalizeRequest:  # noqa: ANN401 - those of the schema
    """Return the arguments of a call; None counts as not given."""
    return FinalizeRequest(**{name: value for name, value in arguments.items() if value is not None})


def _products(request: FinalizeRequest, factors: _Factors, expert: int, rows: slice, profile: CannProfile) -> Tensor:
    """Return what some rows of an expert add, float32 [rows, N]."""
    x, scale = request.x[rows], factors.scale[expert]
    if request.bias is None:
        values = integer_product(x, request.w[expert], INT8_PRODUCT).float() * scale
    else:
        values = int4.dequantised(x, request.w[expert], scale, request.bias[expert], profile)
        if request.offset is not None:
            values += int4.shifted(x, request.offset[expert])
    return values * factors.by_row[rows].unsqueeze(1) * factors.logit[rows].unsqueeze(1)


def _add_shared(request: FinalizeRequest, output: Tensor) -> None:
    if request.shared_input is not None:
        first = request.shared_input_offset
        shared = request.shared_input.float() * request.shared_input_weight
        output[first : first + len(shared)] += shared


def _check_host(request: FinalizeRequest) -> None:
    wrapper = ErrorCode.WRAPPER
    _CHECK.choice("group_list_type", request.group_list_type, (0, 1), wrapper)
    _CHECK.rank("x", request.x, 2, code=wrapper)
    _CHECK.rank("w", request.w, 3, code=wrapper)
    if request.dtype not in (None, torch.float32):
        raise _CHECK.rejected("dtype", str(request.dtype), "torch.float32", wrapper)


def _check(request: FinalizeRequest, profile: CannProfile) -> _Factors:
    """Refuse what the operator refuses and what is not simulated, and return what sums are multiplied by."""
    _check_host(request)
    for argument in _OF_950:
        if getattr(request, argument) is not None:
            raise _CHECK.rejected(argument, getattr(request, argument), "None: dtypes of Ascend 950 alone have it")
    _CHECK.dtype("x", request.x, "int8")
    _CHECK.dtype("w", request.w, "int8", "int32")
    shape = (len(request.w), request.x.shape[1], request.w.shape[2])
    _CHECK.shape("w", request.w, shape, meaning="[E, K, N], the inner axis of x")
    check_whole_tiles(_CHECK, "w", request.w)
    check_group_list(_CHECK, request.group_list, request.group_list_type, len(request.w))
    scale, by_row, logit, tokens = (getattr(request, argument) for argument in _FACTORS)
    if by_row is None:
        by_row = torch.ones(len(request.x))
    for argument, tensor in zip(_FACTORS, (scale, by_row, logit, tokens), strict=True):
        if tensor is None:
            raise _CHECK.not_simulated(argument, None, "a tensor")
        if argument != "scale":
            _CHECK.dtype(argument, tensor, *(("int64", "int32") if argument == "row_index" else ("float32",)))
            _CHECK.shape(argument, tensor, (len(request.x),), meaning="[M]")
    _check_shared(request)
    return _Factors(_check_scale(request, scale, profile), by_row, logit, tokens.long())


def _check_scale(request: FinalizeRequest, scale: Tensor, profile: CannProfile) -> Tensor:
    """Return the scales of the weight in float32, after the checks of scale and bias."""
    shape = (len(request.w), request.shape[1])
    if request.w.dtype == torch.int8:
        if request.offset is not None:
            raise _CHECK.rejected("offset", "a tensor with w of int8", "None; w of int4 has it")
        if request.bias is not None:
            raise _CHECK.not_simulated("bias", "a tensor with w of int8", "None")
        _CHECK.dtype("scale", scale, "float32", "bfloat16")
        _CHECK.shape("scale", scale, shape, meaning="[E, N]")
        return scale.float()
    _CHECK.simulated_contiguous("contiguous int4", w=request.w)
    if request.bias is None:
        raise _CHECK.rejected("bias", None, "float32 [E, N], with w of int4")
    _CHECK.dtype("bias", request.bias, "float32")
    _CHECK.shape("bias", request.bias, shape, meaning="[E, N]")
    scales = int4.checked_scale(_CHECK, "scale", scale, request.w, profile)
    if request.offset is not None:
        _CHECK.dtype("offset", request.offset, "float32")
        _CHECK.shape("offset", request.offset, scales.shape, meaning="[E, groups, N], as scale")
        _CHECK.contiguous(offset=request.offset)
    return scales


def _check_shared(request: FinalizeRequest) -> None:
    shared, rows = request.shared_input, request.shape[0]
    if shared is None:
        return
    _CHECK.dtype("shared_input", shared, "bfloat16")
    _CHECK.rank("shared_input", shared, 2)
    _CHECK.shape("shared_input", shared, (len(shared), request.shape[1]), meaning="[L, N]")
    most = rows - len(shared)
    if not 0 <= request.shared_input_offset <= most:
        allowed = f"0 to {most}: {len(shared)} rows of {rows}"
        raise _CHECK.rejected("shared_input_offset", request.shared_input_offset, allowed, ErrorCode.TILING)
