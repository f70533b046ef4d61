"""The operators of this family: torch_npu's, and some of sgl-kernel-npu."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.linear_attention import chunk_rule, recurrent, schemas, sgl_chunk, sgl_recurrent
from npudiff.device.simulator.linear_attention.causal_conv1d import ConvRequest, causal_conv1d, causal_conv1d_meta

OPERATORS = (
    Operator(
        schemas.CHUNK_GATED_DELTA_RULE,
        chunk_rule.chunk_gated_delta_rule,
        chunk_rule.chunk_gated_delta_rule_meta,
        request=chunk_rule.ChunkRequest,
    ),
    Operator(
        schemas.RECURRENT_GATED_DELTA_RULE,
        recurrent.recurrent_gated_delta_rule,
        recurrent.recurrent_gated_delta_rule_meta,
        request=recurrent.RecurrentRequest,
    ),
    Operator(
        schemas.RECURRENT_GATED_DELTA_RULE_FUNCTIONAL,
        recurrent.recurrent_gated_delta_rule_functional,
        recurrent.recurrent_gated_delta_rule_functional_meta,
        request=recurrent.RecurrentRequest,
    ),
    Operator(schemas.CAUSAL_CONV1D, causal_conv1d, causal_conv1d_meta, request=ConvRequest),
    Operator(
        schemas.SGL_RECURRENT_GATED_DELTA_RULE,
        sgl_recurrent.sgl_recurrent_gated_delta_rule,
        sgl_recurrent.sgl_recurrent_gated_delta_rule_meta,
        request=sgl_recurrent.SglRequest,
    ),
    Operator(
        schemas.SGL_CHUNK_GATED_DELTA_RULE,
        sgl_chunk.sgl_chunk_gated_delta_rule,
        sgl_chunk.sgl_chunk_gated_delta_rule_meta,
        request=sgl_chunk.SglChunkRequest,
    ),
)
"""Every operator of the family."""
