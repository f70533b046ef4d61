"""Wrong attention of encoders."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.encoder_attention import (
    PACKED_DIMS,
    Outputs,
    by_mask,
    fia_encoder_tnd,
    fia_v2_encoder_tnd,
    fused_call,
    fusion_encoder_tnd,
    nothing,
    nothing_to_do,
    of_all_rows,
    run,
    sdpa_block_mask,
    seen_by_rows,
    tokens_of,
    torch_each_sequence,
)
from npudiff.device.ascend.fused_attention import compressed_mask
from npudiff.model.constraints import Box
from npudiff.reference.encoder_attention import EncoderAttentionInputs

_SEVERAL: Box = {"batch": range(2, 4097)}
_PADDED_DIMS: tuple[Box, ...] = ({"head_dim": range(65, 128)}, {"head_dim": range(129, 192)})


@mutant(
    fia_encoder_tnd,
    "sgl-project/sglang/pull/16199: encoders attend causally",
    supports={"query_length": range(2, 2**17 + 1), "cross": (False,)},
)
def encoder_is_causal(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Hide the keys behind a row, as of a decoder."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    mask = compressed_mask(str(inputs.query.device))
    return run(inputs, fused_call(inputs).having(sparse_mode=3, atten_mask=mask))


@mutant(
    fia_encoder_tnd,
    "vllm-project/vllm-ascend/pull/1958: the softmax scale of the padded head dim",
    supports=_PADDED_DIMS,
)
def encoder_scale_of_padded_dim(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Divide by the root of the dim that the operator is given."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    dim = inputs.query.shape[2]
    padded = next(taken for taken in PACKED_DIMS if taken >= dim)
    return run(inputs, fused_call(inputs).having(scale=inputs.scale * math.sqrt(dim / padded)))


@perturbed(
    fia_encoder_tnd,
    "vllm-project/vllm-ascend/issues/13699: without a mask the operator returns the mean of the values",
)
def every_key_weighs_the_same(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Make all scores 0."""
    return replace(inputs, query=torch.zeros_like(inputs.query))


