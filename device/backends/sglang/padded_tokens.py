"""Padding of batches among sglang's experts: which rows are real, whose weights are 0, and the way through experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.moe import topk
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher.ascend_tp import AscendTPCombineInput, AscendTPDispatcher
from sglang.srt.layers.moe.topk import StandardTopKOutput, TopKConfig
from sglang.srt.model_executor.forward_batch_info import compute_local_num_token_non_padded

from npudiff import Target, implementation
from npudiff.device.ascend.padded_tokens import computed, outputs_of
from npudiff.device.backends.sglang.world import configured, ranks
from npudiff.reference.padded_tokens import PaddedTokensInputs

Outputs = dict[str, torch.Tensor]


def _weights_are_masked() -> str:
    return "" if hasattr(topk, "_finalize_topk_npu") else "this version has no _finalize_topk_npu"


def _real(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Have sglang say how many rows of the chunk are real, to a rank that has it of a batch that ranks share."""
    total, offset = int(inputs.totals), int(inputs.offsets)
    number = -(-max(total, offset + inputs.chunk) // inputs.chunk)
    sizes = dict.fromkeys(("tp_size", "attn_tp_size", "moe_tp_size"), number)
    with ranks(**sizes, **{name.replace("size", "rank"): offset // inputs.chunk for name in sizes}):
        real: torch.Tensor = compute_local_num_token_non_padded(
            inputs.totals[0], number * inputs.chunk, sharded=number > 1
        )
    return real


@implementation(
    "padded_tokens",
    name="AscendTPDispatcher",
    supports={"ranks": (1,)},
    on_device=True,
    requires=_weights_are_masked,
)
def dispatched(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """compute_local_num_token_non_padded, the last step of fused_topk_npu, and AscendTPDispatcher there and back.

    A gathered buffer has no such number: sglang hands it on for batches of one rank, or of ranks that share one.
    """
    configured()
    number, top_k = len(inputs.factors), inputs.experts.shape[1]
    chosen = topk._finalize_topk_npu(
        topk_ids=inputs.experts, topk_weights=inputs.weights.clone(), router_logits=None,
        topk_config=TopKConfig(top_k=top_k), num_token_non_padded=_real(inputs),
        expert_location_dispatch_info=None, layer_id=0,
    )  # fmt: skip
    layer: Any = SimpleNamespace()
    config = MoeRunnerConfig(num_experts=number, top_k=top_k, activation="silu", layer=layer)
    layer.dispatcher = dispatcher = AscendTPDispatcher(config)
    sent = dispatcher.dispatch(inputs.states, StandardTopKOutput(chosen.topk_weights, chosen.topk_ids, None))
    counts = sent.expert_tokens.long()
    if sent.group_list_type == 0:
        counts = torch.diff(counts, prepend=counts.new_zeros(1))
    rows = computed(inputs, sent.hidden_states, counts)
    answer = dispatcher.combine(AscendTPCombineInput(rows))
    return {**outputs_of(inputs, chosen.topk_weights, counts, answer), "experts": chosen.topk_ids}
