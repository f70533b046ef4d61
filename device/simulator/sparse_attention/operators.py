"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.sparse_attention import indexer, schemas

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
)
"""Every operator of the family."""
