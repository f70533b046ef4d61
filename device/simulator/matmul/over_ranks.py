"""Products that are fused with a collective: before it, or behind it.

They are ``npu_mm_all_reduce_base``, ``npu_mm_reduce_scatter_base`` and ``npu_all_gather_base_mm``. Sources: op-plugin's
documents of the three, its code (``MatmulAllReduceBase``, ``MatmulReduceScatterBase`` and ``AllGatherBaseMatmul``, each
``KernelNpuOpApi.cpp``), and its tests, whose expected values add bias and x3 on every rank before the sum over ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from npudiff.device.communicators import host_group
from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation.hardware_scales import decoded
from npudiff.device.simulator.quantisation.products import integer_product

_REDUCE = ArgumentChecks("npu_mm_all_reduce_base", default=ErrorCode.PARAMETER)
_SCATTER = ArgumentChecks("npu_mm_reduce_scatter_base", default=ErrorCode.PARAMETER)
_GATHER = ArgumentChecks("npu_all_gather_base_mm", default=ErrorCode.PARAMETER)

_HALF = ("float16", "bfloat16")
_INT8_PRODUCT = 2**14
_K_OF_AI_CPU = range(256, 65535)
_K_OF_INT8 = range(1, 65536)
_WORLDS = (2, 4, 8, 16, 32)
"""World sizes that the wrapper lets pass; the documents have up to 8, and 16 of A3."""
_REDUCE_WORLDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class AllReduceRequest:
    """One call of ``npu_mm_all_reduce_base``, with the names of the schema."""

    x1: Tensor
    """[m, k] or [b, s, k], float16, bfloat16 or int8."""
    x2: Tensor
    """[k, n] of that dtype; int8 beside floats as well."""
    hcom: str
    reduce_op: str
    bias: Tensor | None
    """[n]: dtype of x1, or int32 beside int8."""
    antiquant_scale: Tensor | None
    antiquant_offset: Tensor | None
    """[1], [n], [1, n] or [ceil(k / group size), n] of the dtype of x1, beside int8 x2."""
    x3: Tensor | None
    """The shape and dtype of the output, added on every rank."""
    dequant_scale: Tensor | None
    """[1], [n] or [1, n]: int64 words of npu_trans_quant_param, bfloat16, or float32 beside pertoken_scale."""
    pertoken_scale: Tensor | None
    """float32 [rows of x1]."""
    comm_quant_scale_1: Tensor | None
    comm_quant_scale_2: Tensor | None
    antiquant_group_size: int
    comm_turn: int

    @property
    def output(self) -> torch.dtype:
        """The dtype of the output: that of floats; of int8 float16, or bfloat16 with scales of that."""
        if self.x1.dtype != torch.int8:
            return self.x1.dtype
        scale = self.dequant_scale
        return torch.bfloat16 if scale is not None and scale.dtype == torch.bfloat16 else torch.float16


def mm_all_reduce(request: AllReduceRequest) -> Tensor:
    """Return ``all_reduce(x1 @ x2 + bias + x3)``, each rank's part rounded to the dtype of the output.

    Returns
    -------
    Tensor
        [m, n] or [b, s, n], the same on all ranks.

    Raises
    ------
    OperatorRejected
        Dtypes, shapes or arguments that do not go together, or a group of 3, or more than 8 ranks.
    NotSimulated
        Sums that travel as int8 (comm_quant_scale).
    """
    _check_all_reduce(request)
    group = host_group(request.hcom)
    if group.size() not in _REDUCE_WORLDS:
        raise _REDUCE.rejected("hcom", f"a group of {group.size()}", "a group of 1, 2, 4 or 8", ErrorCode.TILING)
    part = _part_of_all_reduce(request).view(mm_all_reduce_meta(request).shape).contiguous()
    dist.all_reduce(part, group=group)
    return part


def mm_all_reduce_meta(request: AllReduceRequest) -> Tensor:
    """Allocate the output."""
    return request.x1.new_empty((*request.x1.shape[:-1], request.x2.shape[1]), dtype=request.output)


def mm_reduce_scatter(
    input: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    reduce_op: str = "sum",
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> Tensor:
    """Return a rank's rows of ``sum over ranks(input @ x2 + bias)``, each rank's part rounded to the output's dtype.

    Parameters
    ----------
    input, x2 : Tensor
        [m, k] and [k, n] of one dtype, float16, bfloat16 or int8; m divides by the world.
    hcom : str
        Name of the group, of ``world_size`` ranks.
    bias : Tensor, optional
        [n] of the dtype of input. The documents want zeros.
    x1_scale, x2_scale : Tensor, optional
        float32 [m, 1] and [1, n] beside int8, in the mode aiv; or int64 [1, n] alone.
    comm_mode : str, optional
        ai_cpu, the default, in which k is at least 256; or aiv.

    Returns
    -------
    Tensor
        [m / world_size, n]: the dtype of input; of int8 float16 with int64 scales, else output_dtype or bfloat16.

    Raises
    ------
    OperatorRejected
        Anything else.
    """
    _check_two(_SCATTER, input, x2, world_size, x2_scale, comm_mode)
    if input.shape[0] % world_size:
        words = "The M-axis in input of Matmul should be be divisible by world_size."
        raise _SCATTER.rejected("input", f"of {input.shape[0]} rows", f"a multiple of {world_size}", words=words)
    _check_rest(_SCATTER, reduce_op, comm_turn)
    group = _group(_SCATTER, hcom, world_size)
    output = _output_of(input, x2_scale, output_dtype)
    part = _product(_SCATTER, input, x2, bias, x1_scale, x2_scale).to(output)
    own = part.new_empty(len(part) // world_size, part.shape[1])
    dist.reduce_scatter_tensor(own, part.contiguous(), group=group)
    return own


def mm_reduce_scatter_meta(
    input: Tensor,
    x2: Tensor,
    world_size: int,
    x2_scale: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Allocate the output."""
    rows = input.shape[0] // max(world_size, 1)
    return input.new_empty((rows, x2.shape[1]), dtype=_output_of(input, x2_scale, output_dtype))


