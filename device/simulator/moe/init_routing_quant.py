"""``npu_moe_init_routing_quant``: rows in the order of their experts, as int8.

Sources: op-plugin's host checks, whose words the errors have, its code and test, as they hold for A2 and A3. What is
done to the rows is what ``npu_moe_init_routing_v2`` does, and what that refuses is refused in its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.moe.init_routing_v2 import RoutingRequest, init_routing_v2

_CHECK = ArgumentChecks("npu_moe_init_routing_quant", default=ErrorCode.PARAMETER)

_CUMULATIVE, _COUNT = 1, 2

Outputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class QuantRoutingRequest:
    """One call, with the names of the schema."""

    x: Tensor
    """[n, H], float16, bfloat16 or float32."""
    expert_idx: Tensor
    """int32 [n, k], from 0 to expert_num - 1."""
    scale: Tensor | None
    """float32. ``quant_mode`` 0: [1]. 1: [expert_num, H] or [1, H], factors of the elements."""
    offset: Tensor | None
    """float32 [1], with ``quant_mode`` 0."""
    active_num: int
    """How many rows at most, if positive and ``drop_pad_mode`` is 0."""
    expert_capacity: int
    """Rows per expert with ``drop_pad_mode`` 1."""
    expert_num: int
    drop_pad_mode: int
    """0: rows lie close. 1: every expert has as many rows."""
    expert_tokens_num_mode: int
    """0: none. 1: where rows end. 2: counts."""
    expert_tokens_before_capacity_flag: bool
    """Whether the fourth output is wanted, with ``drop_pad_mode`` 1."""
    quant_mode: int
    """0: int8 with one scale. 1: int8 with a scale per row."""

    def as_v2(self) -> RoutingRequest:
        """Return the call of version 2 that treats the rows alike."""
        return RoutingRequest(
            x=self.x, expert_idx=self.expert_idx, scale=self.scale, offset=self.offset, active_num=self.active_num,
            expert_capacity=self.expert_capacity, expert_num=self.expert_num, drop_pad_mode=self.drop_pad_mode,
            expert_tokens_num_type=1, expert_tokens_num_flag=False, quant_mode=self.quant_mode,
            active_expert_range=(0, self.expert_num), row_idx_type=0, x_dtype=None,
        )  # fmt: skip


def init_routing_quant(request: QuantRoutingRequest) -> Outputs:
    """Sort the pairs of tokens and experts by expert, stably, and quantise the tokens' rows.

    Returns
    -------
    expanded_x : Tensor
        int8 [rows, H], or [expert_num, capacity, H].
    expanded_row_idx : Tensor
        int32 [n * k]: where each pair went, -1 if it was dropped.
    expert_token_cumsum_or_count : Tensor, optional
        int32 [expert_num], of ``drop_pad_mode`` 0 with an ``expert_tokens_num_mode``.
    expert_tokens_before_capacity : Tensor, optional
        int32 [expert_num]: counts before any pair was dropped, where they are wanted.
    expanded_scale : Tensor, optional
        float32 [rows of expanded_x], of ``quant_mode`` 1.

    Raises
    ------
    OperatorRejected
        Rank, shape, dtype or mode is not one of the above.
    DeviceFault
        An expert that is not there.
    """
    _check_host(request)
    _CHECK.dtype("expert_idx", request.expert_idx, "int32")
    _CHECK.indices("expert_idx", request.expert_idx, request.expert_num, "experts")
    expanded, row_idx, _, scale = init_routing_v2(request.as_v2())
    counts = torch.bincount(request.expert_idx.flatten().long(), minlength=request.expert_num)
    wanted, before = _statistics(request)
    statistics = counts.cumsum(0) if request.expert_tokens_num_mode == _CUMULATIVE else counts
    return (
        expanded,
        row_idx,
        statistics.int() if wanted else None,
        counts.int() if before else None,
        scale.flatten() if request.quant_mode == 1 else None,
    )


def init_routing_quant_meta(request: QuantRoutingRequest) -> Outputs:
    """Allocate the outputs, after the checks that op-plugin has; torch_npu 2.13.0 has no META for this operator."""
    _check_host(request)
    x, pairs, experts = request.x, request.expert_idx.numel(), request.expert_num
    rows = min(pairs, request.active_num) if request.active_num > 0 else pairs
    shape: tuple[int, ...] = (rows, x.shape[1])
    if request.drop_pad_mode:
        shape, rows = (experts, request.expert_capacity, x.shape[1]), experts * request.expert_capacity
    wanted, before = _statistics(request)
    return (
        x.new_empty(shape, dtype=torch.int8),
        x.new_empty((pairs,), dtype=torch.int32),
        x.new_empty((experts,), dtype=torch.int32) if wanted else None,
        x.new_empty((experts,), dtype=torch.int32) if before else None,
        x.new_empty((rows,), dtype=torch.float32) if request.quant_mode == 1 else None,
    )


def _statistics(request: QuantRoutingRequest) -> tuple[bool, bool]:
    """Return whether the third and the fourth output are there."""
    drops = request.drop_pad_mode == 1
    return not drops and request.expert_tokens_num_mode > 0, drops and request.expert_tokens_before_capacity_flag


def _check_host(request: QuantRoutingRequest) -> None:
    code = ErrorCode.WRAPPER
    for argument, tensor in (("x", request.x), ("expert_idx", request.expert_idx)):
        if tensor.dim() != 2:
            words = f"Input tensor '{argument}' must be 2-dimensional, but got dimension {tensor.dim()}"
            raise _CHECK.rejected(argument, f"of rank {tensor.dim()}", "rank 2", code, words)
    rows, others = len(request.x), len(request.expert_idx)
    if rows != others:
        words = f"The number of rows in input 'x' ({rows}) must match the number of rows in 'expert_idx' ({others})."
        raise _CHECK.rejected("expert_idx", f"of {others} rows", f"{rows}, the rows of x", code, words)
    modes = {"drop_pad_mode": (0, 1), "quant_mode": (0, 1), "expert_tokens_num_mode": (0, _CUMULATIVE, _COUNT)}
    for argument, allowed in modes.items():
        given = getattr(request, argument)
        listed = "0 or 1" if len(allowed) == 2 else "0, 1, or 2"
        _CHECK.choice(argument, given, allowed, code, f"Parameter '{argument}' must be {listed}, but got: {given}")
