"""``npu_grouped_matmul_swiglu_quant`` in both versions: int8 rows in, gated and int8 again.

Sources: the documentation of both (DOC), the wheel's META rules, and vllm-ascend's copy of the kernel with its README
(SOURCE, ``csrc/gmm/grouped_matmul_swiglu_quant``). All between the sums and the result is float32. The first half of
the columns is activated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul import int4
from npudiff.device.simulator.grouped_matmul.groups import ENDS, check_group_list, read_groups
from npudiff.device.simulator.grouped_matmul.products import INT8_PRODUCT, integer_product
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npudiff.device.simulator.profiles import CannProfile


V1 = ArgumentChecks("npu_grouped_matmul_swiglu_quant", default=ErrorCode.PARAMETER)
V2 = ArgumentChecks("npu_grouped_matmul_swiglu_quant_v2", default=ErrorCode.PARAMETER)

_MAX_COLUMNS = 10240
_MAX_INNER = 65535
_MAX_INNER_OF_INT4 = 19999


@dataclass(frozen=True)
class SwigluRequest:
    """One call of either version."""

    check: ArgumentChecks
    """Of the version."""
    x: Tensor
    """int8 [M, K]."""
    weight: Tensor
    """int8 [E, K, N], or int32 [E, K, N / 8] with eight int4 each."""
    weight_scale: Tensor
    """[E, N], float32, float16 or bfloat16; for int4 int64 or uint64 with float32 in its lower half, [E, 1, N] or [E, K
    / 256, N]."""
    x_scale: Tensor
    """float32 [M]."""
    group_list: Tensor
    """int64 [E]."""
    group_list_type: int
    """0: ends. 1: counts."""
    assist: Tensor | None
    """float32 [E, N], for int4: ``8 * sum(w * scale)``."""
    assist_name: str
    """What the version calls it."""

    @property
    def columns(self) -> int:
        """N, which META takes from the scales."""
        return self.weight_scale.shape[-1]


def check_lists(x: Tensor, weight: Sequence[Tensor], weight_scale: Sequence[Tensor]) -> None:
    """Refuse what op-plugin refuses of version 2.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    wrapper = ErrorCode.WRAPPER
    for argument, tensors in (("weight", weight), ("weight_scale", weight_scale)):
        if len(tensors) != 1:
            raise V2.rejected(argument, f"of {len(tensors)} tensors", "1 tensor", wrapper)
    V2.rank("x", x, range(2, 9), code=wrapper)
    V2.rank("weight", weight[0], 3, code=wrapper)
    V2.rank("weight_scale", weight_scale[0], range(2, 9), code=wrapper)


def check(request: SwigluRequest, profile: CannProfile) -> Tensor:
    """Refuse what the operator refuses.

    Returns
    -------
    Tensor
        The scales of the weight: float32 [E, N], or [E, groups, N] with int4.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        int4 rows, int4 weights that are not contiguous.
    """
    check, x, weight = request.check, request.x, request.weight
    check.rank("x", x, 2)
    if x.dtype == torch.int32:
        raise check.not_simulated("x", "int32, which is int4 in eights", "int8")
    check.dtype("x", x, "int8")
    check.rank("weight", weight, 3)
    check.dtype("weight", weight, "int8", "int32")
    packed = weight.dtype == torch.int32
    experts, inner = len(weight), x.shape[1]
    width = request.columns // int4.PER_WORD if packed else request.columns
    check.shape("weight", weight, (experts, inner, width), meaning="[E, K, N], with K of x and N of weight_scale")
    if packed:
        check.simulated_contiguous("contiguous int4", weight=weight)
    if profile.gmm_swiglu_weight_format == "fractal_nz" and format_of(weight) is not Format.FRACTAL_NZ:
        raise check.rejected("weight", f"in format {format_of(weight).name}", "FRACTAL_NZ")
    most = _MAX_INNER_OF_INT4 if packed else _MAX_INNER
    if inner > most:
        raise check.rejected("x", f"of last axis {inner}", f"at most {most}", ErrorCode.TILING)
    if request.columns > _MAX_COLUMNS or request.columns % 2:
        given = f"of last axis {request.columns}"
        raise check.rejected("weight_scale", given, f"an even number up to {_MAX_COLUMNS}", ErrorCode.TILING)
    check.dtype("x_scale", request.x_scale, "float32")
    check.shape("x_scale", request.x_scale, (len(x),), meaning="[M]")
    check_group_list(check, request.group_list, request.group_list_type, experts)
    return _check_scales(request, profile, packed=packed)


def _check_scales(request: SwigluRequest, profile: CannProfile, *, packed: bool) -> Tensor:
    check, scale, experts = request.check, request.weight_scale, len(request.weight)
    if not packed:
        check.dtype("weight_scale", scale, *FLOATS)
        check.shape("weight_scale", scale, (experts, request.columns), meaning="[E, N]")
        if request.assist is not None:
            raise check.rejected(request.assist_name, "a tensor", "None, with weight of int8")
        return scale.float()
    if request.assist is None:
        raise check.rejected(request.assist_name, None, "float32 [E, N], with weight of int4")
    check.dtype(request.assist_name, request.assist, "float32")
    check.shape(request.assist_name, request.assist, (experts, request.columns), meaning="[E, N]")
    return int4.checked_scale(check, "weight_scale", scale, request.weight, profile)


_LARGEST = 127.0
_FLOAT32 = 6
_INT8 = 1


