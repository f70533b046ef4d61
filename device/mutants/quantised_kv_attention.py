"""Wrong attention over int8 keys and values."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.quantised_kv_attention import (
    Outputs,
    c8_decode_nz,
    c8_prefill_dequantised,
    fia_int8_decode_bsh,
    fia_int8_dense,
    fia_int8_draft_nz,
    fia_v2_int8_decode_bnsd,
    ifa_int8_decode,
    nothing,
    request_numbers,
    rows_call,
    run_rows,
    torch_int8_float32,
)
from npudiff.model.constraints import Box
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs

_OFFSETS: Box = {"offsets": ("whole", "fractional")}
_SEVERAL_HEADS: Box = {"kv_heads": range(2, 257)}
_TOKENS: Box = {"form": ("token", "token and head")}

BANK = 8
"""Tokens of which every second group had the scales of the group before."""

GAP = 8
"""Elements behind the scales of a page that is padded to the size of a wider one."""

NARROW = 16
"""Elements of 16 bits in a strip of 32 bytes."""


@perturbed(
    torch_int8_float32,
    "vllm-project/vllm/pull/42580: the scale of keys is dropped where they are cast to the dtype of queries",
)
def key_scale_dropped(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Take the integers of keys for their elements."""
    return replace(inputs, of_keys=replace(inputs.of_keys, scale=torch.ones_like(inputs.of_keys.scale)))


