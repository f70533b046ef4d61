"""What no source settles of the operators before multi-head latent attention.

They are ``npu_mla_prolog`` in all versions, and ``mla_preprocess`` of sgl-kernel-npu. DOC is the documentation of
``npu_mla_prolog`` in torch_npu 2.13.0, NEWER what the repositories of op-plugin and CANN say of version 3 since then,
ATB the documentation of ``torch_npu.atb.npu_mla_preprocess`` in torch_npu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MlaChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # Sizes. DOC has hidden size 7168 (version 3: 6144 and 7680 too), rank 1536, head dim 128 and blocks of 16 or
    # 128; NEWER has for version 3 nine hidden sizes from 1024 up, rank 2048, head dim 192 and blocks in steps of 16.
    # "free" is of no hardware: any sizes that fit together, for calls whose data is cheap to make.
    mla_sizes: Literal["documented", "newer", "free"] = "documented"

    # Do products of 16 bit round before the next stage takes them? CANN's goldens of npu_mla_prolog and its kernel for
    # A2 and A3 (mla_prolog_comm.h) round; ATB describes its operator as a chain of small ones, whose products would
    # round too, and its kernel may hand on float32 (not read).
    mla_products: Literal["rounded", "float32"] = "rounded"

    # A negative cache_index or slotmapping: no source says. DOC wants 0 or more and checks nothing; its relative
    # npu_kv_rmsnorm_rope_cache skips the token (inferred from there).
    mla_negative_slot: Literal["skipped", "fault"] = "skipped"

    # Two tokens for one slot: no source says. As for npu_kv_rmsnorm_rope_cache, "unpredictable" fills the slot with
    # what nobody wrote.
    mla_duplicate_slot: Literal["unpredictable", "last_token"] = "unpredictable"

    # npu_mla_prolog_v3, outputs that a call has not: shape [0] from CANN 8.5.0.alpha003 on and [1] before (the wheel's
    # META); DOC says a [1] that holds 0.
    mla_prolog_placeholders: Literal["empty", "one_zero"] = "empty"

    # The same, query_norm: does it contain qc_qr_scale? CANN's golden scales the query's latent with it; which of
    # the two is returned is not said.
    mla_prolog_query_norm: Literal["scaled", "unscaled"] = "scaled"

    # npu_mla_prolog in all versions, weights that were not cast: DOC wants weight_dq, weight_uq_qr and weight_dkv_kr
    # in FRACTAL_NZ, and its own examples for graphs and for version 2 pass ND ones.
    mla_prolog_weight_format: Literal["any", "fractal_nz"] = "any"

    # mla_preprocess, int8 from float16 with a fraction of one half. No source says.
    mla_preprocess_int8: Literal["half_to_even", "half_away_from_zero"] = "half_to_even"

    # The same, the normalised query: is it rounded to 16 bit before it is quantised? ATB describes one operator for
    # both, which speaks against it.
    mla_preprocess_norm: Literal["float32", "rounded"] = "float32"