def swiglu_quant(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    *,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply, scale, gate and quantise the rows of each expert; group_list has ends.

    Parameters
    ----------
    x, weight, group_list, weight_scale, x_scale : Tensor
        As in :class:`SwigluRequest`.
    bias : Tensor, optional
        float32 [E, N], for int4 only, which need it: ``8 * sum(w * scale)``.
    offset : Tensor, optional
        None.

    Returns
    -------
    output : Tensor
        int8 [M, N / 2]. Rows behind the last group are not written, here and in scale.
    scale : Tensor
        float32 [M], the largest magnitude of each row over 127.
    offset : Tensor
        float32 [], not written.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    DeviceFault, UndefinedBehaviour
        Groups that are none.
    """
    if offset is not None:
        raise V1.rejected("offset", "a tensor", "None")
    request = SwigluRequest(V1, x, weight, weight_scale, x_scale, group_list, ENDS, bias, "bias")
    return *_run(request, active_profile()), unwritten((), torch.float32)


def swiglu_quant_meta(x: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    return *_allocate(x, weight_scale), x.new_empty((), dtype=torch.float32)


def swiglu_quant_v2(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    *,
    smooth_scale: Tensor | None = None,
    weight_assist_matrix: Sequence[Tensor] | None = None,
    bias: Tensor | None = None,
    dequant_mode: int | None = 0,
    dequant_dtype: int | None = _FLOAT32,
    quant_mode: int | None = 0,
    quant_dtype: int | None = _INT8,
    group_list_type: int | None = 0,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    weight_scale_dtype: int | None = None,
    x_scale_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do the same with arguments in another order, and lists of one tensor.

    Parameters
    ----------
    x, x_scale, group_list : Tensor
        As in :class:`SwigluRequest`.
    weight, weight_scale, weight_assist_matrix : sequence of Tensor
        Of length 1, as in :class:`SwigluRequest`; the last for int4 only, which need it.
    group_list_type : int, optional
        0: ends. 1: counts.
    dequant_mode, quant_mode : int, optional
        0.
    dequant_dtype, quant_dtype : int, optional
        6 and 1, float32 and int8; DOC has 0 for both.
    smooth_scale, bias, x_dtype, weight_dtype, weight_scale_dtype, x_scale_dtype
        None.

    Returns
    -------
    output : Tensor
        int8 [M, N / 2].
    scale : Tensor
        float32 [M].

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        smooth_scale, bias, int4 rows.
    DeviceFault, UndefinedBehaviour
        Groups that are none.
    """
    check_lists(x, weight, weight_scale)
    for argument, tensor in (("smooth_scale", smooth_scale), ("bias", bias)):
        if tensor is not None:
            raise V2.not_simulated(argument, "a tensor", "None")
    V2.choice("dequant_mode", dequant_mode or 0, (0,))
    V2.choice("quant_mode", quant_mode or 0, (0,))
    either = active_profile().gmm_swiglu_dtypes == "either"
    V2.choice("dequant_dtype", dequant_dtype or 0, (_FLOAT32, 0) if either else (_FLOAT32,), ErrorCode.WRAPPER)
    V2.choice("quant_dtype", quant_dtype or 0, (_INT8, 0) if either else (_INT8,), ErrorCode.WRAPPER)
    V2.choice("group_list_type", group_list_type or 0, (0, 1))
    dtypes = {"x_dtype": x_dtype, "weight_dtype": weight_dtype, "weight_scale_dtype": weight_scale_dtype}
    for argument, number in (dtypes | {"x_scale_dtype": x_scale_dtype}).items():
        if number is not None:
            raise V2.rejected(argument, number, "None: dtypes of Ascend 950 alone have it")
    assist = weight_assist_matrix or ()
    if len(assist) > 1:
        raise V2.rejected("weight_assist_matrix", f"of {len(assist)} tensors", "at most 1 tensor")
    matrix, name = assist[0] if assist else None, "weight_assist_matrix"
    request = SwigluRequest(V2, x, weight[0], weight_scale[0], x_scale, group_list, group_list_type or 0, matrix, name)
    return _run(request, active_profile())


def swiglu_quant_v2_meta(x: Tensor, weight: Sequence[Tensor], weight_scale: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after the checks of the host."""
    check_lists(x, weight, weight_scale)
    return _allocate(x, weight_scale[0])


def _allocate(x: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    shape = (len(x), weight_scale.shape[-1] // 2)
    return x.new_empty(shape, dtype=torch.int8), x.new_empty((len(x),), dtype=torch.float32)


def _run(request: SwigluRequest, profile: CannProfile) -> tuple[Tensor, Tensor]:
    scale = check(request, profile)
    rows, experts = len(request.x), len(request.weight)
    output = unwritten((rows, request.columns // 2), torch.int8)
    output_scale = unwritten((rows,), torch.float32)
    groups = read_groups(request.check, request.group_list, request.group_list_type, experts, rows)
    for expert, start, stop in groups:
        x, by_row = request.x[start:stop], request.x_scale[start:stop].unsqueeze(1)
        if request.assist is None:
            sums = integer_product(x, request.weight[expert], INT8_PRODUCT).float()
            values = sums * by_row * scale[expert]
        else:
            values = (
                int4.dequantised(x, request.weight[expert], scale[expert], request.assist[expert], profile) * by_row
            )
        output[start:stop], output_scale[start:stop] = _quantised(_gated(values))
    return output, output_scale


def _gated(values: Tensor) -> Tensor:
    """Return silu of the first half times the second half."""
    first, second = values.chunk(2, -1)
    return first / (1.0 + (-first).exp()) * second


def _quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 and the scale of each row. SOURCE: times the reciprocal, to float16, to int8, each half to even."""
    scale = values.abs().amax(-1) / _LARGEST
    quotient = (values * (1.0 / scale).unsqueeze(-1)).half().float()
    # A row of zeros is 0 times infinity; that NaN becomes 0 is inferred.
    return quotient.round().nan_to_num(0.0).clamp(-128, 127).to(torch.int8), scale
