"""What no source settles of filters of logits.

KERNEL is CANN's ``apply_top_k_top_p_with_sorted`` (ops-nn), GOLDEN op-plugin's test, DOC its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SamplingChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # npu_top_k_top_p, what cumulative probabilities are compared with: KERNEL takes p from 1 in float32, GOLDEN in the
    # dtype of p.
    top_p_complement: Literal["float32", "dtype_of_p"] = "float32"

    # The same, k of 0 and less or of the vocabulary and more: KERNEL keeps every token then. DOC has 1 to 1024, and
    # vllm-ascend gives the size of the vocabulary for "no top-k". "undefined" is for callers who want to keep to DOC.
    top_k_out_of_range: Literal["keeps_all", "undefined"] = "keeps_all"
