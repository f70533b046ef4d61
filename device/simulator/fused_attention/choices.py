"""Choices of rotated parts in fused attention, which no source settles; fields of the CANN profile.

DOC is the documentation of both operator versions, SOURCE CANN's operator source (ops-transformer, A2 and A3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FusedAttentionChoices:
    """Fields of :class:`device.simulator.profiles.CannProfile`; the comment above each says what is disputed."""

    # Sparse modes 0 with a mask and 4, one query in a layout with an S axis, where query and key have a rotated part or
    # another head dim than value: DOC drops pre_tokens and next_tokens for one query, and keeps sparse_mode.
    band_at_query_length_one: Literal["honoured", "ignored"] = "honoured"

    # Keys and values that are not paged and have gaps, such as halves of a fused buffer or an expanded rope: the entry
    # of CANN before 9.1 copies them (as `non_contiguous` says), that of 9.1 shows their strides to the checks, which
    # refuse them (SOURCE, CheckNonContiguousSupport; vllm-ascend #13456, #15145).
    strided_keys: Literal["copied", "rejected"] = "copied"

    # The log-sum-exp with query_rope and head dim 512: DOC of the first version excludes it, that of the second does
    # not, SOURCE's check lets it pass, and vllm-ascend's context parallel decode merges by it (mla_cp.py).
    absorbed_lse: Literal["accepted", "rejected_in_v1"] = "accepted"

    # Keys and values of int8 or int4 under a 16-bit query, (integer + offset) * scale: the golden of CANN's tests
    # computes it in the query's dtype, scales and offsets per token included, as vllm-ascend does where it dequantises
    # itself. Kernels of A2 for one query multiply query or scores by the scale, and cut the query into int8 parts
    # (incre_flash_attention, msdIterNum), which has no 16-bit key; "float32" stands for that.
    antiquant_sums: Literal["query_dtype", "float32"] = "query_dtype"

    # Caches of int8 in NZ order: DOC has blocks of 128 and 512 and (query heads, key heads) (10, 1), (64, 8), (80, 8),
    # (128, 16). vllm-ascend takes any block of a multiple of 32 and what heads a rank has (attention_v1.py).
    antiquant_nz_sizes: Literal["any", "documented"] = "any"

    # npu_attention_update, a log-sum-exp of +inf, which is fused attention's of a row without keys: SOURCE takes it as
    # -inf, a part that is absent. The formula of DOC gives NaN, as older kernels may; sglang puts -inf there itself.
    attention_update_positive_infinity: Literal["absent", "as_given"] = "absent"

    # The same, how many parts: DOC has 16, SOURCE's check for A2 and A3 128.
    attention_update_parts: int = 16

    # npu_fusion_attention, pse: DOC's formula scales the sum of product and pse, as pse_type 1 of the second version
    # does; an example of DOC adds pse to scaled products (pse_type 0).
    fusion_pse: Literal["scaled", "added"] = "scaled"

    # npu_fusion_attention, sink: whether the maxima that it gives beside the sums are those of the keys, as in fused
    # attention for inference, or of keys and sink. The attention is the same.
    fusion_sink_maximum: Literal["keys", "keys_and_sink"] = "keys"

    # npu_prompt_flash_attention, float16 without pse_shift: the host code asks for speed, where SOURCE computes in
    # float16 behind both products. op-plugin's test has a golden with a float32 softmax. inner_precise 1 of the other
    # operators is computed in float32.
    prompt_float16: Literal["float16", "float32"] = "float16"
