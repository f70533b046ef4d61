"""The choice of experts on a device."""

from sglang.srt.layers.moe.topk import StandardTopKOutput, select_experts


def fused_topk_npu(hidden_states, router_logits, topk_config, num_token_non_padded=None):
    """Rows of padding keep their experts, with weights of 0."""
    chosen = select_experts(hidden_states, router_logits, topk_config)
    return _finalize_topk_npu(
        topk_ids=chosen.topk_ids, topk_weights=chosen.topk_weights, router_logits=router_logits,
        topk_config=topk_config, num_token_non_padded=num_token_non_padded,
    )  # fmt: skip


def _finalize_topk_npu(
    *, topk_ids, topk_weights, router_logits, topk_config, num_token_non_padded, expert_location_dispatch_info=None,
    layer_id=None,
):  # fmt: skip
    if num_token_non_padded is not None:
        topk_weights[num_token_non_padded:] = 0
    return StandardTopKOutput(topk_weights, topk_ids, router_logits)
