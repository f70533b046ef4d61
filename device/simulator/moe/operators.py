"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.moe import distribute_combine as combine
from npudiff.device.simulator.moe import distribute_dispatch as dispatch
from npudiff.device.simulator.moe import finalize_routing as finalize
from npudiff.device.simulator.moe import gating, schemas
from npudiff.device.simulator.moe import init_routing as v1
from npudiff.device.simulator.moe import init_routing_quant as quant
from npudiff.device.simulator.moe import init_routing_v2 as v2
from npudiff.device.simulator.moe import token_permute as permute
from npudiff.device.simulator.moe.re_routing import re_routing, re_routing_meta

OPERATORS = (
    Operator(schemas.GATING_TOP_K_SOFTMAX, gating.gating_top_k_softmax, gating.gating_top_k_softmax_meta),
    Operator(schemas.GATING_TOP_K, gating.gating_top_k, gating.gating_top_k_meta),
    Operator(schemas.INIT_ROUTING, v1.init_routing, v1.init_routing_meta),
    Operator(schemas.INIT_ROUTING_V2, v2.init_routing_v2, v2.init_routing_v2_meta, request=v2.RoutingRequest),
    Operator(
        schemas.INIT_ROUTING_QUANT,
        quant.init_routing_quant,
        quant.init_routing_quant_meta,
        request=quant.QuantRoutingRequest,
    ),
    Operator(schemas.COMPUTE_EXPERT_TOKENS, v1.compute_expert_tokens, v1.compute_expert_tokens_meta),
    Operator(schemas.FINALIZE_ROUTING, finalize.finalize_routing, finalize.finalize_routing_meta),
    Operator(schemas.PERMUTE, permute.token_permute, permute.token_permute_meta),
    Operator(schemas.RE_ROUTING, re_routing, re_routing_meta),
    Operator(schemas.UNPERMUTE, permute.token_unpermute, permute.token_unpermute_meta),
    Operator(
        schemas.DISTRIBUTE_DISPATCH, dispatch.dispatch_v1, dispatch.dispatch_v1_meta, request=dispatch.DispatchRequest
    ),
    Operator(
        schemas.DISTRIBUTE_DISPATCH_V2, dispatch.dispatch_v2, dispatch.dispatch_meta, request=dispatch.DispatchRequest
    ),
    Operator(schemas.DISTRIBUTE_COMBINE, combine.combine_v1, combine.combine_meta, request=combine.CombineRequest),
    Operator(schemas.DISTRIBUTE_COMBINE_V2, combine.combine_v2, combine.combine_meta, request=combine.CombineRequest),
)
"""Every operator of the family."""
