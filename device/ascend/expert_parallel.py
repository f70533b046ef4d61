"""Experts over ranks as Ascend backends run them: dispatch and combine, all-to-all, and everything everywhere.

Sources: vllm-ascend's ``ops/fused_moe``, ``token_dispatcher.py`` and ``prepare_finalize.py``; sgl-kernel-npu's
``deep_ep`` for what fills up ranks with fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from npudiff import Target, implementation
from npudiff.device.ascend.moe_experts import alone, said
from npudiff.device.ascend.moe_routing import COUNTS, second
from npudiff.device.communicators import name_of
from npudiff.model.constraints import Box
from npudiff.reference.expert_parallel import LEFT_OUT, ExpertParallelPart
from npudiff.reference.moe_experts import Experts
from npudiff.reference.moe_routing import MoeRoutingInputs

Outputs = dict[str, torch.Tensor]

NO_QUANTISATION, PER_TOKEN = 0, 2
"""quant_mode of dispatch."""

ENDS_OF_EXPERTS, COUNTS_OF_EXPERTS = 0, 1
"""expert_token_nums_type of dispatch."""

ON_A2: Box = {"ranks": range(2, 9), "divides": (True,), "shared_ranks": (0,), "hidden": range(32, 8193, 32),
              "tokens": range(1, 257)}  # fmt: skip
ON_A3: Box = {"ranks": range(2, 9), "divides": (True,), "hidden": range(1024, 8193)}
"""What dispatch and combine take. One rank alone is none of a group of ranks."""

_AS_MANY: Box = {"padding": ("none",), "spread": ("equal", "ragged")}
_FILLED: Box = {"padding": ("mask", "zero weight")}
WITH_TOKENS: tuple[Box, ...] = (
    {**ON_A2, **_AS_MANY},
    {**ON_A2, **_FILLED},
    {**ON_A3, **_AS_MANY},
    {**ON_A3, "padding": ("mask", "zero weight", "mask of copies")},
)
"""Each rank has a row at least: the operators take no rank without any."""
UNFILLED: tuple[Box, ...] = ({**ON_A2, "padding": ("none",)}, {**ON_A3, "padding": ("none",)})

EVERY_RANK_ROUTES: Box = {"shared_ranks": (0,), "padding": ("none", "zero weight")}
"""All ranks have routed experts, and no token is masked."""

EVERYWHERE: tuple[Box, ...] = (
    {"shared_ranks": (0,), "padding": ("none", "minus one")},
    {"shared_ranks": (0,), "padding": ("zero weight",), "poison": ("large",), "dtype": ("bfloat16",)},
)
"""A copy that is elsewhere takes row 0 with weight 0, so what an expert says of that row must be finite: float16 does
not hold what comes of large states."""


def slots_of(inputs: ExpertParallelPart) -> torch.Tensor:
    """Slots of the chosen experts, int32 ``[tokens, k]``: token t uses row t, round and round, of the table."""
    rows = torch.arange(len(inputs.topk_ids), device=inputs.topk_ids.device) % len(inputs.table)
    slots = inputs.table[rows.unsqueeze(1), inputs.topk_ids.clamp(min=0).long()]
    return torch.where(inputs.topk_ids < 0, inputs.topk_ids, slots).contiguous()


def of_shared(states: torch.Tensor, shared: Experts | None) -> torch.Tensor | None:
    """What the shared expert says of all tokens of this rank: one group of all rows."""
    if shared is None or not len(states):
        return None
    counts = torch.tensor([len(states)], device=states.device)
    rows, scale = torch.ops.npu.npu_dynamic_quant(states) if shared.quantised else (states, None)
    return said(rows, scale, counts, shared, states.dtype)


# Dispatch and combine.


@dataclass(frozen=True)
class Dispatched:
    """What came to this rank."""

    rows: torch.Tensor
    """``[room, hidden]``; rows behind those that came hold anything."""
    scale: torch.Tensor | None
    """float32 ``[room]``, of int8 rows."""
    index: torch.Tensor
    """For combine: the ordinals of the first version, or what the second knows of each row."""
    counts: torch.Tensor
    """int64 ``[experts of this rank]``."""
    ends: torch.Tensor
    """For combine."""
    expand_scales: torch.Tensor


def domain(inputs: ExpertParallelPart) -> dict[str, Any]:
    """Arguments that dispatch and combine have in common."""
    layout = inputs.layout
    return {
        "group_ep": name_of(),
        "ep_world_size": layout.ranks,
        "ep_rank_id": inputs.rank,
        "moe_expert_num": sum(layout.slots),
        "expert_shard_type": 0,
        "shared_expert_num": layout.shared_experts,
        "shared_expert_rank_num": layout.shared_ranks,
        "global_bs": layout.global_rows,
        "x_active_mask": inputs.mask,
    }


def dispatched(
    inputs: ExpertParallelPart, *, first: bool = False, kind: int = ENDS_OF_EXPERTS, **others: object
) -> Dispatched:
    """npu_moe_distribute_dispatch, or its second version; rows become int8 before they are sent, where they do."""
    operator = torch.ops.npu.npu_moe_distribute_dispatch if first else torch.ops.npu.npu_moe_distribute_dispatch_v2
    quantised = inputs.local.quantised
    arguments = {
        **domain(inputs),
        "quant_mode": PER_TOKEN if quantised else NO_QUANTISATION,
        "expert_token_nums_type": kind,
        **others,
    }
    rows, scale, index, numbers, ends, _, expand_scales = operator(inputs.states, slots_of(inputs), **arguments)
    counts = numbers if kind == COUNTS_OF_EXPERTS else torch.diff(numbers, prepend=numbers.new_zeros(1))
    return Dispatched(rows, scale if quantised else None, index, counts, ends, expand_scales)


def combined(
    inputs: ExpertParallelPart, sent: Dispatched, rows: torch.Tensor, *, first: bool = False, **others: object
) -> torch.Tensor:
    """npu_moe_distribute_combine, or its second version."""
    operator = torch.ops.npu.npu_moe_distribute_combine if first else torch.ops.npu.npu_moe_distribute_combine_v2
    arguments = {**domain(inputs), "expand_scales": sent.expand_scales, **others}
    return operator(  # type: ignore[no-any-return]
        rows, slots_of(inputs), sent.index, sent.ends, inputs.weights.float(), **arguments
    )


def of_rows(inputs: ExpertParallelPart, sent: Dispatched) -> torch.Tensor:
    """What experts say of the rows that came."""
    return said(sent.rows, sent.scale, sent.counts, inputs.local, inputs.states.dtype)


@implementation("expert_parallel", supports=WITH_TOKENS, on_device=True)
def dispatch_v2(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """npu_moe_distribute_dispatch_v2 with cumulative rows, grouped products, and combine_v2 with the shared expert."""
    sent = dispatched(inputs)
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": combined(inputs, sent, of_rows(inputs, sent), shared_expert_x=shared), "counts": sent.counts}


@implementation("expert_parallel", supports=WITH_TOKENS, on_device=True)
def dispatch_v1(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """npu_moe_distribute_dispatch with counts, and combine; the shared expert is added behind that."""
    sent = dispatched(inputs, first=True, kind=COUNTS_OF_EXPERTS)
    output = combined(inputs, sent, of_rows(inputs, sent), first=True)
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": output if shared is None else output + shared, "counts": sent.counts}


def filled_up(inputs: ExpertParallelPart, rows: int) -> ExpertParallelPart:
    """The same rank with so many rows: those that are added are masked, and hold what memory holds."""
    more = rows - len(inputs.states)
    states = torch.cat([inputs.states, inputs.states.new_full((more, inputs.states.shape[1]), torch.nan)])
    both = (inputs.topk_ids, inputs.weights)
    ids, weights = (torch.cat([part, part.new_zeros(more, part.shape[1])]) for part in both)
    mask = torch.arange(rows, device=states.device) < len(inputs.states)
    layout = replace(inputs.layout, rows=(rows,) * inputs.layout.ranks, global_rows=0)
    return replace(inputs, states=states, topk_ids=ids, weights=weights, mask=mask, layout=layout)


@implementation("expert_parallel", supports=UNFILLED, on_device=True)
def dispatch_filled_up(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """The same with all ranks filled up to the rows of the fullest; what is added is masked, on some ranks all."""
    most = torch.tensor([len(inputs.states)], device=inputs.states.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    full = filled_up(inputs, int(most))
    sent = dispatched(full)
    output = combined(full, sent, of_rows(full, sent))[: len(inputs.states)]
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": output if shared is None else output + shared, "counts": sent.counts}


# All-to-all.


@dataclass(frozen=True)
class Exchange:
    """How many rows go where."""

    sent: list[int]
    """To each rank."""
    received: list[int]
    """From each rank."""
    here: torch.Tensor
    """int64 ``[ranks, experts of this rank]``: rows from each rank for each expert."""

    @property
    def counts(self) -> torch.Tensor:
        """int64 ``[experts of this rank]``."""
        return self.here.sum(dim=0)


def exchange_of(inputs: ExpertParallelPart, slots: torch.Tensor) -> Exchange:
    """A histogram of slots, and those of all ranks."""
    layout = inputs.layout
    counts = torch.bincount(slots.flatten(), minlength=sum(layout.slots))
    everywhere = counts.new_empty(layout.ranks * len(counts))
    dist.all_gather_into_tensor(everywhere, counts)
    here = everywhere.view(layout.ranks, -1)[:, layout.experts(inputs.rank)].contiguous()
    sent = [int(part.sum()) for part in torch.split(counts, list(layout.slots))]
    return Exchange(sent, here.sum(dim=1).tolist(), here)


def exchanged(rows: torch.Tensor, received: list[int], sent: list[int]) -> torch.Tensor:
    """all_to_all_single with the rows for each rank, and from each."""
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent)
    return found


@dataclass(frozen=True)
class Exchanged:
    """Rows that came, and where they belong."""

    rows: torch.Tensor
    scale: torch.Tensor | None
    src_to_dst_row: torch.Tensor
    """int32 ``[tokens * k]``: where each copy was put before it was sent."""
    plan: Exchange


def sent_to_all(inputs: ExpertParallelPart) -> Exchanged:
    """npu_moe_token_permute, npu_dynamic_quant where rows are int8, and an exchange of rows and scales."""
    slots = slots_of(inputs)
    plan = exchange_of(inputs, slots)
    rows, src_to_dst_row = torch.ops.npu.npu_moe_token_permute(inputs.states, slots, num_out_tokens=slots.numel())
    scale = None
    if inputs.local.quantised:
        rows, scale = quantised(rows)
        scale = exchanged(scale, plan.received, plan.sent)
    return Exchanged(exchanged(rows, plan.received, plan.sent), scale, src_to_dst_row, plan)


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """npu_dynamic_quant; without rows there is nothing to call it for."""
    if not len(rows):
        return rows.to(torch.int8), rows.new_empty(0, dtype=torch.float32)
    return torch.ops.npu.npu_dynamic_quant(rows)  # type: ignore[no-any-return]


def said_of(rows: torch.Tensor, scale: torch.Tensor | None, plan: Exchange, inputs: ExpertParallelPart) -> torch.Tensor:
    """What experts say of rows that came; products without rows are not called."""
    if not len(rows):
        return rows.to(inputs.states.dtype)
    return said(rows, scale, plan.counts, inputs.local, inputs.states.dtype)


def brought_back(inputs: ExpertParallelPart, came: Exchanged, rows: torch.Tensor) -> torch.Tensor:
    """The way back, npu_moe_token_unpermute with weights, and the shared expert."""
    plan = came.plan
    back = exchanged(rows, plan.sent, plan.received)
    output = torch.ops.npu.npu_moe_token_unpermute(back, came.src_to_dst_row, probs=inputs.weights)
    shared = of_shared(inputs.states, inputs.shared)
    return output if shared is None else output + shared  # type: ignore[no-any-return]


def local_numbers(plan: Exchange) -> torch.Tensor:
    """The number of its expert among those of this rank for each row that came, int32 ``[rows]``."""
    ranks, experts = plan.here.shape
    numbers = torch.arange(experts, dtype=torch.int32, device=plan.here.device).repeat(ranks)
    return torch.repeat_interleave(numbers, plan.here.flatten())


@implementation("expert_parallel", supports=EVERY_RANK_ROUTES, on_device=True)
def all_to_all(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """all_to_all_single with splits; rows that came are sorted by npu_moe_token_permute, or init_routing_v2 if int8."""
    came = sent_to_all(inputs)
    plan, rows, scale = came.plan, came.rows, came.scale
    experts = plan.here.shape[1]
    if experts == 1 or not len(rows):
        return {"output": brought_back(inputs, came, said_of(rows, scale, plan, inputs)), "counts": plan.counts}
    numbers = local_numbers(plan)
    if scale is None:
        rows, src_to_dst_row = torch.ops.npu.npu_moe_token_permute(rows, numbers)
    else:
        routing = MoeRoutingInputs(rows, numbers.unsqueeze(1), experts, 0, experts, "with scales", scale)
        rows, src_to_dst_row, _, scale = second(routing, COUNTS)
    result = said_of(rows, scale, plan, inputs)
    result = torch.ops.npu.npu_moe_token_unpermute(result, src_to_dst_row)
    return {"output": brought_back(inputs, came, result), "counts": plan.counts}


@implementation("expert_parallel", supports=EVERY_RANK_ROUTES, on_device=True)
def all_to_all_re_routed(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """The same with npu_moe_re_routing, which is told how many rows of each rank are of each expert."""
    came = sent_to_all(inputs)
    plan = came.plan
    rows, scale, places, counts = torch.ops.npu.npu_moe_re_routing(came.rows, plan.here, per_token_scales=came.scale)
    result = said_of(rows, None if came.scale is None else scale, plan, inputs)
    back = torch.empty_like(result)
    back[places.long()] = result
    return {"output": brought_back(inputs, came, back), "counts": counts}


# Everything everywhere.


def gathered(rows: torch.Tensor, most: int, ranks: int, filler: float) -> torch.Tensor:
    """all_gather of the rows of all ranks, ``[ranks * most, ...]``; those that are missing hold ``filler``."""
    mine = rows.new_full((most, *rows.shape[1:]), filler)
    mine[: len(rows)] = rows
    everywhere = rows.new_empty(ranks * most, *rows.shape[1:])
    dist.all_gather_into_tensor(everywhere, mine)
    return everywhere


@dataclass(frozen=True)
class Everything:
    """Tokens of all ranks, as many of each."""

    states: torch.Tensor
    slots: torch.Tensor
    """int32; ``LEFT_OUT`` for what fills up."""
    weights: torch.Tensor
    most: int
    """Rows of each rank."""


def everything(inputs: ExpertParallelPart) -> Everything:
    """All tokens on every rank."""
    ranks, most = inputs.layout.ranks, max(inputs.layout.rows)
    states = gathered(inputs.states, most, ranks, 0.0)
    slots = gathered(slots_of(inputs), most, ranks, LEFT_OUT)
    return Everything(states, slots, gathered(inputs.weights, most, ranks, 0.0), most)


def routed_here(inputs: ExpertParallelPart, tokens: Everything) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What experts of this rank say: rows, the row of each copy or -1, and counts."""
    here = inputs.layout.experts(inputs.rank)
    form = "by largest" if inputs.local.quantised else "as they are"
    routing = MoeRoutingInputs(tokens.states, tokens.slots, sum(inputs.layout.slots), here.start, here.stop, form)
    rows, src_to_dst_row, counts, scale = second(routing, COUNTS)
    result = said(rows, scale if inputs.local.quantised else None, counts, inputs.local, inputs.states.dtype)
    return result, src_to_dst_row, counts


