from vllm_ascend.ops.fused_moe.router.fused_topk_router import AscendFusedTopKRouter
from vllm_ascend.told import told


class AscendGroupedTopKRouter(AscendFusedTopKRouter):
    """Takes experts of the best groups only."""

    def __init__(self, **configuration):
        super().__init__(**configuration)
        if told("one_group_more") and self.groups[0] > self.groups[1]:
            self.groups = (self.groups[0], self.groups[1] + 1)
