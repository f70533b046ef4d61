"""Which router a configuration gets."""

from vllm_ascend.ops.fused_moe.router.fused_topk_router import AscendFusedTopKRouter
from vllm_ascend.ops.fused_moe.router.grouped_topk_router import AscendGroupedTopKRouter


def create_ascend_fused_moe_router(**configuration):
    kind = AscendGroupedTopKRouter if configuration["use_grouped_topk"] else AscendFusedTopKRouter
    return kind(**configuration)
