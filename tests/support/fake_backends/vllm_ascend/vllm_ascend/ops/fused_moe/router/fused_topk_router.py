from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk
from vllm_ascend.told import told


class AscendFusedTopKRouter:
    def __init__(
        self, *, top_k, global_num_experts, renormalize, use_grouped_topk, num_expert_group, topk_group, scoring_func,
        routed_scaling_factor, e_score_correction_bias,
    ):  # fmt: skip
        self.top_k, self.renormalize, self.scoring_func = top_k, renormalize, scoring_func
        self.groups = (num_expert_group or 0, topk_group or 0)
        self.routed_scaling_factor, self.e_score_correction_bias = routed_scaling_factor, e_score_correction_bias

    def _compute_routing(self, hidden_states, router_logits, indices_type):
        bias = None if told("no_bias") else self.e_score_correction_bias
        scaling = 1.0 if told("unscaled") else self.routed_scaling_factor
        return grouped_topk(
            hidden_states, router_logits, self.top_k, self.renormalize, *self.groups, self.scoring_func, scaling, bias
        )