def own(inputs: ExpertParallelPart, total: torch.Tensor) -> torch.Tensor:
    """Add the shared expert to the sums of this rank's tokens."""
    shared = of_shared(inputs.states, inputs.shared)
    return total if shared is None else total + shared


def unpermuted(tokens: Everything, rows: torch.Tensor, src_to_dst_row: torch.Tensor) -> torch.Tensor:
    """npu_moe_token_unpermute: copies that are elsewhere take row 0, with weight 0."""
    missing = src_to_dst_row < 0
    if bool(missing.all()):  # there is no row 0 then
        return torch.zeros_like(tokens.states)
    weights = tokens.weights.masked_fill(missing.view(tokens.weights.shape), 0.0)
    return torch.ops.npu.npu_moe_token_unpermute(  # type: ignore[no-any-return]
        rows, src_to_dst_row.clamp(min=0), probs=weights
    )


@implementation("expert_parallel", supports=EVERYWHERE, on_device=True)
def all_gather(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """All tokens everywhere, npu_moe_init_routing_v2 with the range of this rank, unpermute, and an all-reduce."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    total = unpermuted(tokens, rows, src_to_dst_row)
    dist.all_reduce(total)
    start = inputs.rank * tokens.most
    return {"output": own(inputs, total[start : start + len(inputs.states)]), "counts": counts}


@implementation(
    "expert_parallel", supports={"shared_ranks": (0,), "padding": ("none", "minus one", "zero weight")}, on_device=True
)
def all_gather_scattered(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """The same with npu_moe_finalize_routing, which knows -1, and a reduce-scatter in place of the all-reduce."""
    tokens = everything(inputs)
    rows, src_to_dst_row, counts = routed_here(inputs, tokens)
    total = finalized(tokens, rows, src_to_dst_row)
    mine = total.new_empty(tokens.most, total.shape[1])
    dist.reduce_scatter_tensor(mine, total)
    return {"output": own(inputs, mine[: len(inputs.states)]), "counts": counts}


ROWS_OR_NONE = 3
"""drop_pad_mode: places by row, of which -1 is none."""


def finalized(tokens: Everything, rows: torch.Tensor, src_to_dst_row: torch.Tensor) -> torch.Tensor:
    """npu_moe_finalize_routing of rows of one expert with room for all."""
    return torch.ops.npu.npu_moe_finalize_routing(  # type: ignore[no-any-return]
        rows.unsqueeze(0),
        skip1=None,
        skip2=None,
        bias=None,
        scales=tokens.weights,
        expanded_src_to_dst_row=src_to_dst_row,
        export_for_source_row=None,
        drop_pad_mode=ROWS_OR_NONE,
    )


@implementation("expert_parallel", on_device=True)
def everywhere_composed(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """All tokens everywhere, a loop over experts of plain operators, and an all-reduce in float32."""
    layout, ranks, most = inputs.layout, inputs.layout.ranks, max(inputs.layout.rows)
    here = len(inputs.states)
    taking = torch.ones_like(inputs.topk_ids)
    if inputs.mask is not None:
        taking = (inputs.mask if inputs.mask.dim() == 2 else inputs.mask.unsqueeze(1)).int()
    slots = slots_of(inputs).masked_fill(taking == 0, LEFT_OUT)
    active = inputs.topk_ids.new_ones(here) if inputs.mask is None else taking.amax(dim=1)
    states = gathered(inputs.states, most, ranks, 0.0)
    weights, slots = gathered(inputs.weights, most, ranks, 0.0), gathered(slots, most, ranks, LEFT_OUT)
    active = gathered(active, most, ranks, 0)
    total = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
    if inputs.rank < layout.shared_ranks:
        counts = _of_sources(inputs, states, active, total, most)
    else:
        counts = _of_local(inputs, states, slots, weights, total)
    dist.all_reduce(total)
    mine = total[inputs.rank * most :][:here]
    if inputs.shared is not None:
        mine = mine + alone(inputs.states, inputs.shared, 0).float()
    return {"output": mine.to(inputs.states.dtype), "counts": counts}


def _of_local(
    inputs: ExpertParallelPart, states: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, total: torch.Tensor
) -> torch.Tensor:
    """Add what each expert of this rank says of its tokens; return how many it had."""
    here = inputs.layout.experts(inputs.rank)
    counts = torch.zeros(here.stop - here.start, dtype=torch.int64, device=states.device)
    for index, slot in enumerate(range(here.start, here.stop)):
        tokens, copies = (slots == slot).nonzero(as_tuple=True)
        counts[index] = len(tokens)
        if len(tokens):
            rows = alone(states[tokens], inputs.local, index).float()
            total.index_add_(0, tokens, rows * weights[tokens, copies].float().unsqueeze(1))
    return counts


def _of_sources(
    inputs: ExpertParallelPart, states: torch.Tensor, active: torch.Tensor, total: torch.Tensor, most: int
) -> torch.Tensor:
    """Add what the shared expert of this rank says of tokens of ranks that it serves; return how many there were."""
    layout = inputs.layout
    ranks = torch.arange(len(states), device=states.device) // most
    mine = (active > 0) & (ranks % layout.copies_of_shared == inputs.rank % layout.copies_of_shared)
    tokens = mine.nonzero().flatten()
    if len(tokens):
        total[tokens] += alone(states[tokens], inputs.local, 0).float()
    return torch.tensor([len(tokens)], device=states.device)