def all_gather_mm(
    input: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    gather_index: int = 0,
    gather_output: bool = True,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the rows of all ranks times ``x2``, and these rows.

    Parameters
    ----------
    input, x2 : Tensor
        [m, k] and [k, n] of one dtype, float16, bfloat16 or int8; k from 256 to 65534.
    gather_index : int
        0.
    x1_scale : Tensor, optional
        float32 [m * world_size, 1] beside int8: of the rows that are gathered.
    bias, x2_scale, hcom, world_size, comm_mode
        As in :func:`mm_reduce_scatter`.

    Returns
    -------
    tuple of Tensor
        [m * world_size, n], and [m * world_size, k], or [0] without gather_output.

    Raises
    ------
    OperatorRejected
        Anything else.
    """
    _check_two(_GATHER, input, x2, world_size, x2_scale, comm_mode)
    if gather_index != 0:
        raise _GATHER.rejected("gather_index", gather_index, "0")
    if input.shape[1] not in _K_OF_AI_CPU:
        raise _GATHER.rejected("input", f"of last axis {input.shape[1]}", "256 to 65534", ErrorCode.TILING)
    _check_rest(_GATHER, "sum", comm_turn)
    group = _group(_GATHER, hcom, world_size)
    rows = input.new_empty(len(input) * world_size, input.shape[1])
    dist.all_gather_into_tensor(rows, input.contiguous(), group=group)
    output = _output_of(input, x2_scale, output_dtype)
    result = _product(_GATHER, rows, x2, bias, x1_scale, x2_scale).to(output)
    return result, rows if gather_output else input.new_empty(0)


def all_gather_mm_meta(
    input: Tensor,
    x2: Tensor,
    world_size: int,
    x2_scale: Tensor | None = None,
    gather_output: bool = True,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs."""
    rows = input.shape[0] * max(world_size, 1)
    result = input.new_empty((rows, x2.shape[1]), dtype=_output_of(input, x2_scale, output_dtype))
    return result, input.new_empty((rows, input.shape[1]) if gather_output else (0,))


def _check_all_reduce(request: AllReduceRequest) -> None:
    """Refuse what wrapper and documents refuse, in the order of the wrapper."""
    x1, x2 = request.x1, request.x2
    _REDUCE.rank("x2", x2, 2, "[k, n]", ErrorCode.WRAPPER)
    _REDUCE.rank("x1", x1, (2, 3), "[m, k] or [b, s, k]")
    if x1.shape[-1] != x2.shape[0]:
        words = "K of x1 and x2 should be same"
        raise _REDUCE.rejected("x1", f"of last axis {x1.shape[-1]}", f"{x2.shape[0]}, as x2", ErrorCode.WRAPPER, words)
    _REDUCE.dtype("x1", x1, *_HALF, "int8", code=ErrorCode.WRAPPER)
    _REDUCE.dtype("x2", x2, dtype_name(x1), "int8", code=ErrorCode.WRAPPER)
    _REDUCE.not_empty("x1", x1)
    _REDUCE.not_empty("x2", x2)
    for name, refused in _unused(request).items():
        if refused and getattr(request, name) is not None:
            raise _REDUCE.rejected(
                name, "given", f"None, with {dtype_name(x1)} and {dtype_name(x2)}", ErrorCode.WRAPPER
            )
    if request.comm_quant_scale_1 is not None or request.comm_quant_scale_2 is not None:
        raise _REDUCE.not_simulated("comm_quant_scale_1", "given", "None")
    _check_rest(_REDUCE, request.reduce_op, request.comm_turn)
    if x2.dtype == torch.int8 and x1.shape[-1] not in _K_OF_INT8:
        raise _REDUCE.rejected("x1", f"of last axis {x1.shape[-1]}", "1 to 65535, with int8", ErrorCode.TILING)
    if request.x3 is not None:
        _REDUCE.shape("x3", request.x3, mm_all_reduce_meta(request).shape, meaning="as the output")
        _REDUCE.dtype("x3", request.x3, dtype_name(mm_all_reduce_meta(request)), code=ErrorCode.WRAPPER)
    _check_scales(request)


def _unused(request: AllReduceRequest) -> dict[str, bool]:
    """Which arguments the call has no use for, by its dtypes."""
    whole = request.x1.dtype == torch.int8
    floats = request.x2.dtype != torch.int8
    return {
        "antiquant_scale": whole or floats, "antiquant_offset": whole or floats, "dequant_scale": not whole,
        "pertoken_scale": request.dequant_scale is None,
    }  # fmt: skip


def _check_scales(request: AllReduceRequest) -> None:
    columns, rows = request.x2.shape[1], request.x1.shape[:-1].numel()
    whole = request.x1.dtype == torch.int8
    if request.bias is not None:
        _REDUCE.dtype("bias", request.bias, "int32" if whole else dtype_name(request.x1))
        _REDUCE.shape("bias", request.bias, (columns,), meaning="[n]")
    if request.pertoken_scale is not None:
        _REDUCE.dtype("pertoken_scale", request.pertoken_scale, "float32", code=ErrorCode.WRAPPER)
        _REDUCE.shape("pertoken_scale", request.pertoken_scale, (rows,), meaning="[rows of x1]", code=ErrorCode.WRAPPER)
    per_column = ((1,), (columns,), (1, columns))
    if whole:
        if request.dequant_scale is None:
            raise _REDUCE.rejected("dequant_scale", None, "a tensor, with int8")
        wide = "float32" if request.pertoken_scale is not None else "int64"
        _REDUCE.dtype("dequant_scale", request.dequant_scale, wide, "bfloat16")
        _REDUCE.shape("dequant_scale", request.dequant_scale, *per_column, meaning="1 or n")
    elif request.x2.dtype == torch.int8:
        if request.antiquant_scale is None:
            raise _REDUCE.rejected("antiquant_scale", None, "a tensor, with int8 x2")
        groups = -(-request.x2.shape[0] // request.antiquant_group_size) if request.antiquant_group_size else 1
        shapes = ((groups, columns),) if request.antiquant_group_size else per_column
        _REDUCE.same_dtype("antiquant_scale", request.antiquant_scale, "x1", request.x1)
        _REDUCE.shape("antiquant_scale", request.antiquant_scale, *shapes, meaning="1, n or [groups, n]")


def _part_of_all_reduce(request: AllReduceRequest) -> Tensor:
    """What a rank has of the sum, [rows, n] in the dtype of the output."""
    rows, weight = request.x1.flatten(0, -2), request.x2
    if rows.dtype == torch.int8:
        scale = _given(request.dequant_scale).flatten()
        wide = decoded(scale)[0] if scale.dtype == torch.int64 else scale.float()
        values = integer_product(rows, weight, _INT8_PRODUCT)
        values = values if request.bias is None else values + request.bias
        values = values.float() * wide
        if request.pertoken_scale is not None:
            values = values * request.pertoken_scale.unsqueeze(1)
    else:
        matrix = _antiquantised(request) if weight.dtype == torch.int8 else weight
        values = rows.float() @ matrix.float()
        values = values if request.bias is None else values + request.bias.float()
    if request.x3 is not None:
        values = values + request.x3.flatten(0, -2).float()
    return values.to(request.output)


def _antiquantised(request: AllReduceRequest) -> Tensor:
    """``(x2 + offset) * scale`` in the dtype of x1."""
    size = request.antiquant_group_size or request.x2.shape[0]

    def by_row(numbers: Tensor) -> Tensor:
        grouped = numbers.float() if numbers.dim() == 2 else numbers.float().unsqueeze(0)
        return grouped.repeat_interleave(size, dim=0)[: request.x2.shape[0]]

    weight = request.x2.float()
    if request.antiquant_offset is not None:
        weight = weight + by_row(request.antiquant_offset)
    return (weight * by_row(_given(request.antiquant_scale))).to(request.x1.dtype)


def _check_two(
    check: ArgumentChecks, x1: Tensor, x2: Tensor, world_size: int, x2_scale: Tensor | None, comm_mode: str | None
) -> None:
    """Check what the wrappers of the two other operators do, in their order."""
    if world_size not in _WORLDS:
        words = f"world_size should be in [2, 4, 8, 16, 32], but the actual value is {world_size}."
        raise check.rejected("world_size", world_size, "2, 4, 8, 16 or 32", ErrorCode.WRAPPER, words)
    for name, tensor in (("input", x1), ("x2", x2)):
        if tensor.dim() != 2:
            words = "Both inputs of mm are required to be 2D"
            raise check.rejected(name, f"of rank {tensor.dim()}", "rank 2", ErrorCode.WRAPPER, words)
    if x1.shape[1] != x2.shape[0]:
        words = "The K-axis in the two inputs of Matmul must be equal"
        raise check.rejected("input", f"of last axis {x1.shape[1]}", f"{x2.shape[0]}, as x2", ErrorCode.WRAPPER, words)
    mode = comm_mode or "ai_cpu"
    if mode not in ("ai_cpu", "aiv"):
        raise check.rejected("comm_mode", mode, "ai_cpu or aiv")
    if mode == "ai_cpu" and x2_scale is not None:
        words = "When comm_mode is ai_cpu, quantization not supported."
        raise check.rejected("x2_scale", "given", "None, with comm_mode ai_cpu", ErrorCode.WRAPPER, words)
    check.dtype("input", x1, *_HALF, *(("int8",) if x2_scale is not None else ()))
    check.same_dtype("x2", x2, "input", x1)
    if mode == "ai_cpu" and x1.shape[1] not in _K_OF_AI_CPU:
        raise check.rejected("input", f"of last axis {x1.shape[1]}", "256 to 65534", ErrorCode.TILING)


def _check_rest(check: ArgumentChecks, reduce_op: str, comm_turn: int) -> None:
    if reduce_op != "sum":
        raise check.rejected("reduce_op", reduce_op, "sum")
    if comm_turn != 0:
        raise check.rejected("comm_turn", comm_turn, "0")


def _group(check: ArgumentChecks, hcom: str, world_size: int) -> dist.ProcessGroup:
    group = host_group(hcom)
    if group.size() != world_size:
        raise check.rejected("world_size", world_size, f"{group.size()}, the ranks of the group", ErrorCode.TILING)
    return group


def _output_of(x1: Tensor, x2_scale: Tensor | None, output_dtype: torch.dtype | None) -> torch.dtype:
    if x2_scale is None:
        return x1.dtype
    return torch.float16 if x2_scale.dtype == torch.int64 else output_dtype or torch.bfloat16


def _product(
    check: ArgumentChecks,
    rows: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
) -> Tensor:
    """float32 [rows, n], scaled and with its bias."""
    columns = x2.shape[1]
    if x2_scale is None:
        values = rows.float() @ x2.float()
    else:
        check.dtype("x2_scale", x2_scale, "float32", "int64")
        check.shape("x2_scale", x2_scale, (1, columns), meaning="[1, n]")
        wide = decoded(x2_scale)[0] if x2_scale.dtype == torch.int64 else x2_scale
        values = integer_product(rows, x2, _INT8_PRODUCT).float() * wide
        if x2_scale.dtype == torch.float32 and x1_scale is None:
            raise check.rejected("x1_scale", None, "a tensor, with x2_scale of float32")
    if x1_scale is not None:
        check.dtype("x1_scale", x1_scale, "float32")
        check.shape("x1_scale", x1_scale, (len(rows), 1), meaning="[rows, 1]")
        values = values * x1_scale
    if bias is None:
        return values
    check.shape("bias", bias, (columns,), meaning="[n]")
    return values + bias.float()


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # noqa: S101 - the checks have looked
    return tensor
