"""The dispatcher of tokens of vllm-ascend, of one rank: ``ops/fused_moe/token_dispatcher.py``, all-gather."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm_ascend.ops.fused_moe import token_dispatcher
from vllm_ascend.ops.fused_moe.dataclass.moe_quant import MoEQuantParams
from vllm_ascend.ops.fused_moe.dataclass.router_input import MoeRouterInput
from vllm_ascend.ops.fused_moe.dataclass.token_dispatcher import MoETokenDispatchInput
from vllm_ascend.quantization.quant_type import QuantType

from npudiff.device.backends import NoSuchCheckpoint
from npudiff.reference.moe_routing import MoeRoutingInputs

QUANTISED = {"as they are": QuantType.NONE, "with scales": QuantType.W8A8, "by largest": QuantType.W8A8}
"""What a dispatcher is told of the experts behind it, for what copies become."""


def dispatcher(top_k: int, experts: int, here: int) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the dispatcher of a rank that has some of the experts."""
    return token_dispatcher.TokenDispatcherWithAllGather(top_k=top_k, num_experts=experts, num_local_experts=here)


def dispatched(inputs: MoeRoutingInputs) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Dispatch tokens to the experts of a rank.

    Raises
    ------
    NoSuchCheckpoint
        If experts are here that no rank has: all have as many, one rank's after the other's.
    """
    here, device = inputs.last - inputs.first, inputs.experts.device
    if inputs.first % here:
        raise NoSuchCheckpoint(f"no rank of several with {here} experts each has those from {inputs.first} on")
    mapping = None
    if here < inputs.all_experts:
        mapping = torch.full((inputs.all_experts,), -1, dtype=torch.int32, device=device)
        mapping[inputs.first : inputs.last] = torch.arange(here, dtype=torch.int32, device=device)
    scale = inputs.scale if inputs.form == "with scales" else None
    given = MoETokenDispatchInput(
        hidden_states=inputs.states, topk_weights=torch.ones_like(inputs.experts, dtype=inputs.states.dtype),
        topk_ids=inputs.experts, routing=MoeRouterInput(mapping, 0, None, False, pertoken_scale=scale),
        quant=MoEQuantParams(QUANTISED[inputs.form]),
    )  # fmt: skip
    rank = SimpleNamespace(rank_in_group=inputs.first // here)
    with mock.patch.object(token_dispatcher, "get_ep_group", return_value=rank):
        return dispatcher(inputs.experts.shape[1], inputs.all_experts, here).token_dispatch(given)
