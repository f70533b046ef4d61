"""``npu_moe_init_routing_v2``: rows in the order of their experts, of the experts that live here.

Sources: its documentation (DOC, which contains code for the CPU), op-plugin's host checks, the wheel's META rules and
the expected values of op-plugin's tests, as they hold for A2 and A3.

Not shown: op-plugin keeps the default of ``active_expert_range`` from the first call of a process, so that later calls
with another ``expert_num`` use a stale one. Here it is ``[0, expert_num]`` in each call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.moe.init_routing_checks import RoutingRequest, check, check_host, normalise
from npudiff.device.simulator.moe.quantisation import dynamic_int8, static_int8
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile


def init_routing_v2(x: Tensor, expert_idx: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the pairs of tokens and experts by expert, stably, and copy or quantise the tokens' rows.

    Parameters
    ----------
    x : Tensor
        [n, H], float16, bfloat16 or float32; int8 with ``quant_mode`` -1.
    expert_idx : Tensor
        int32 [n, k]. A pair whose expert is outside ``active_expert_range`` is sorted last and dropped.
    **options : object
        The other arguments of the schema, which :class:`RoutingRequest` explains.

    Returns
    -------
    expanded_x : Tensor
        [rows, H] in the dtype of x, int8 if quantised. rows is n * k, or active_num if that is positive and less; those
        behind the last active pair hold what was there before. [expert_num, capacity, H] with ``drop_pad_mode`` 1,
        where nothing goes there are zeros.
    expanded_row_idx : Tensor
        int32 [n * k]. ``row_idx_type`` 0: where pair ``token * k + j`` went, -1 if it was dropped. 1: the pair of each
        row, and what was there before behind the last active pair.
    expert_token_cumsum_or_count : Tensor
        int64, for experts of the range: where their rows end, how many they are, or pairs [expert_num, 2] of an
        expert that has rows and how many, ended by a pair of zeros. [] unless ``expert_tokens_num_flag``.
    expanded_scale : Tensor
        float32 [rows of expanded_x]: what was given per token, or what int8 was made with; [] with ``quant_mode`` 0.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    NotSimulated
        ``quant_mode`` 13, which gives int4.
    """
    request = normalise(x, expert_idx, options)
    profile = active_profile()
    check(request)
    start, end = request.expert_range
    pairs = expert_idx.reshape(-1)
    active = (pairs >= start) & (pairs < end)
    experts, order = pairs.masked_fill(~active, torch.iinfo(torch.int32).max).sort(stable=True)
    count = int(active.sum())
    experts, order = experts[:count].long(), order[:count]
    counts = torch.bincount(experts - start, minlength=end - start)
    places, kept = _places(request, experts, counts)
    rows, scale = _rows(request, order[kept], experts[kept], profile)
    statistics = _statistics(request, counts, profile)
    row_idx = _row_idx(request, order, torch.where(kept, places, -1))
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
    # Copies of a token are alike, so it is quantised once.
    quantised, scales = dynamic_int8(request.x, scale, profile)
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


def _row_idx(request: RoutingRequest, order: Tensor, places: Tensor) -> Tensor:
    """Return expanded_row_idx."""
    pairs = request.expert_idx.numel()
    if request.row_idx_type == 1:
        output = unwritten((pairs,), torch.int32)
        output[: len(order)] = order.to(torch.int32)
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
    output = unwritten((request.expert_num, 2), torch.int64)
    present = counts.nonzero()[:, 0]
    first = request.expert_range[0] if profile.moe_init_routing_keys == "expert" else 0
    output[: len(present)] = torch.stack((present + first, counts[present]), 1)
    output[len(present) : len(present) + 1] = 0
    return output


def init_routing_v2_meta(x: Tensor, expert_idx: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the outputs, after META's checks."""
    request = normalise(x, expert_idx, options)
    check_host(request)
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
