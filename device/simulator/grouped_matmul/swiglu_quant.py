"""``npu_grouped_matmul_swiglu_quant`` in both versions: int8 or int4 rows in, gated and int8 out.

Sources: the documentation of both (DOC), the wheel's META rules, and vllm-ascend's copies of both kernels with their
host code (SOURCE, ``csrc/gmm/grouped_matmul_swiglu_quant`` and ``..._v2``). Between the products and the result all is
float32. The first half of the columns is activated.
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
from npudiff.device.simulator.grouped_matmul.products import INT4_PRODUCT, INT8_PRODUCT, integer_product
from npudiff.device.simulator.grouped_matmul.tiled_weights import TILED_RANK, matrices
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
    """int8 [M, K], or int32 [M, K / 8] with eight int4 each."""
    weight: Tensor
    """int8 [E, K, N], or int32 [E, K, N / 8] with eight int4 each, which int4 rows need; or the tiles of either."""
    weight_scale: Tensor
    """[E, N], float32, float16 or bfloat16; for int4 int64 or uint64 with float32 in its lower half, and for int8 rows
    and int4 also [E, groups, N] with groups that divide K."""
    x_scale: Tensor
    """float32 [M]."""
    group_list: Tensor
    """int64 [E]."""
    group_list_type: int
    """0: ends. 1: counts."""
    assist: Tensor | None
    """float32 [E, N], for int8 rows and int4: ``8 * sum(w * scale)``."""
    assist_name: str
    """What the version calls it."""
    smooth: Tensor | None = None
    """float32 [E, N / 2] or [E], for int4 rows: multiplies what is gated."""
    grouped: bool | None = None
    """Whether the scales have groups; None where their rank says so."""

    @property
    def columns(self) -> int:
        """N, which META takes from the scales."""
        return self.weight_scale.shape[-1]

    @property
    def inner(self) -> int:
        """K."""
        return self.x.shape[1] * (int4.PER_WORD if self.has_int4_rows else 1)

    @property
    def has_int4_rows(self) -> bool:
        """Whether x is int4."""
        return self.x.dtype == torch.int32

    @property
    def has_int4_weights(self) -> bool:
        """Whether the weights are int4."""
        return self.weight.dtype == torch.int32


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
    V2.rank("weight", weight[0], (3, TILED_RANK), code=wrapper)
    V2.rank("weight_scale", weight_scale[0], range(2, 9), code=wrapper)


def check(request: SwigluRequest, profile: CannProfile) -> tuple[Tensor, Tensor]:
    """Refuse what the operator refuses.

    Returns
    -------
    weight : Tensor
        As it was given, or of tiles the matrices in them.
    scale : Tensor
        Of the weight: float32 [E, N], or [E, groups, N] of int8 rows and int4.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        int4 weights that are not contiguous.
    """
    check, x = request.check, request.x
    check.rank("x", x, 2)
    check.dtype("x", x, "int8", "int32")
    check.rank("weight", request.weight, (3, TILED_RANK))
    check.dtype("weight", request.weight, *(("int32",) if request.has_int4_rows else ("int8", "int32")))
    packed = request.has_int4_weights
    weight = matrices(check, "weight", request.weight)
    width = request.columns // int4.PER_WORD if packed else request.columns
    meaning = "[E, K, N], with K of x and N of weight_scale"
    check.shape("weight", weight, (len(weight), request.inner, width), meaning=meaning)
    if packed:
        check.simulated_contiguous("contiguous int4", weight=weight)
    tiled = request.weight.dim() == TILED_RANK or format_of(request.weight) is Format.FRACTAL_NZ
    if profile.gmm_swiglu_weight_format == "fractal_nz" and not (tiled or packed):
        raise check.rejected("weight", f"in format {format_of(weight).name}", "FRACTAL_NZ")
    most = _MAX_INNER_OF_INT4 if packed else _MAX_INNER
    if request.inner > most:
        raise check.rejected("x", f"of last axis {request.inner}", f"at most {most}", ErrorCode.TILING)
    if request.columns > _MAX_COLUMNS or request.columns % 2:
        given = f"of last axis {request.columns}"
        raise check.rejected("weight_scale", given, f"an even number up to {_MAX_COLUMNS}", ErrorCode.TILING)
    check.dtype("x_scale", request.x_scale, "float32")
    check.shape("x_scale", request.x_scale, (len(x),), meaning="[M]")
    check_group_list(check, request.group_list, request.group_list_type, len(weight))
    _check_smooth(request)
    return weight, _check_scales(request, profile)


def _check_smooth(request: SwigluRequest) -> None:
    check, smooth, experts = request.check, request.smooth, len(request.weight)
    if smooth is None:
        return
    if not request.has_int4_rows:
        raise check.rejected("smooth_scale", "a tensor", "None, with x of int8")
    check.dtype("smooth_scale", smooth, "float32")
    check.shape("smooth_scale", smooth, (experts, request.columns // 2), (experts,), meaning="[E, N / 2] or [E]")


def _check_scales(request: SwigluRequest, profile: CannProfile) -> Tensor:
    check, scale, experts = request.check, request.weight_scale, len(request.weight)
    if request.has_int4_rows or not request.has_int4_weights:
        names = _scales_of_int4_rows(profile) if request.has_int4_rows else FLOATS
        check.dtype("weight_scale", scale, *names)
        check.shape("weight_scale", scale, (experts, request.columns), meaning="[E, N]")
        if request.grouped:
            allowed = "0: scales per group are for int8 x and int4 weights"
            raise check.rejected("dequant_mode", 1, allowed, ErrorCode.PARAMETER)
        if request.assist is not None:
            why = "x of int4" if request.has_int4_rows else "weight of int8"
            raise check.rejected(request.assist_name, "a tensor", f"None, with {why}")
        return int4.scale_from_bits(scale) if int4.are_bits(scale) else scale.float()
    if request.assist is None:
        raise check.rejected(request.assist_name, None, "float32 [E, N], with weight of int4")
    check.dtype(request.assist_name, request.assist, "float32")
    check.shape(request.assist_name, request.assist, (experts, request.columns), meaning="[E, N]")
    ranks = {None: (2, 3), False: (2,), True: (3,)}[request.grouped]
    return int4.grouped_scale(check, "weight_scale", scale, (experts, request.inner, request.columns), ranks)


def _scales_of_int4_rows(profile: CannProfile) -> tuple[str, ...]:
    bits = ("int64", "uint64")
    return bits if profile.gmm_swiglu_a4w4_scales == "bits" else (*bits, "float32")


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
    V1.dtype("x", x, "int8")
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
        Of length 1, as in :class:`SwigluRequest`; the last for int8 rows and int4 only, which need it.
    smooth_scale : Tensor, optional
        As in :class:`SwigluRequest`.
    group_list_type : int, optional
        0: ends. 1: counts.
    dequant_mode : int, optional
        0: a scale for each column of the weight. 1: one for each group of rows in it, too.
    quant_mode : int, optional
        0.
    dequant_dtype, quant_dtype : int, optional
        6 and 1, float32 and int8; DOC has 0 for both.
    bias, x_dtype, weight_dtype, weight_scale_dtype, x_scale_dtype
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
        bias.
    DeviceFault, UndefinedBehaviour
        Groups that are none.
    """
    check_lists(x, weight, weight_scale)
    if bias is not None:
        raise V2.not_simulated("bias", "a tensor", "None")
    V2.choice("dequant_mode", dequant_mode or 0, (0, 1))
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
    request = SwigluRequest(
        V2,
        x,
        weight[0],
        weight_scale[0],
        x_scale,
        group_list,
        group_list_type or 0,
        assist[0] if assist else None,
        "weight_assist_matrix",
        smooth_scale,
        grouped=bool(dequant_mode),
    )
    return _run(request, active_profile())


