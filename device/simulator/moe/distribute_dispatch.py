"""``npu_moe_distribute_dispatch`` and its second version: tokens go to the ranks of their experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.moe.distribute import (
    Domain,
    check_alike,
    check_domain,
    check_host,
    check_ids,
    exchanged,
    gathered,
)
from npudiff.device.simulator.norms.unwritten import unwritten

_V1 = ArgumentChecks("npu_moe_distribute_dispatch", default=ErrorCode.TILING)
_V2 = ArgumentChecks("npu_moe_distribute_dispatch_v2", default=ErrorCode.TILING)

_PER_TOKEN = 2
_LARGEST = 127.0
ASSIST_OF_A_ROW = 128
"""int32 that the second version allocates for each row, of which it writes three: rank, token, and which copy."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DispatchRequest(Domain):
    """One call, with the names of the schemas."""

    x: Tensor
    """float16 or bfloat16 [bs, H]."""
    expert_ids: Tensor
    """int32 [bs, k]; those of a token different."""
    scales: Tensor | None
    """float32 [shared + routed experts, H], factors of the elements, with ``quant_mode`` 2."""
    quant_mode: int
    """0: rows as they are. 2: int8 with a scale of each row. Others are of Ascend 950."""
    expert_token_nums_type: int
    """0: where the rows of experts end. 1: counts."""
    y_dtype: int | None = None
    x_dtype: int | None = None
    scales_dtype: int | None = None


def dispatch_v1(request: DispatchRequest) -> Outputs:
    """Return the same as ``dispatch_v2``; the third output has [bs * k] ordinals of copies among those of an expert."""
    return _dispatch(_V1, request, first=True)


def dispatch_v2(request: DispatchRequest) -> Outputs:
    """Send copies of tokens to the ranks of their experts, and return what came here.

    Returns
    -------
    expand_x : Tensor
        [A, H], the dtype of x, or int8: rows by expert of this rank, then by rank they came from, then as they were
        there. A is the most that can come; rows behind the last are not written.
    dynamic_scales : Tensor
        float32 [A], of int8 rows; else not written.
    assist_info_for_combine : Tensor
        int32 [A * 128], for combine alone.
    expert_token_nums : Tensor
        int64 [experts of this rank].
    ep_recv_counts : Tensor
        int32 [ranks * experts of this rank], for combine alone: where the rows of each expert and rank end.
    tp_recv_counts : Tensor
        int32 [tp_world_size], not written.
    expand_scales : Tensor
        float32 [A], not written.

    Raises
    ------
    OperatorRejected
        An argument is not what one of the SoCs of the profile takes.
    UndefinedBehaviour
        Ranks differ where they must not, or a token has an expert twice.
    DeviceFault
        An expert that does not exist.
    """
    return _dispatch(_V2, request, first=False)


def _dispatch(check: ArgumentChecks, request: DispatchRequest, *, first: bool) -> Outputs:
    _check(check, request)
    rows, k = request.expert_ids.shape
    check_alike(check, request, rows, request.x.shape[1], k, request.quant_mode)
    active = request.active(rows, k)
    check_ids(check, request, request.expert_ids, active)
    copies = _copies(request, active)
    sources = gathered(request, copies.counts)
    mine = _columns(request, request.ep_rank_id)
    sent = [int(copies.counts[_columns(request, rank)].sum()) for rank in range(request.ep_world_size)]
    here = sources[:, mine]  # [ranks, experts of this rank]
    received = here.sum(dim=1).tolist()
    order = _by_expert(here)
    values, scale = _quantised(request, copies)
    outputs = _allocated(request, first=first)
    count = len(order)
    if count > len(outputs[0]):
        raise UndefinedBehaviour(f"{check.operator}: {count} rows came, and there is memory for {len(outputs[0])}")
    outputs[0][:count] = exchanged(request, values, sent, received)[order]
    came = exchanged(request, copies.triples(request.ep_rank_id), sent, received)[order]
    if scale is not None:
        outputs[1][:count] = exchanged(request, scale, sent, received)[order]
    if first:
        outputs[2][: rows * k] = copies.ordinals(rows * k)
    else:
        outputs[2][: 3 * count] = came.flatten()
    per_expert = here.sum(dim=0)
    outputs[3].copy_(per_expert if request.expert_token_nums_type else per_expert.cumsum(0))
    outputs[4].copy_(here.T.flatten().cumsum(0))
    return outputs


@dataclass(frozen=True)
class _Copies:
    """Copies of tokens in the order in which they are sent: those of shared experts first, then by expert."""

    tokens: Tensor
    """int64 [copies]."""
    places: Tensor
    """int64 [copies]: which copy of its token, k and more for shared experts."""
    experts: Tensor
    """int64 [copies]: the row of ``scales``."""
    counts: Tensor
    """int64 [ranks of shared experts + routed experts]."""
    k: int

    def triples(self, rank: int) -> Tensor:
        """Rank, token and copy of each."""
        return torch.stack([torch.full_like(self.tokens, rank), self.tokens, self.places], dim=1).to(torch.int32)

    def ordinals(self, count: int) -> Tensor:
        """Return how many earlier copies of this rank go to the same expert, int32 [bs * k]."""
        found = torch.zeros(count, dtype=torch.int32)
        routed = self.places < self.k
        experts = self.experts[routed]
        starts = torch.searchsorted(experts, experts)
        places = self.tokens[routed] * self.k + self.places[routed]
        found[places] = (torch.arange(len(experts)) - starts).to(torch.int32)
        return found