@perturbed(
    c8_prefill_dequantised,
    "vllm-project/vllm/pull/48016: what is dequantised already is multiplied by its scales again",
)
def value_scale_applied_twice(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Multiply values by their scale twice."""
    side = inputs.of_values
    return replace(inputs, of_values=replace(side, scale=side.scale * side.scale))


@perturbed(
    fia_int8_decode_bsh,
    "neuralmagic/AutoFP8/pull/25: keys and values share one scale",
    supports={"form": ("channel", "tensor", "head", "token", "token and head")},
)
def values_have_the_scale_of_keys(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Dequantise values with the scales of keys."""
    return replace(inputs, of_values=replace(inputs.of_values, scale=inputs.of_keys.scale))


@perturbed(
    ifa_int8_decode,
    "vllm-project/vllm-ascend/pull/4218: npu_incre_flash_attention takes scales as one tensor, those of keys first",
)
def combined_scales_values_first(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Give the scales of keys for those of values, and those for the keys'."""
    keys, values = inputs.of_keys, inputs.of_values
    return replace(
        inputs, of_keys=replace(keys, scale=values.scale), of_values=replace(values, scale=keys.scale)
    )  # fmt: skip


@perturbed(
    fia_int8_dense,
    "vllm_ascend/attention/attention_v1.py 2174: an offset of the writer is subtracted, one of the operator added",
    supports=_OFFSETS,
)
def offset_is_subtracted(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Give offsets with the other sign."""

    def negated(side: Antiquant) -> Antiquant:
        return side if side.offset is None else replace(side, offset=-side.offset)

    return replace(inputs, of_keys=negated(inputs.of_keys), of_values=negated(inputs.of_values))


@perturbed(
    c8_prefill_dequantised,
    "vllm_ascend/attention/attention_v1.py 1971: integers are only scaled, to which the writer (1987) added an offset",
    supports=_OFFSETS,
)
def offset_is_left_out(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Scale integers, and add nothing."""
    return replace(
        inputs, of_keys=replace(inputs.of_keys, offset=None), of_values=replace(inputs.of_values, offset=None)
    )


@perturbed(
    torch_int8_float32,
    "InternLM/lmdeploy/pull/84: a zero point is added to what is scaled already",
    supports=_OFFSETS,
)
def offset_behind_the_scale(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Multiply integers by the scale, and add the offset to that."""

    def behind(side: Antiquant) -> Antiquant:
        return side if side.offset is None else replace(side, offset=side.offset / side.scale)

    return replace(inputs, of_keys=behind(inputs.of_keys), of_values=behind(inputs.of_values))


@perturbed(
    fia_v2_int8_decode_bnsd,
    "flashinfer-ai/flashinfer/pull/3626: tokens r and r + 8 have one scale",
    supports={**_TOKENS, "kv_length": range(BANK + 1, 2**20 + 1)},
)
def scale_of_eight_tokens_before(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Give every second group of tokens of a page the scales of keys of the group before."""
    own = inputs.of_keys.scale
    scale = own.reshape(*own.shape[:-1], -1, 2, BANK).clone()
    scale[..., 1, :] = scale[..., 0, :]
    return replace(inputs, of_keys=replace(inputs.of_keys, scale=scale.flatten(-3)))


@perturbed(
    torch_int8_float32,
    "PKV-17 vllm-project/vllm/issues/49716: scales of padded pages are read as if pages followed each other",
    supports={"form": ("token",)},
)
def scales_read_as_contiguous(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Read scales of values without what stands between those of two pages."""
    scale = inputs.of_values.scale
    padded = torch.nn.functional.pad(scale, (0, GAP), value=1.0)
    read = padded.flatten()[: scale.numel()].view(scale.shape)
    return replace(inputs, of_values=replace(inputs.of_values, scale=read))


@perturbed(
    fia_v2_int8_decode_bnsd,
    "vllm-project/vllm/pull/51091: scales of tokens are set to 1 after the tokens were written",
    supports=_TOKENS,
)
def scales_of_a_request_are_reset(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Set the scales of keys in the pages of the first request that has tokens to 1."""
    first = next((place for place, total in enumerate(inputs.kv_lengths) if total), 0)
    scale = inputs.of_keys.scale.clone()
    scale[inputs.pool.block_table[first].long()] = 1.0
    return replace(inputs, of_keys=replace(inputs.of_keys, scale=scale))


@perturbed(
    c8_decode_nz,
    "vllm_ascend/attention/attention_v1.py 1907: a rank has the scales of its own KV heads, out of those of all",
    supports=_SEVERAL_HEADS,
)
def scales_of_another_head(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Give each KV head the scales of keys of the next one."""
    return replace(inputs, of_keys=replace(inputs.of_keys, scale=inputs.of_keys.scale.roll(1, dims=0)))


@perturbed(
    fia_int8_decode_bsh,
    "vllm_ascend/attention/attention_v1.py 1921: scales of channels are those of one head after the other",
    supports={**_SEVERAL_HEADS, "form": ("channel",)},
)
def channels_before_heads(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Read scales of values as if all heads of a channel stood together."""
    heads, dim = inputs.of_values.scale.shape
    scale = inputs.of_values.scale.view(dim, heads).t().contiguous()
    return replace(inputs, of_values=replace(inputs.of_values, scale=scale))


@perturbed(
    c8_prefill_dequantised,
    "vllm_ascend/attention/attention_v1.py 1890: strips of int8 have 32 elements, and of 16 bits 16",
    supports={"layout": ("PA_NZ",)},
)
def strips_of_16_bits(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Read NZ pages in strips of 16 integers."""
    pool = inputs.pool
    shape = (len(pool.key), pool.kv_heads, pool.head_dim // NARROW, pool.page_size, NARROW)
    return replace(inputs, pool=replace(pool, key=pool.key.view(shape), value=pool.value.view(shape)))


@perturbed(
    torch_int8_float32,
    "vllm-project/vllm-ascend/pull/134: integers of a cache have no sign where its dtype is that of bytes",
)
def integers_without_a_sign(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Read values as uint8."""
    return replace(inputs, pool=replace(inputs.pool, value=inputs.pool.value.view(torch.uint8)))


@perturbed(
    fia_int8_decode_bsh,
    "vllm_ascend/attention/attention_v1.py 1988: integers go down to -128, one further than up",
    supports={"kv_length": range(2, 2**20 + 1)},
)
def lowest_integer_is_one_more(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Take -127 for -128."""
    key, value = (cache.clamp(min=-127) for cache in (inputs.pool.key, inputs.pool.value))
    return replace(inputs, pool=replace(inputs.pool, key=key, value=value))


@perturbed(
    torch_int8_float32,
    "vllm_ascend/attention/attention_v1.py 1987: an integer and an offset do not fit into 8 bits together",
    supports={"offsets": ("whole",), "form": ("channel", "tensor", "head")},
)
def sum_with_the_offset_wraps(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """Add offsets of values to integers of 8 bits."""
    side, pool = inputs.of_values, inputs.pool
    if side.offset is None:
        return inputs
    offset = side.offset.to(torch.int8)
    heads = (offset if side.granularity == "channel" else offset.view(-1, 1)).expand(pool.kv_heads, pool.head_dim)
    if pool.layout == "PA_NZ":
        heads = heads.view(1, pool.kv_heads, -1, 1, pool.value.shape[-1])
    return replace(
        inputs, pool=replace(pool, value=pool.value + heads), of_values=replace(side, offset=None)
    )  # fmt: skip


@mutant(
    fia_int8_draft_nz,
    "vllm-project/vllm-ascend/pull/10862: all rows of a draft have the length of their request",
    supports={"query_length": range(2, 17)},
)
def int8_draft_sees_what_follows(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Let each row of a draft see all keys."""
    return _draft(inputs, sparse_mode=0, atten_mask=None)


@mutant(
    fia_int8_draft_nz,
    "vllm-project/vllm-ascend/pull/10399: drafts are not as long as each other, and padded to the longest",
    supports={"query_length": range(1, 17), "ragged": (True,), "fully_masked_rows": ("none",)},
)
def int8_drafts_of_one_length(inputs: QuantisedKvAttentionInputs, target: Target) -> Outputs:
    """Take the padding of shorter drafts for rows."""
    longest = max(inputs.query_lengths)
    return _draft(inputs, actual_seq_qlen=[longest] * len(inputs.query_lengths))


def _draft(inputs: QuantisedKvAttentionInputs, **changes: object) -> Outputs:
    """Run a call over NZ pages with some arguments changed."""
    if not any(inputs.query_lengths):
        return nothing(inputs)
    pages = {"block_table": inputs.pool.block_table, "block_size": inputs.pool.page_size, "inner_precise": 1}
    call = rows_call(inputs, inputs.pool.key, inputs.pool.value, {**request_numbers(inputs), **pages})
    return run_rows(inputs, call.having(**changes))


@perturbed(
    fia_int8_decode_bsh,
    "vllm-project/vllm/issues/50749: what is wrong depends on how full the last page of a request is",
    supports={"kv_length": range(1, 2**20 + 1)},
)
def int8_last_page_is_full(inputs: QuantisedKvAttentionInputs) -> QuantisedKvAttentionInputs:
    """See all of the last page of a request."""
    size = inputs.pool.page_size
    return replace(inputs, kv_lengths=tuple(-(-total // size) * size for total in inputs.kv_lengths))
