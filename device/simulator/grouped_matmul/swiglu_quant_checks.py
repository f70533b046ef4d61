"""The arguments of ``npu_grouped_matmul_swiglu_quant`` in both versions, and what is refused of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul import int4
from npudiff.device.simulator.grouped_matmul.groups import check_group_list
from npudiff.device.simulator.moe.requirements import FLOATS, Requirements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npudiff.device.simulator.profiles import CannProfile

V1 = Requirements("npu_grouped_matmul_swiglu_quant")
V2 = Requirements("npu_grouped_matmul_swiglu_quant_v2")

_MAX_COLUMNS = 10240
_MAX_INNER = 65535
_MAX_INNER_OF_INT4 = 19999


@dataclass(frozen=True)
class SwigluRequest:
    """One call of either version."""

    require: Requirements
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
    V2.rank("x", x, range(2, 9), wrapper)
    V2.rank("weight", weight[0], (3,), wrapper)
    V2.rank("weight_scale", weight_scale[0], range(2, 9), wrapper)


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
    require, x, weight = request.require, request.x, request.weight
    require.rank("x", x, (2,))
    if x.dtype == torch.int32:
        raise require.not_simulated("x", "int32, which is int4 in eights", "int8")
    require.dtype("x", x, ("int8",))
    require.rank("weight", weight, (3,))
    require.dtype("weight", weight, ("int8", "int32"))
    packed = weight.dtype == torch.int32
    experts, inner = len(weight), x.shape[1]
    width = request.columns // int4.PER_WORD if packed else request.columns
    require.shape("weight", weight, (experts, inner, width), "[E, K, N], with K of x and N of weight_scale")
    if packed and not weight.is_contiguous():
        raise require.not_simulated("weight", f"not contiguous, strides {weight.stride()}", "contiguous int4")
    if profile.gmm_swiglu_weight_format == "fractal_nz" and format_of(weight) is not Format.FRACTAL_NZ:
        raise require.rejected("weight", f"in format {format_of(weight).name}", "FRACTAL_NZ")
    most = _MAX_INNER_OF_INT4 if packed else _MAX_INNER
    if inner > most:
        raise require.rejected("x", f"of last axis {inner}", f"at most {most}", ErrorCode.TILING)
    if request.columns > _MAX_COLUMNS or request.columns % 2:
        given = f"of last axis {request.columns}"
        raise require.rejected("weight_scale", given, f"an even number up to {_MAX_COLUMNS}", ErrorCode.TILING)
    require.dtype("x_scale", request.x_scale, ("float32",))
    require.shape("x_scale", request.x_scale, (len(x),), "[M]")
    check_group_list(require, request.group_list, request.group_list_type, experts)
    return _check_scales(request, profile, packed=packed)


def _check_scales(request: SwigluRequest, profile: CannProfile, *, packed: bool) -> Tensor:
    require, scale, experts = request.require, request.weight_scale, len(request.weight)
    if not packed:
        require.dtype("weight_scale", scale, FLOATS)
        require.shape("weight_scale", scale, (experts, request.columns), "[E, N]")
        if request.assist is not None:
            raise require.rejected(request.assist_name, "a tensor", "None, with weight of int8")
        return scale.float()
    if request.assist is None:
        raise require.rejected(request.assist_name, None, "float32 [E, N], with weight of int4")
    require.dtype(request.assist_name, request.assist, ("float32",))
    require.shape(request.assist_name, request.assist, (experts, request.columns), "[E, N]")
    return int4.checked_scale(require, "weight_scale", scale, request.weight, profile)