def _copies(request: DispatchRequest, active: Tensor) -> _Copies:
    k, apart = active.shape[1], request.shared_expert_rank_num
    tokens, places = active.nonzero(as_tuple=True)
    experts = request.expert_ids[tokens, places].long()
    order = experts.argsort(stable=True)
    all_active = active.any(dim=1).nonzero().flatten()
    targets = request.shared_ranks_of(request.ep_rank_id)
    shared = request.shared_expert_num if apart else 0
    counts = torch.zeros(apart + request.moe_expert_num, dtype=torch.int64)
    counts[targets] = len(all_active)
    counts[apart:] = torch.bincount(experts, minlength=request.moe_expert_num)
    numbers = torch.arange(shared).repeat_interleave(len(all_active))
    return _Copies(
        torch.cat([all_active.repeat(shared), tokens[order]]),
        torch.cat([k + numbers, places[order]]),
        torch.cat([numbers, shared + experts[order]]),
        counts,
        k,
    )


def _columns(request: DispatchRequest, rank: int) -> slice:
    """Where the experts of a rank are among all counts."""
    apart, each = request.shared_expert_rank_num, request.experts_of_a_rank
    if rank < apart:
        return slice(rank, rank + 1)
    start = apart + (rank - apart) * each
    return slice(start, start + each)


def _by_expert(counts: Tensor) -> Tensor:
    """Order of rows that came by rank and then by expert, by expert and then by rank."""
    experts = torch.arange(counts.shape[1]).repeat(len(counts)).repeat_interleave(counts.flatten())
    return experts.argsort(stable=True)


def _quantised(request: DispatchRequest, copies: _Copies) -> tuple[Tensor, Tensor | None]:
    """Rows as they are sent; SOURCE: by 127 over the largest, half to even, through float16."""
    rows = request.x[copies.tokens]
    if request.quant_mode != _PER_TOKEN:
        return rows, None
    values = rows.float()
    if request.scales is not None:
        values = values * request.scales[copies.experts]
    factor = _LARGEST / values.abs().amax(dim=1, keepdim=True)
    steps = (values * factor).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).round().half().float().trunc()
    return steps.to(torch.int8), (1 / factor).squeeze(1)


def _check(check: ArgumentChecks, request: DispatchRequest) -> None:
    _check_host(check, request)
    rows, hidden = request.x.shape
    check.dtype("x", request.x, "float16", "bfloat16")
    check_domain(check, request, rows, hidden, request.expert_ids)
    for name in ("y_dtype", "x_dtype", "scales_dtype"):
        check.choice(name, getattr(request, name), (None,))
    check.choice("quant_mode", request.quant_mode, (0, _PER_TOKEN))
    if request.scales is not None:
        if request.quant_mode != _PER_TOKEN:
            raise check.rejected("scales", "given", "None with quant_mode 0")
        shared = request.shared_expert_num if request.shared_expert_rank_num else 0
        check.dtype("scales", request.scales, "float32")
        check.shape("scales", request.scales, (shared + request.moe_expert_num, hidden), meaning="[experts, H]")


def _check_host(check: ArgumentChecks, request: DispatchRequest) -> None:
    check_host(check, request, request.x, request.expert_ids)
    check.choice("expert_token_nums_type", request.expert_token_nums_type, (0, 1), ErrorCode.WRAPPER)


def _allocated(request: DispatchRequest, *, first: bool) -> Outputs:
    """Memory of all outputs, as the wrapper makes it."""
    rows, k = request.expert_ids.shape
    room = request.capacity(rows, k)
    kind = torch.int8 if request.quant_mode else request.x.dtype
    assist = rows * k if first else max(rows * k, room * ASSIST_OF_A_ROW)
    return (
        unwritten((room, request.x.shape[1]), kind),
        unwritten((room,), torch.float32),
        unwritten((assist,), torch.int32),
        unwritten((request.local_experts,), torch.int64),
        unwritten((request.ep_world_size * request.local_experts,), torch.int32),
        unwritten((request.tp_world_size,), torch.int32),
        unwritten((room,), torch.float32),
    )


def dispatch_meta(request: DispatchRequest) -> Outputs:
    """Allocate the outputs of the second version, after the checks of the host code."""
    _check_host(_V2, request)
    return tuple(request.x.new_empty(made.shape, dtype=made.dtype) for made in _allocated(request, first=False))  # type: ignore[return-value]


def dispatch_v1_meta(request: DispatchRequest) -> Outputs:
    """Allocate the outputs of the first version, after the checks of the host code."""
    _check_host(_V1, request)
    return tuple(request.x.new_empty(made.shape, dtype=made.dtype) for made in _allocated(request, first=True))  # type: ignore[return-value]
