"""Optional tensors of the operators that are simulated: which ones no call of an adapter leaves out, or gives.

What is always there is never tried without, and what is never there is never tried at all. Each has its reason here.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from npudiff.device.contract.calls import recorded_calls
from npudiff.device.simulator.library import operators

COMBINED = "keys and values have scales of their own; npu_incre_flash_attention has them as one tensor"
RESERVED = "is reserved"
NO_OFFSETS = "the adapter in memory of the caller is that of vllm-ascend, which gives no offsets"
QUANTISED_ATTENTION = "attention of integers is not simulated"
NO_PREFIX = "shared prefixes and padding on the left are refused with pages"
TRAINED = "nobody who serves models has it"
SYMMETRIC = "no backend has offsets there"
COMPRESSED = "no backend compresses a cache"
OTHER_SUMS = "no backend adds further terms"
INT8_MLA = "latents of integers are not simulated by the prolog's adapters"
MARKED_ROWS = "no backend marks rows for the router"
PAGED = "every cache of a backend has pages, and attention over rows alone is tested in the simulator"

_V1 = dict.fromkeys(
    ("antiquant_scale", "antiquant_offset"), COMBINED
) | {"key_rope_antiquant_scale": RESERVED} | dict.fromkeys(
    ("dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2"), QUANTISED_ATTENTION,
) | dict.fromkeys(
    ("query_padding_size", "kv_padding_size", "key_shared_prefix", "value_shared_prefix"), NO_PREFIX,
) | {"pse_shift": TRAINED}  # fmt: skip

_V1_OUT = _V1 | dict.fromkeys(("key_antiquant_offset", "value_antiquant_offset"), NO_OFFSETS)

_PROLOG = dict.fromkeys(
    ("dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr", "quant_scale_ckv",
     "quant_scale_ckr", "smooth_scales_cq"), INT8_MLA,
)  # fmt: skip

_OFFSETS = {"k_rope_offset": SYMMETRIC, "c_kv_offset": SYMMETRIC, "v": "values come from latents"}

NEVER = {
    "npu_fused_infer_attention_score": _V1,
    "npu_fused_infer_attention_score.out": _V1_OUT,
    "_npu_fused_infer_attention_score_get_max_workspace": _V1_OUT,
    "npu_fused_infer_attention_score_v2": {
        "pse_shift": TRAINED,
        **dict.fromkeys(
            ("dequant_scale_query", "dequant_scale_key_rope", "quant_scale_out", "quant_offset_out", "quant_scale_p"),
            QUANTISED_ATTENTION,
        ),
    },
    "npu_incre_flash_attention": {
        **dict.fromkeys(("padding_mask", "kv_padding_size"), NO_PREFIX),
        **dict.fromkeys(
            ("dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2"), QUANTISED_ATTENTION
        ),
        "atten_mask": "one query sees all keys, whose number is a length",
        "pse_shift": TRAINED,
    },
    "npu_scatter_pa_kv_cache": dict.fromkeys(("compress_lens", "compress_seq_offsets", "seq_lens"), COMPRESSED),
    "npu_rotary_mul": {"rotate": "a matrix for a mode that backends do not use"},
    "npu_kv_rmsnorm_rope_cache": _OFFSETS,
    "npu_kv_rmsnorm_rope_cache_v2": _OFFSETS,
    "npu_mla_prolog_v2": _PROLOG,
    "npu_mla_prolog_v3": {
        **_PROLOG,
        "actual_seq_len": "for caches that are written by block",
        "k_nope_clip_alpha": "for latents of integers",
    },
    "apply_token_bitmask": {"indices": "each request has a mask, as sglang calls it"},
    "mla_preprocess": dict.fromkeys(("ctkv_scale", "q_nope_scale"), INT8_MLA),
    "npu_clipped_swiglu": {"group_index": "rows of all groups are activated alike"},
    "npu_dequant_swiglu_quant": {"quant_offset": SYMMETRIC},
    "npu_swiglu_quant": {"offsets": SYMMETRIC},
    "npu_quantize": {"zero_points": SYMMETRIC},
    "npu_quant_matmul": {"y_scale": "for products of other devices"},
    "npu_weight_quant_batchmatmul": dict.fromkeys(("quant_scale", "quant_offset"), "no backend has an int8 output"),
    "npu_moe_gating_top_k_softmax": {"finished": MARKED_ROWS},
    "npu_moe_gating_top_k": dict.fromkeys(("input_ids", "tid2eid"), "experts by token are no component"),
    "npu_moe_finalize_routing": {
        **dict.fromkeys(("skip2", "bias"), OTHER_SUMS),
        "export_for_source_row": "is read with a bias only",
    },
    "npu_grouped_matmul_swiglu_quant": {"offset": SYMMETRIC},
    "npu_grouped_matmul_finalize_routing": dict.fromkeys(("bias", "offset"), SYMMETRIC),
    "recurrent_gated_delta_rule": {"gk": "is taken, and read by no kernel"},
    "chunk_gated_delta_rule": {"chunk_state": "checkpoints of a prompt are no output"},
    "npu_sparse_flash_attention": {"sinks": "for other devices"},
    "npu_fusion_attention": {
        "pse": TRAINED,
        "dropout_mask": TRAINED,
        "padding_mask": TRAINED,
        "atten_mask": "an encoder sees all of an image, whose ends are lengths",
        "sink": "no encoder has sinks",
    },
    "npu_kv_quant_sparse_flash_attention": dict.fromkeys(
        ("key_dequant_scale", "value_dequant_scale"), "scales lie beside what they are of"
    ),
}  # fmt: skip
"""By operator: what no call gives."""

WEIGHTED = "tokens are always weighted"

_REQUIRED = "the schema has it optional, and the operator requires it"
_SPARSE = dict.fromkeys(("actual_seq_lengths_query", "actual_seq_lengths_kv", "block_table"), PAGED)
_INDEXED = dict.fromkeys(("actual_seq_lengths_query", "actual_seq_lengths_key", "block_table"), PAGED)
_SPLIT = dict.fromkeys(("query_rope", "key_rope"), _REQUIRED)
_PROMPT = dict.fromkeys(("beta", "initial_state", "actual_seq_lengths"), _REQUIRED)
_STEP = {
    **dict.fromkeys(("beta", "actual_seq_lengths", "ssm_state_indices"), _REQUIRED),
    "num_accepted_tokens": "1 for each is what it is without",
}

ALWAYS = {
    "npu_incre_flash_attention": {"antiquant_scale": "only integers are attended by it", "block_table": PAGED},
    "causal_conv1d": {"cache_indices": "lines are anywhere in a pool", "query_start_loc": "tokens are packed"},
    "npu_chunk_gated_delta_rule": _PROMPT,
    "chunk_gated_delta_rule": _PROMPT,
    "npu_recurrent_gated_delta_rule": _STEP,
    "npu_recurrent_gated_delta_rule_functional": _STEP,
    "npu_lightning_indexer": _INDEXED,
    "npu_quant_lightning_indexer": _INDEXED,
    "npu_sparse_flash_attention": {**_SPARSE, **_SPLIT, "value": _REQUIRED},
    "sgl_sparse_flash_attention": {**_SPARSE, **_SPLIT},
    "npu_kv_quant_sparse_flash_attention": _SPARSE,
    "npu_fused_infer_attention_score.out": {"workspace": "what the overload is for"},
    "npu_advance_step_flashattn": dict.fromkeys(("spec_token", "accepted_num"), "drafts are what the call is for"),
    "npu_mla_prolog_v3": {"cache_index": "a cache without slots is another layout"},
    "npu_moe_finalize_routing": {"scales": WEIGHTED},
    "npu_moe_token_unpermute": {"probs": WEIGHTED},
    "npu_grouped_matmul_finalize_routing": dict.fromkeys(
        ("scale", "pertoken_scale", "logit", "row_index"), "what the fused call is for"
    ),
}
"""By operator: what no call leaves out."""


@pytest.fixture(scope="module")
def kinds():
    """By operator and optional tensor: what calls pass, with None where they leave it out."""
    schemas = {_name(one.schema): torch._C.parse_schema(one.schema) for one in operators()}
    found = defaultdict(lambda: defaultdict(set))
    for call in recorded_calls().values():
        name = call.operator.split("::")[-1]
        for place, argument in enumerate(schemas[name].arguments if name in schemas else ()):
            if str(argument.type) == "Optional[Tensor]":
                given = call.keywords.get(argument.name, {"None"})
                found[name][argument.name] |= call.positional[place] if place < len(call.positional) else given
    return found


def _name(schema):
    parsed = torch._C.parse_schema(schema)
    return parsed.name.split("::")[-1] + (f".{parsed.overload_name}" if parsed.overload_name else "")


@pytest.mark.parametrize(("listed", "missing"), [(NEVER, "Tensor"), (ALWAYS, "None")], ids=["never", "always"])
def test_every_optional_tensor_is_given_and_left_out_or_says_why_not(kinds, listed, missing):
    one_sided = {
        (operator, name) for operator, tensors in kinds.items() for name, seen in tensors.items() if missing not in seen
    }
    assert one_sided == {(operator, name) for operator, names in listed.items() for name in names}


def test_the_sweep_has_seen_calls_of_most_operators(kinds):
    assert len(kinds) > 25
    assert {"Tensor", "None"} <= kinds["npu_dynamic_quant"]["smooth_scales"]
