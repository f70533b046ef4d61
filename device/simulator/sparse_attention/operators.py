"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.sparse_attention import attention, checks, indexer, schemas, score, score_checks

OPERATORS = (
    Operator(
        schemas.LIGHTNING_INDEXER,
        indexer.lightning_indexer,
        indexer.lightning_indexer_meta,
        request=indexer.IndexerRequest,
    ),
    Operator(
        schemas.QUANT_LIGHTNING_INDEXER,
        indexer.quant_lightning_indexer,
        indexer.quant_lightning_indexer_meta,
        request=indexer.QuantIndexerRequest,
    ),
    Operator(
        schemas.SPARSE_FLASH_ATTENTION,
        attention.sparse_flash_attention,
        attention.sparse_flash_attention_meta,
        request=checks.AttentionRequest,
    ),
    Operator(
        schemas.SGL_SPARSE_FLASH_ATTENTION,
        attention.sgl_sparse_flash_attention,
        attention.sparse_flash_attention_meta,
        request=checks.SglAttentionRequest,
    ),
    Operator(
        schemas.KV_QUANT_SPARSE_FLASH_ATTENTION,
        attention.kv_quant_sparse_flash_attention,
        attention.kv_quant_sparse_flash_attention_meta,
        request=checks.KvQuantRequest,
    ),
    *(
        Operator(
            schema,
            score.sparse_attention_score,
            score.sparse_attention_score_meta,
            request=score_checks.ScoreRequest,
        )
        for schema in schemas.OF_VLLM_ASCEND
    ),
)
"""Every operator of the family."""