def swiglu_quant_v2_meta(x: Tensor, weight: Sequence[Tensor], weight_scale: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after the checks of the host."""
    check_lists(x, weight, weight_scale)
    return _allocate(x, weight_scale[0])


def _allocate(x: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    shape = (len(x), weight_scale.shape[-1] // 2)
    return x.new_empty(shape, dtype=torch.int8), x.new_empty((len(x),), dtype=torch.float32)


def _run(request: SwigluRequest, profile: CannProfile) -> tuple[Tensor, Tensor]:
    weight, scale = check(request, profile)
    rows, experts = len(request.x), len(weight)
    output = unwritten((rows, request.columns // 2), torch.int8)
    output_scale = unwritten((rows,), torch.float32)
    groups = read_groups(request.check, request.group_list, request.group_list_type, experts, rows)
    for expert, start, stop in groups:
        x, by_row = request.x[start:stop], request.x_scale[start:stop].unsqueeze(1)
        if request.has_int4_rows:
            gated = _gated(_int4_products(x, weight[expert], scale[expert], profile) * by_row)
            if request.smooth is not None:
                gated = gated * request.smooth[expert]
        elif request.assist is None:
            sums = integer_product(x, weight[expert], INT8_PRODUCT).float()
            gated = _gated(sums * by_row * scale[expert])
        else:
            values = int4.dequantised(x, weight[expert], scale[expert], request.assist[expert], profile)
            gated = _gated(values * by_row)
        output[start:stop], output_scale[start:stop] = _quantised(gated)
    return output, output_scale


def _int4_products(x: Tensor, words: Tensor, scale: Tensor, profile: CannProfile) -> Tensor:
    """Multiply int4 rows by int4 and by the scale of the column; float32 [rows, columns]."""
    values = integer_product(int4.unpacked(x), int4.unpacked(words), INT4_PRODUCT).float() * scale
    return values.half().float() if profile.gmm_swiglu_a4w4_products == "float16" else values


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
