"""The dispatchers of vllm-ascend over ranks, ``ops/fused_moe/token_dispatcher.py``: MC2, all-to-all and all-gather.

What stands between dispatch and combination are products that npudiff calls: those of vllm-ascend are under test in
``moe_experts``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from vllm_ascend.ops.fused_moe import token_dispatcher
from vllm_ascend.ops.fused_moe.dataclass.moe_quant import MoEQuantParams
from vllm_ascend.ops.fused_moe.dataclass.router_input import MoeRouterInput
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import MoETokenDispatchInput
from vllm_ascend.quantization.quant_type import QuantType

from npudiff import Target, implementation
from npudiff.device.ascend.expert_parallel import (
    ON_A2,
    Everything,
    Outputs,
    everything,
    of_shared,
    own,
    slots_of,
)
from npudiff.device.ascend.moe_experts import said
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, engine, engine_config, patched
from npudiff.model.constraints import Box
from npudiff.reference.expert_parallel import ExpertParallelPart

_SEVERAL: Box = {"ranks": range(2, 9), "divides": (True,), "shared_ranks": (0,)}


@contextlib.contextmanager
def _world(inputs: ExpertParallelPart) -> Iterator[None]:
    """Be a rank of an engine: its group, and how many tokens ranks have at most."""
    layout = inputs.layout
    group = SimpleNamespace(device_group=dist.group.WORLD, rank_in_group=inputs.rank, world_size=layout.ranks)
    ascend = ascend_configuration(enable_mc2_hierarchy_comm=False)
    names = {
        "get_ep_group": lambda: group,
        "get_mc2_group": lambda: group,
        "get_current_vllm_config": lambda: engine_config(inputs.states.dtype),
        "get_ascend_config": lambda: ascend,
        "get_mc2_tokens_capacity": lambda: max(layout.rows),
        "should_skip_allreduce_across_dp_group": lambda _: layout.global_rows > 0 and inputs.mask is None,
        "is_hierarchical_communication_enabled": lambda: False,
    }
    with engine(engine_config(inputs.states.dtype), ascend), patched(token_dispatcher, names):
        yield


def _map_of(inputs: ExpertParallelPart) -> torch.Tensor:
    """For each expert that the router knows its number on this rank, -1 for those that are elsewhere.

    As ``eplb/core/eplb_utils.py`` makes it, by the numbers of the router and not by slots.
    """
    here = inputs.placement[inputs.layout.experts(inputs.rank)]
    numbers = torch.full((inputs.table.shape[1],), -1, dtype=torch.int32, device=here.device)
    numbers[here] = torch.arange(len(here), dtype=torch.int32, device=here.device)
    return numbers


def _through(inputs: ExpertParallelPart, dispatcher: Any, tokens: Everything) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 - vllm-ascend's
    """Dispatch tokens, ask the experts of this rank, and combine; return that and counts."""
    experts = inputs.table.shape[1]
    routing = MoeRouterInput(_map_of(inputs), sum(inputs.layout.slots) - experts, inputs.mask, False)
    quant = MoEQuantParams(QuantType.W8A8 if inputs.local.quantised else QuantType.NONE)
    sent = dispatcher.token_dispatch(
        MoETokenDispatchInput(
            hidden_states=tokens.states,
            topk_weights=tokens.weights,
            topk_ids=tokens.slots,
            routing=routing,
            quant=quant,
        )
    )
    counts = sent.group_list
    if sent.group_list_type == 0:
        counts = torch.diff(counts, prepend=counts.new_zeros(1))
    rows, dtype = sent.hidden_states, inputs.states.dtype
    scale = sent.dynamic_scale if inputs.local.quantised else None
    result = said(rows, scale, counts, inputs.local, dtype) if len(rows) else rows.to(dtype)
    output = dispatcher.token_combine(hidden_states=result, combine_metadata=sent.combine_metadata)
    return output, counts


def _own_tokens(inputs: ExpertParallelPart) -> Everything:
    return Everything(inputs.states, slots_of(inputs), inputs.weights, len(inputs.states))


def _of_rank(inputs: ExpertParallelPart, make: Callable[[], Any]) -> Outputs:
    with _world(inputs):
        output, counts = _through(inputs, make(), _own_tokens(inputs))
    shared = of_shared(inputs.states, inputs.shared)
    return {"output": output if shared is None else output + shared, "counts": counts.to(torch.int64)}


@implementation(
    "expert_parallel",
    name="TokenDispatcherWithMC2",
    supports=[
        {**ON_A2, "padding": ("none",), "spread": ("equal", "ragged")},
        {**ON_A2, "padding": ("mask",)},
    ],
    on_device=True,
)
def mc2(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """TokenDispatcherWithMC2: dispatch and combine, with a mask or the rows of the fullest rank."""
    return _of_rank(inputs, token_dispatcher.TokenDispatcherWithMC2)


@implementation(
    "expert_parallel",
    name="TokenDispatcherWithAll2AllV",
    supports={**_SEVERAL, "padding": ("none", "zero weight")},
    on_device=True,
)
def all_to_all(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """TokenDispatcherWithAll2AllV: a histogram, all-to-all with splits, and both unpermutations."""
    here = inputs.layout.slots[inputs.rank]
    return _of_rank(
        inputs,
        lambda: token_dispatcher.TokenDispatcherWithAll2AllV(
            top_k=inputs.topk_ids.shape[1], num_experts=sum(inputs.layout.slots), num_local_experts=here
        ),
    )


@implementation(
    "expert_parallel",
    name="TokenDispatcherWithAllGather",
    supports={**_SEVERAL, "padding": ("none",)},
    on_device=True,
)
def all_gather(inputs: ExpertParallelPart, target: Target) -> Outputs:
    """TokenDispatcherWithAllGather between an all-gather, as PrepareAndFinalizeWithAllGather makes it, and a sum."""
    tokens = everything(inputs)
    filled = tokens.slots.clamp(min=0)  # what fills up has some expert, and weight 0
    with _world(inputs):
        make = token_dispatcher.TokenDispatcherWithAllGather
        dispatcher = make(
            top_k=inputs.topk_ids.shape[1], num_experts=sum(inputs.layout.slots),
            num_local_experts=inputs.layout.slots[inputs.rank],
        )  # fmt: skip
        total, _ = _through(inputs, dispatcher, Everything(tokens.states, filled, tokens.weights, tokens.most))
    dist.all_reduce(total)
    start = inputs.rank * tokens.most
    return {"output": own(inputs, total[start : start + len(inputs.states)])}