@perturbed(
    fusion_encoder_tnd,
    "vllm-project/vllm/pull/31950: a scale of the model's own does not arrive",
    supports={"scale": (0.5, 4.0)},
)
def scale_of_the_head_dim(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Take the root of the head dim, whatever the model says."""
    return replace(inputs, scale=inputs.query.shape[2] ** -0.5)


@mutant(
    fia_encoder_tnd,
    "sgl-project/sglang/pull/31867: lengths are given one by one, and not their sums",
    supports=_SEVERAL,
)
def lengths_are_not_cumulative(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Give the length of each sequence for its end."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    lengths = {"actual_seq_lengths": inputs.query_lengths, "actual_seq_lengths_kv": inputs.kv_lengths}
    return run(inputs, fused_call(inputs).having(**{name: list(each) for name, each in lengths.items()}))


@perturbed(
    sdpa_block_mask,
    "vllm_ascend/ops/mm_encoder_attention.py 210: windows and images are sequences of their own",
    supports=_SEVERAL,
)
def one_sequence_of_all(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Let all sequences attend to each other."""
    return replace(inputs, query_lengths=(sum(inputs.query_lengths),), kv_lengths=(sum(inputs.kv_lengths),))


@perturbed(
    fia_v2_encoder_tnd,
    "vllm_ascend/ops/mm_encoder_attention.py 128: sequences are not of one length, where a call is captured too",
    supports={**_SEVERAL, "cross": (False,)},
)
def sequences_of_one_length(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Divide all rows evenly; the last sequence has what is left over."""
    batch, total = len(inputs.query_lengths), sum(inputs.query_lengths)
    even = (*[total // batch] * (batch - 1), total - total // batch * (batch - 1))
    return replace(inputs, query_lengths=even, kv_lengths=even)


@perturbed(
    torch_each_sequence,
    "vllm_ascend/worker/encoder_acl_graph.py 166: padding is no part of the last sequence",
    supports={"padded_rows": range(1, 2**16 + 1)},
)
def padding_in_the_last_sequence(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Let the last sequence go on to the last row."""
    more = len(inputs.key) - sum(inputs.kv_lengths)
    return replace(inputs, kv_lengths=(*inputs.kv_lengths[:-1], inputs.kv_lengths[-1] + more))


@perturbed(
    torch_each_sequence,
    "vllm_ascend/ops/mm_encoder_attention.py 95: each KV head is repeated for the query heads that follow each other",
    supports={"kv_heads": range(2, 257), "group": range(2, 65)},
)
def encoder_kv_heads_in_turn(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Repeat all KV heads, one after the other."""
    group = inputs.query.shape[1] // inputs.key.shape[1]
    return replace(inputs, key=inputs.key.repeat(1, group, 1), value=inputs.value.repeat(1, group, 1))


@mutant(
    fia_encoder_tnd,
    "vllm_ascend/ops/mm_encoder_attention.py 140: heads are cut to their dim one by one",
    supports=[{**box, "kv_heads": range(2, 257)} for box in _PADDED_DIMS],
)
def rows_are_cut(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Cut what the heads of a row are together."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    output, lse = fused_call(inputs)()
    _, heads, dim = inputs.query.shape
    rows = output.flatten(1)[:, : heads * dim].reshape(-1, heads, dim)
    return of_all_rows(inputs, rows, lse.squeeze(-1))


@perturbed(
    torch_each_sequence,
    "vllm_ascend/worker/encoder_acl_graph.py 174: keys end elsewhere than rows where there are more or fewer of them",
    supports={"cross": (True,)},
)
def keys_end_where_rows_do(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Take the lengths of rows for those of keys, as far as there are keys."""
    last = len(inputs.key)
    ends = [min(last, end) for end in itertools.accumulate(inputs.query_lengths)]
    kept = tuple(end - start for start, end in itertools.pairwise((0, *ends)))
    return replace(inputs, kv_lengths=kept)


@perturbed(
    torch_each_sequence,
    "vllm_ascend/worker/encoder_acl_graph.py 162: a sequence that is left out has no keys either",
    supports={"batch": range(2, 4097), "cross": (True,), "query_length": range(4)},
)
def only_rows_are_left_out(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Leave sequences without rows out, and not their keys."""
    kept = tuple(length for length in inputs.query_lengths if length)
    return replace(inputs, query_lengths=kept, kv_lengths=inputs.kv_lengths[: len(kept)])


@perturbed(
    fusion_encoder_tnd,
    "NVIDIA/TensorRT-LLM/pull/12089: slices of a projection are read with the strides of the result",
    supports={"rows": ("sliced",), "query_length": range(2, 2**17 + 1), "cross": (False,)},
)
def projection_read_as_contiguous(inputs: EncoderAttentionInputs) -> EncoderAttentionInputs:
    """Read queries, keys and values as if nothing stood between their rows."""
    read = {}
    for name in ("query", "key", "value"):
        one = getattr(inputs, name)
        read[name] = one.as_strided(one.shape, (one.shape[1] * one.shape[2], one.shape[2], 1)).clone()
    return replace(inputs, **read)


@mutant(
    sdpa_block_mask,
    "sglang layers/attention/vision.py 415: scores are rounded to 16 bits before the softmax",
    supports={"kv_length": range(2, 2**17 + 1)},
)
def scores_in_16_bits(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Multiply queries and keys in their dtype."""
    query, key, value = (one.transpose(0, 1) for one in tokens_of(inputs))
    key, value = (one.repeat_interleave(len(query) // len(one), dim=0) for one in (key, value))
    scores = (query @ key.transpose(1, 2) * inputs.scale).masked_fill(~seen_by_rows(inputs), -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype).nan_to_num()
    outputs = nothing(inputs)
    outputs["output"][: query.shape[1]] = (weights @ value).transpose(0, 1)
    return {"output": outputs["output"]}


@mutant(
    sdpa_block_mask,
    "sglang layers/attention/vision.py 341: the mask has every sequence to its end",
    supports={"query_length": range(2, 2**17 + 1), **_SEVERAL},
)
def last_key_is_hidden(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Hide the last key of each sequence that has more."""
    seen, end = seen_by_rows(inputs), 0
    for keys in inputs.kv_lengths:
        end += keys
        if keys > 1:
            seen[:, end - 1] = False
    return by_mask(inputs, seen)
