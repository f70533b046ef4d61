"""What no source settles of attention over chosen tokens.

DOC is the operators' documentation in op-plugin, GOLDEN the expected values of its tests, COPY the kernels and checks
for A2 and A3 in vllm-ascend's ``csrc/attention``, which are near copies of CANN's: that CANN's do the same is inferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SparseAttentionChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # Both indexers, equal scores: GOLDEN sorts without asking for an order. COPY merges sorted blocks, and which of two
    # equal scores is first depends on the cut into blocks; the merge prefers the later one (vllm-ascend #15053).
    indexer_ties: Literal["lower_position_first", "higher_position_first"] = "lower_position_first"

    # npu_quant_lightning_indexer: COPY rounds weight * query scale and relu(q . k) / 1024 to float16. DOC has the
    # formula and wants the former product to fit float16, which speaks for COPY.
    quant_indexer_products: Literal["float16", "float32"] = "float16"

    # npu_sparse_flash_attention, from one tile of keys to the next: COPY keeps the sums of values in units of powers of
    # two, and rescales by adding to their exponents; what is left of the factor is rounded to the queries' dtype.
    sparse_attention_rescale: Literal["exponent", "float32"] = "exponent"

    # sparse_indices with a valid entry behind a negative one: DOC wants all valid ones in front. GOLDEN ends at the
    # first negative one; COPY ends half a tile at an even slot and skips an odd one.
    sparse_attention_unpacked: Literal["ends_the_row", "undefined"] = "ends_the_row"

    # A row with indices that all lie behind what it may see: of COPY's two kernels one has the smallest maximum, -2e38,
    # and the other the row of zeros of a row without indices. GOLDEN would give a mean of values.
    sparse_attention_hidden_row: Literal["lowest_maximum", "as_empty"] = "lowest_maximum"

    # npu_sparse_flash_attention, query heads: COPY's checks take 1 to 64 and 128, DOC only powers of two.
    sparse_attention_heads: Literal["checked", "documented"] = "checked"

    # npu_sparse_attention_score, a block behind that of the query's own position: COPY reads all of it, the expected
    # values of vllm-ascend's tests pass it over.
    sparse_score_later_block: Literal["read", "passed_over"] = "read"
