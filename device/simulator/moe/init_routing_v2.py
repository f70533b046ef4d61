"""``npu_moe_init_routing_v2``: rows in the order of their experts, of the experts that live here.

Sources: its documentation (DOC, which contains code for the CPU), op-plugin's host checks, the wheel's META rules and
the expected values of op-plugin's tests, as they hold for A2 and A3.

Not shown: op-plugin keeps the default of ``active_expert_range`` from the first call of a process, so that later calls
with another ``expert_num`` use a stale one. Here it is ``[0, expert_num]`` in each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.moe.quantisation import dynamic_int8, static_int8
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.quantisation.scalar_types import BFLOAT16, FLOAT16, INT8

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


_CHECK = ArgumentChecks("npu_moe_init_routing_v2", default=ErrorCode.PARAMETER)

_MAX_EXPERTS = 10240
_MAX_EXPERTS_IN_PAIRS = 5120
_INT4 = 13
# vllm-ascend's all-to-all says of int8 that it is int8; META looks at dtypes of 950 alone.
_NUMBERS = {torch.int8: INT8, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
# META's list without those that A2 and A3 have.
_QUANT_MODES_OF_950 = (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17)


@dataclass(frozen=True)
class RoutingRequest:
    """One call, with the names of the schema."""

    x: Tensor
    """[n, H], float16, bfloat16 or float32; int8 with ``quant_mode`` -1."""
    expert_idx: Tensor
    """int32 [n, k]. A pair whose expert is outside ``active_expert_range`` is sorted last and dropped."""
    scale: Tensor | None
    """float32. ``quant_mode`` -1: [n], sorted as the rows are. 0: [1]. 1: [experts in range, H] or [1, H], factors of
    the elements."""
    offset: Tensor | None
    """float32 [1], with ``quant_mode`` 0."""
    active_num: int
    """How many rows at most, if positive."""
    expert_capacity: int
    """Rows per expert with ``drop_pad_mode`` 1; the first ones stay."""
    expert_num: int
    """How many experts there are."""
    drop_pad_mode: int
    """0: rows lie close. 1: every expert has as many rows."""
    expert_tokens_num_type: int
    """0: where rows end. 1: counts. 2: pairs of expert and count."""
    expert_tokens_num_flag: bool
    """Whether the third output is wanted."""
    quant_mode: int
    """-1: none. 0: int8 with one scale. 1: int8 with a scale per row."""
    active_expert_range: Sequence[int]
    """First expert, and the one behind the last; all experts if empty."""
    row_idx_type: int
    """0: the place of each pair. 1: the pair at each place."""
    x_dtype: int | None
    """For dtypes that Ascend 950 has; of others, that of x."""

    @property
    def expert_range(self) -> tuple[int, int]:
        """First expert, and the one behind the last."""
        if not self.active_expert_range:
            return 0, self.expert_num
        return self.active_expert_range[0], self.active_expert_range[1]

    @property
    def expanded_rows(self) -> int:
        """How many rows expanded_x has."""
        if self.drop_pad_mode:
            return self.expert_num * self.expert_capacity
        pairs = self.expert_idx.numel()
        return min(self.active_num, pairs) if self.active_num > 0 else pairs


def check_host(request: RoutingRequest) -> None:
    """Refuse what op-plugin and META refuse, and what the simulator cannot do.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    NotSimulated
        ``quant_mode`` 13.
    """
    wrapper = ErrorCode.WRAPPER
    _CHECK.rank("x", request.x, 2, code=wrapper)
    _CHECK.rank("expert_idx", request.expert_idx, 2, code=wrapper)
    shape = (len(request.x), request.expert_idx.shape[1])
    _CHECK.shape("expert_idx", request.expert_idx, shape, meaning="[n, k], the rows of x")
    given = list(request.active_expert_range)
    if given and (len(given) != 2 or not 0 <= given[0] < given[1] <= _MAX_EXPERTS):
        allowed = f"two increasing numbers from 0 to {_MAX_EXPERTS}"
        raise _CHECK.rejected("active_expert_range", given, allowed, wrapper)
    _CHECK.choice("drop_pad_mode", request.drop_pad_mode, (0, 1), wrapper)
    _CHECK.choice("expert_tokens_num_type", request.expert_tokens_num_type, (0, 1, 2), wrapper)
    _CHECK.choice("row_idx_type", request.row_idx_type, (0, 1), wrapper)
    if request.quant_mode == _INT4:
        raise _CHECK.not_simulated("quant_mode", _INT4, "-1, 0 and 1")
    if request.quant_mode in _QUANT_MODES_OF_950:
        given_mode = f"{request.quant_mode}, which is for Ascend 950"
        raise _CHECK.rejected("quant_mode", given_mode, "-1, 0, 1 or 13")
    _CHECK.choice("quant_mode", request.quant_mode, (-1, 0, 1, _INT4), wrapper)
    if request.x_dtype is not None and request.x_dtype != _NUMBERS.get(request.x.dtype):
        raise _CHECK.rejected("x_dtype", request.x_dtype, "None or that of x: dtypes of Ascend 950 alone need it")


def check(request: RoutingRequest) -> None:
    """Refuse what the operator refuses.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        ``quant_mode`` 13.
    """
    check_host(request)
    dtypes = (*FLOATS, "int8") if request.quant_mode == -1 else FLOATS
    _CHECK.dtype("x", request.x, *dtypes)
    _CHECK.dtype("expert_idx", request.expert_idx, "int32")
    most = _MAX_EXPERTS_IN_PAIRS if request.expert_tokens_num_type == 2 else _MAX_EXPERTS
    _CHECK.between("expert_num", request.expert_num, 1, most, ErrorCode.TILING)
    if request.expert_range[1] > request.expert_num:
        given = list(request.active_expert_range)
        allowed = f"experts below expert_num, which is {request.expert_num}"
        raise _CHECK.rejected("active_expert_range", given, allowed, ErrorCode.TILING)
    _check_scales(request)
    if request.drop_pad_mode == 1:
        _check_drop_pad(request)


def _check_scales(request: RoutingRequest) -> None:
    scale, offset = request.scale, request.offset
    for argument, tensor in (("scale", scale), ("offset", offset)):
        if tensor is not None:
            _CHECK.dtype(argument, tensor, "float32")
    if request.quant_mode == 0:
        for argument, tensor in (("scale", scale), ("offset", offset)):
            if tensor is None:
                raise _CHECK.rejected(argument, None, "a tensor [1], with quant_mode 0")
            _CHECK.shape(argument, tensor, (1,), meaning="with quant_mode 0")
    elif offset is not None:
        raise _CHECK.rejected("offset", "a tensor", f"None, with quant_mode {request.quant_mode}")
    elif scale is not None and request.quant_mode == -1:
        _CHECK.shape("scale", scale, (len(request.x),), meaning="[n], with quant_mode -1")
    elif scale is not None and request.expert_idx.numel():  # without pairs op-plugin's test gives [0]
        start, end = request.expert_range
        _CHECK.rank("scale", scale, 2)
        rows = 1 if len(scale) == 1 else end - start
        _CHECK.shape(
            "scale", scale, (rows, request.x.shape[1]), meaning="[1, H] or [experts in range, H], with quant_mode 1"
        )


def _check_drop_pad(request: RoutingRequest) -> None:
    """DOC: every expert has rows, counts are of type 1 and the row index of type 0."""
    tiling = ErrorCode.TILING
    if request.expert_range != (0, request.expert_num):
        allowed = f"[0, {request.expert_num}], with drop_pad_mode 1"
        raise _CHECK.rejected("active_expert_range", list(request.active_expert_range), allowed, tiling)
    _CHECK.choice("row_idx_type", request.row_idx_type, (0,), tiling)
    if request.expert_tokens_num_flag:
        _CHECK.choice("expert_tokens_num_type", request.expert_tokens_num_type, (1,), tiling)
    _CHECK.between("expert_capacity", request.expert_capacity, 1, len(request.x), tiling)


def init_routing_v2(request: RoutingRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the pairs of tokens and experts by expert, stably, and copy or quantise the tokens' rows.

    Returns
    -------
    expanded_x : Tensor
        [rows, H] in the dtype of x, int8 if quantised. rows is n * k, or active_num if that is positive and less; those
        behind the last active pair hold what was there before. [expert_num, capacity, H] with ``drop_pad_mode`` 1,
        where nothing goes there are zeros.
    expanded_row_idx : Tensor
        int32 [n * k]. ``row_idx_type`` 0: where pair ``token * k + j`` went, -1 if it was dropped. 1: the pair of each
        row, and behind the last active pair those of experts above the range by expert, then those of experts below it.
    expert_token_cumsum_or_count : Tensor
        int64, for experts of the range: where their rows end, how many they are, or pairs [expert_num, 2] of an
        expert that has rows and how many, ended by a pair of zeros, of which all are where no pair is. [] unless
        ``expert_tokens_num_flag``.
    expanded_scale : Tensor
        float32 [rows of expanded_x]: what was given per token, or what int8 was made with; [] with ``quant_mode`` 0.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    NotSimulated
        ``quant_mode`` 13, which gives int4.
    """
    profile = active_profile()
    check(request)
    start, end = request.expert_range
    pairs = request.expert_idx.reshape(-1)
    # As DOC's code: what is above the range sorts behind it, what is below it last.
    experts, order = pairs.masked_fill(pairs < start, torch.iinfo(torch.int32).max).sort(stable=True)
    count = int(((pairs >= start) & (pairs < end)).sum())
    experts, inactive, order = experts[:count].long(), order[count:], order[:count]
    counts = torch.bincount(experts - start, minlength=end - start)
    places, kept = _places(request, experts, counts)
    rows, scale = _rows(request, order[kept], experts[kept], profile)
    statistics = _statistics(request, counts, profile)
    tail = inactive if profile.moe_init_routing_inactive == "sorted" else inactive[:0]
    row_idx = _row_idx(request, order, torch.where(kept, places, -1), tail)
    return _placed(request, rows, places[kept]), row_idx, statistics, _placed_scale(request, scale, places[kept])


