"""``npu_moe_distribute_combine`` and its second version: what experts say comes back, and is summed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour
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

_V1 = ArgumentChecks("npu_moe_distribute_combine", default=ErrorCode.TILING)
_V2 = ArgumentChecks("npu_moe_distribute_combine_v2", default=ErrorCode.TILING)


@dataclass(frozen=True, kw_only=True)
class CombineRequest(Domain):
    """One call, with the names of the schemas."""

    expand_x: Tensor
    """float16 or bfloat16 [A, H]: what experts say of the rows that came here."""
    expert_ids: Tensor
    """int32 [bs, k], as dispatch was given."""
    ep_send_counts: Tensor
    """int32, from dispatch."""
    expert_scales: Tensor
    """float32 [bs, k]: weights."""
    expand_idx: Tensor | None = None
    assist_info_for_combine: Tensor | None = None
    """int32, from dispatch of the same version."""
    shared_expert_x: Tensor | None
    """[bs, H] of the dtype of expand_x: added to the sum."""
    tp_send_counts: Tensor | None
    comm_quant_mode: int
    """0; others have rows as int8 on their way back."""
    activation_scale: Tensor | None = None
    weight_scale: Tensor | None = None
    group_list: Tensor | None = None
    out_dtype: int = 0
    group_list_type: int = 0
    ori_x: Tensor | None = None
    const_expert_alpha_1: Tensor | None = None
    const_expert_alpha_2: Tensor | None = None
    const_expert_v: Tensor | None = None


def combine_v1(request: CombineRequest) -> Tensor:
    """Return the same as ``combine_v2``: rows are found by the ordinals of the first version of dispatch."""
    return _combine(_V1, request)


def combine_v2(request: CombineRequest) -> Tensor:
    """Send rows back to where their tokens are, and sum those of each token with its weights.

    Returns
    -------
    Tensor
        [bs, H] of the dtype of expand_x: summed in float32 in the order of copies, then shared experts, then
        shared_expert_x, and rounded once. Rows of tokens that do not take part are not written.

    Raises
    ------
    OperatorRejected
        An argument is not what one of the SoCs of the profile takes.
    UndefinedBehaviour
        Ranks differ where they must not, or wait for a row that nobody sends.
    DeviceFault
        The outputs of dispatch do not name rows and tokens that exist.
    """
    return _combine(_V2, request)


def _combine(check: ArgumentChecks, request: CombineRequest) -> Tensor:
    _check(check, request)
    rows, k = request.expert_ids.shape
    check_alike(check, request, rows, request.expand_x.shape[1], k, request.comm_quant_mode)
    active = request.active(rows, k)
    check_ids(check, request, request.expert_ids, active)
    returned = _returned(check, request)
    if returned.triples is None:
        return _summed(request, active, *_by_order(request, active, returned.rows))
    return _summed(request, active, *_by_triples(check, request, active, returned.rows, returned.triples))


def _counts(check: ArgumentChecks, request: CombineRequest) -> Tensor:
    """Rows of each expert of this rank and rank that they came from, [experts, ranks]."""
    count = request.ep_world_size * request.local_experts
    ends = request.ep_send_counts[:count].long()
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    if bool((counts < 0).any()) or int(ends[-1]) > len(request.expand_x):
        found = f"ep_send_counts {ends.tolist()}"
        raise DeviceFault(f"{check.operator}: {found} do not end among {len(request.expand_x)} rows")
    return counts.view(request.local_experts, -1)


@dataclass(frozen=True)
class _Returned:
    """Rows that came back to this rank, by the rank that they come from, and there by expert."""

    rows: Tensor
    triples: Tensor | None


def _returned(check: ArgumentChecks, request: CombineRequest) -> _Returned:
    counts = _counts(check, request)
    ranks = torch.arange(request.ep_world_size).repeat(len(counts)).repeat_interleave(counts.flatten())
    order = ranks.argsort(stable=True)
    sent = counts.sum(dim=0)
    received = gathered(request, sent)[:, request.ep_rank_id].tolist()
    rows = exchanged(request, request.expand_x[order], sent.tolist(), received)
    if request.assist_info_for_combine is None:
        return _Returned(rows, None)
    triples = request.assist_info_for_combine[: 3 * len(order)].view(-1, 3)
    return _Returned(rows, exchanged(request, triples[order], sent.tolist(), received))


def _room(request: CombineRequest, active: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Which copies came back, and what was said of them, [bs, k + shared experts]."""
    rows, k = active.shape
    return torch.zeros(rows, k + shared, dtype=torch.bool), torch.zeros(rows, k + shared, request.expand_x.shape[1])