def _places(request: RoutingRequest, experts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each sorted pair goes, and whether expanded_x has room for it: int64 and bool [pairs]."""
    places = torch.arange(len(experts))
    if not request.drop_pad_mode:
        return places, torch.ones_like(places, dtype=torch.bool)
    within = places - (counts.cumsum(0) - counts)[experts]
    return experts * request.expert_capacity + within, within < request.expert_capacity


def _rows(
    request: RoutingRequest, order: Tensor, experts: Tensor, profile: CannProfile
) -> tuple[Tensor, Tensor | None]:
    """Return the rows of some pairs as expanded_x has them, and one scale per row if there is one."""
    tokens = order // max(request.expert_idx.shape[1], 1)
    if not request.drop_pad_mode and request.active_num > 0:
        tokens, experts = tokens[: request.active_num], experts[: request.active_num]
    scale = request.scale
    if request.quant_mode == -1:
        return request.x[tokens], None if scale is None else scale[tokens]
    if request.quant_mode == 0 and scale is not None and request.offset is not None:
        return static_int8(request.x, scale, request.offset)[tokens], None
    if scale is not None and len(scale) > 1:
        return dynamic_int8(request.x[tokens], scale[experts - request.expert_range[0]], profile)
    # Copies of a token are alike, so it is quantised once. Without copies the scale may be anything.
    quantised, scales = dynamic_int8(request.x, scale if len(tokens) else None, profile)
    return quantised[tokens], scales[tokens]


def _placed(request: RoutingRequest, rows: Tensor, places: Tensor) -> Tensor:
    """Put rows where they belong in a new expanded_x."""
    if request.drop_pad_mode:
        output = rows.new_zeros((request.expert_num * request.expert_capacity, rows.shape[1]))
        output[places] = rows
        return output.view(request.expert_num, request.expert_capacity, rows.shape[1])
    output = unwritten((request.expanded_rows, rows.shape[1]), rows.dtype)
    output[: len(rows)] = rows
    return output


def _placed_scale(request: RoutingRequest, scale: Tensor | None, places: Tensor) -> Tensor:
    """Put scales beside their rows; without any, what was there before."""
    if request.quant_mode == 0:
        return unwritten((), torch.float32)
    if scale is None:
        return unwritten((request.expanded_rows,), torch.float32)
    if request.drop_pad_mode:
        return scale.new_zeros(request.expanded_rows).index_copy_(0, places, scale)
    output = unwritten((request.expanded_rows,), torch.float32)
    output[: len(scale)] = scale
    return output


def _row_idx(request: RoutingRequest, order: Tensor, places: Tensor, tail: Tensor) -> Tensor:
    """Return expanded_row_idx; ``tail`` are the pairs behind the active ones, as far as they are written."""
    pairs = request.expert_idx.numel()
    if request.row_idx_type == 1:
        output = unwritten((pairs,), torch.int32)
        output[: len(order) + len(tail)] = torch.cat((order, tail)).to(torch.int32)
        return output
    output = torch.full((pairs,), -1, dtype=torch.int32)
    output[order] = places.to(torch.int32)
    return output


def _statistics(request: RoutingRequest, counts: Tensor, profile: CannProfile) -> Tensor:
    """Return the third output of the counts int64 [experts in range]."""
    if not request.expert_tokens_num_flag:
        return unwritten((), torch.int64)
    if request.drop_pad_mode and profile.moe_init_routing_drop_pad_counts == "kept":
        counts = counts.clamp(max=request.expert_capacity)
    if request.expert_tokens_num_type == 0:
        return counts.cumsum(0)
    if request.expert_tokens_num_type == 1:
        return counts
    if not request.expert_idx.numel():
        return counts.new_zeros((request.expert_num, 2))
    output = unwritten((request.expert_num, 2), torch.int64)
    present = counts.nonzero()[:, 0]
    first = request.expert_range[0] if profile.moe_init_routing_keys == "expert" else 0
    output[: len(present)] = torch.stack((present + first, counts[present]), 1)
    output[len(present) : len(present) + 1] = 0
    return output


def init_routing_v2_meta(request: RoutingRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the outputs, after META's checks."""
    check_host(request)
    x, expert_idx = request.x, request.expert_idx
    start, end = request.expert_range
    shape: tuple[int, ...] = (request.expanded_rows, x.shape[1])
    if request.drop_pad_mode:
        shape = (request.expert_num, request.expert_capacity, x.shape[1])
    statistics: tuple[int, ...] = (request.expert_num, 2) if request.expert_tokens_num_type == 2 else (end - start,)
    return (
        x.new_empty(shape, dtype=x.dtype if request.quant_mode == -1 else torch.int8),
        x.new_empty((expert_idx.numel(),), dtype=torch.int32),
        x.new_empty(statistics if request.expert_tokens_num_flag else (), dtype=torch.int64),
        x.new_empty(() if request.quant_mode == 0 else (request.expanded_rows,), dtype=torch.float32),
    )