def _by_triples(
    check: ArgumentChecks, request: CombineRequest, active: Tensor, rows: Tensor, triples: Tensor
) -> tuple[Tensor, Tensor]:
    """Put rows to what dispatch of the second version wrote beside each."""
    found, said = _room(request, active, len(request.shared_ranks_of(request.ep_rank_id)))
    limits = torch.tensor([request.ep_world_size, *found.shape])
    outside = ((triples < 0) | (triples >= limits) | (triples[:, :1] != request.ep_rank_id)).any(dim=1)
    if bool(outside.any()):
        triple = triples[outside][0].tolist()
        raise DeviceFault(f"{check.operator}: assist_info_for_combine names rank, token and copy {triple}")
    tokens, copies = triples[:, 1].long(), triples[:, 2].long()
    found[tokens, copies] = True
    said[tokens, copies] = rows.float()
    return found, said


def _by_order(request: CombineRequest, active: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Put rows by ordinals: they come back by rank and expert, in the order in which they were sent."""
    shared, k = len(request.shared_ranks_of(request.ep_rank_id)), active.shape[1]
    found, said = _room(request, active, shared)
    tokens = active.any(dim=1).nonzero().flatten()
    values = rows.float()
    for number in range(shared):
        here = values[number * len(tokens) : (number + 1) * len(tokens)]
        found[tokens[: len(here)], k + number] = True
        said[tokens[: len(here)], k + number] = here
    experts = request.expert_ids[active].long()
    counts = torch.bincount(experts, minlength=request.moe_expert_num)
    starts = shared * len(tokens) + counts.cumsum(0) - counts
    if request.expand_idx is None or not len(values):
        return found, said
    at = starts[experts] + request.expand_idx[: active.numel()].view(active.shape)[active].long()
    found[:, :k][active] = (at >= 0) & (at < len(values))
    said[:, :k][active] = values[at.clamp(0, len(values) - 1)]
    return found, said


def _summed(request: CombineRequest, active: Tensor, found: Tensor, said: Tensor) -> Tensor:
    k = active.shape[1]
    takes_part = active.any(dim=1)
    wanted = torch.cat([active, takes_part.unsqueeze(1).expand(-1, found.shape[1] - k)], dim=1)
    if bool((wanted & ~found).any()):
        token, copy = (wanted & ~found).nonzero()[0].tolist()
        missing = f"copy {copy} of token {token} of rank {request.ep_rank_id}"
        raise UndefinedBehaviour(f"combine waits for {missing}, in vain")
    total = torch.zeros(len(active), said.shape[2])
    for copy in range(said.shape[1]):
        values = said[:, copy] * request.expert_scales[:, copy : copy + 1] if copy < k else said[:, copy]
        total = total + values.masked_fill(~wanted[:, copy : copy + 1], 0.0)
    if request.shared_expert_x is not None:
        total = total + request.shared_expert_x.float()
    output = unwritten((len(active), said.shape[2]), request.expand_x.dtype)
    output[takes_part] = total[takes_part].to(output.dtype)
    return output


def _check(check: ArgumentChecks, request: CombineRequest) -> None:
    check_host(check, request, request.expand_x, request.expert_ids)
    rows, k = request.expert_ids.shape
    hidden = request.expand_x.shape[1]
    if str(request.expand_x.dtype) == "torch.int32":
        raise check.not_simulated("expand_x", "int32", "float16 and bfloat16")
    check.dtype("expand_x", request.expand_x, "float16", "bfloat16")
    check_domain(check, request, rows, hidden, request.expert_ids)
    check.dtype("expert_scales", request.expert_scales, "float32")
    check.shape("expert_scales", request.expert_scales, (rows, k), meaning="[bs, k]")
    if request.comm_quant_mode:
        raise check.not_simulated("comm_quant_mode", request.comm_quant_mode, "0")
    shared = request.shared_expert_x
    if shared is not None:
        if request.shared_expert_rank_num:
            raise check.rejected("shared_expert_x", "given", "None where shared_expert_rank_num is not 0")
        check.same_dtype("shared_expert_x", shared, "expand_x", request.expand_x)
        check.shape("shared_expert_x", shared, (rows, hidden), meaning="[bs, H]")
    _check_index(check, request, rows * k)


def _check_index(check: ArgumentChecks, request: CombineRequest, pairs: int) -> None:
    name = "expand_idx" if request.expand_idx is not None else "assist_info_for_combine"
    index, counts = getattr(request, name), request.ep_send_counts
    check.dtype(name, index, "int32")
    check.dtype("ep_send_counts", counts, "int32")
    check.rank(name, index, 1)
    check.rank("ep_send_counts", counts, 1)
    ends = request.ep_world_size * request.local_experts
    for argument, tensor, count in ((name, index, pairs), ("ep_send_counts", counts, ends)):
        if len(tensor) < count:
            raise check.rejected(argument, f"of length {len(tensor)}", f"at least {count}")


def combine_meta(request: CombineRequest) -> Tensor:
    """Allocate the output, after the checks of the host code."""
    check_host(_V2, request, request.expand_x, request.expert_ids)
    return request.expand_x.new_empty((len(request.expert_ids), request.expand_x.shape[1]))
