"""Attention of encoders as vllm-ascend and sglang call it: the fused operators, ATB's, and plain torch.

Sources of the call paths: vllm-ascend, ``ops/mm_encoder_attention.py``, ``attention/attention_v1.py`` and
``_310p/ops/mm_encoder_attention.py``; sglang, ``layers/attention/vision.py``.
"""

from __future__ import annotations

import itertools

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import NO_LIMIT, FusedCall
from npudiff.model.constraints import Box
from npudiff.reference.encoder_attention import EncoderAttentionInputs

Outputs = dict[str, torch.Tensor]

PACKED_DIMS = (64, 128, 192)
"""Head dims that the packed layout of fused attention takes."""

FUSED: Box = {"dtype": ("bfloat16",), "head_dim": range(1, 193)}
"""The packed layout is documented for bfloat16 only."""


def ends(lengths: tuple[int, ...]) -> list[int]:
    """Cumulative lengths, which the packed layout takes."""
    return list(itertools.accumulate(lengths))


def padded_head(inputs: EncoderAttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of the sequences, whose heads are padded with zeros to the next dim that the operators take.

    The operators want no rows behind the last sequence, and CANN 9.1 no gaps between rows.
    """
    query, key, value = tokens_of(inputs)
    dim = query.shape[2]
    more = next(taken for taken in PACKED_DIMS if taken >= dim) - dim
    query, key, value = (torch.nn.functional.pad(one, (0, more)) for one in (query, key, value))
    return query, key, value


def tokens_of(inputs: EncoderAttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the sequences, one after the other in memory."""
    seen = sum(inputs.kv_lengths)
    own = inputs.query[: sum(inputs.query_lengths)]
    return own.contiguous(), inputs.key[:seen].contiguous(), inputs.value[:seen].contiguous()


def nothing_to_do(inputs: EncoderAttentionInputs) -> bool:
    """Whether no row sees a key: operators take no empty tensors."""
    return not sum(inputs.query_lengths) or not sum(inputs.kv_lengths)


def nothing(inputs: EncoderAttentionInputs) -> Outputs:
    """What rows come to that see no key."""
    lse = inputs.query.new_full(inputs.query.shape[:2], -torch.inf, dtype=torch.float32)
    return {"output": inputs.query.new_zeros(inputs.query.shape), "lse": lse}


def of_all_rows(inputs: EncoderAttentionInputs, output: torch.Tensor, lse: torch.Tensor | None = None) -> Outputs:
    """Outputs with rows for padding, and heads of the dim that they had."""
    whole = nothing(inputs)
    whole["output"][: len(output)] = output[..., : inputs.query.shape[2]]
    if lse is None:
        return {"output": whole["output"]}
    whole["lse"][: len(lse)] = torch.where(lse.isposinf(), -torch.inf, lse)  # how the operators mark what sees nothing
    return whole


def fused_call(inputs: EncoderAttentionInputs) -> FusedCall:
    """Fused attention without a mask, of the first version (mm_encoder_attention.py 160-180, vision.py 925-937)."""
    arguments = {
        "input_layout": "TND",
        "actual_seq_lengths": ends(inputs.query_lengths),
        "actual_seq_lengths_kv": ends(inputs.kv_lengths),
        "num_heads": inputs.query.shape[1],
        "num_key_value_heads": inputs.key.shape[1],
        "scale": inputs.scale,
        "sparse_mode": 0,
        "pre_tokens": NO_LIMIT,
        "next_tokens": NO_LIMIT,
        "softmax_lse_flag": True,
    }
    return FusedCall("npu_fused_infer_attention_score", *padded_head(inputs), arguments)


def run(inputs: EncoderAttentionInputs, call: FusedCall) -> Outputs:
    """Run a call of fused attention."""
    output, lse = call()
    return of_all_rows(inputs, output, lse.squeeze(-1))


@implementation("encoder_attention", supports=FUSED, on_device=True, graph=True)
def fia_encoder_tnd(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """All sequences in one call of fused attention."""
    return nothing(inputs) if nothing_to_do(inputs) else run(inputs, fused_call(inputs))


@implementation("encoder_attention", supports=FUSED, on_device=True, graph=True)
def fia_v2_encoder_tnd(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """The same by the second version of the operator."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    arguments = {
        "input_layout": "TND",
        "actual_seq_qlen": ends(inputs.query_lengths),
        "actual_seq_kvlen": ends(inputs.kv_lengths),
        "num_query_heads": inputs.query.shape[1],
        "num_key_value_heads": inputs.key.shape[1],
        "softmax_scale": inputs.scale,
        "sparse_mode": 0,
        "return_softmax_lse": True,
    }
    return run(inputs, FusedCall("npu_fused_infer_attention_score_v2", *padded_head(inputs), arguments))


@implementation("encoder_attention", supports=FUSED, on_device=True, graph=True)
def fia_encoder_out(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """The first version in memory of the caller and without log-sum-exp, as graphs of vllm-ascend have it."""
    if nothing_to_do(inputs):
        return {"output": nothing(inputs)["output"]}
    call = fused_call(inputs).having(softmax_lse_flag=False)
    tensors = call.query, call.key, call.value
    operators = torch.ops.npu
    workspace = operators._npu_fused_infer_attention_score_get_max_workspace(*tensors, **call.arguments)
    output, unused = call.query.new_full(call.query.shape, 777.0), call.query.new_full((1,), 777.0)
    operators.npu_fused_infer_attention_score.out(*tensors, **call.arguments, workspace=workspace, out=[output, unused])
    return of_all_rows(inputs, output)


@implementation("encoder_attention", supports={"head_dim": range(1, 769)}, on_device=True)
def fusion_encoder_tnd(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """``npu_fusion_attention`` as encoder-only models call it, with an end of 0 for padding (attention_v1.py 1578)."""
    if nothing_to_do(inputs):
        return nothing(inputs)
    query, key, value = (one.contiguous() for one in (inputs.query, inputs.key, inputs.value))
    rows = sum(inputs.query_lengths)
    behind = [0] * (len(query) > rows)
    output, largest, total = torch.ops.npu.npu_fusion_attention(
        query, key, value, query.shape[1], "TND", scale=inputs.scale, softmax_layout="TND",
        actual_seq_qlen=ends(inputs.query_lengths) + behind, actual_seq_kvlen=ends(inputs.kv_lengths) + behind,
    )[:3]  # fmt: skip
    return of_all_rows(inputs, output[:rows], (largest + total.log())[:rows, :, 0])


@implementation(
    "encoder_attention",
    supports={"dtype": ("bfloat16",), "head_dim": range(1, 577), "cross": (False,)},
    on_device=True,
)
def atb_encoder_unpad(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """ATB's operator, which is given the length of each sequence, on the host.

    Its kernels may compute scores of float16 in that dtype, which no bound has room for.
    """
    if nothing_to_do(inputs):
        return nothing(inputs)
    query, key, value = tokens_of(inputs)
    output = query.new_zeros(query.shape)
    torch.ops.atb._npu_flash_attention_unpad(
        query, key, value, torch.tensor(inputs.query_lengths, dtype=torch.int32), inputs.scale, query.shape[1],
        key.shape[1], output,
    )  # fmt: skip
    return of_all_rows(inputs, output)


@implementation("encoder_attention", supports={}, on_device=True, graph=True)
def torch_each_sequence(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """Sequence after sequence in float32."""
    whole, row, first = nothing(inputs), 0, 0
    group = inputs.query.shape[1] // inputs.key.shape[1]
    for rows, keys in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        if rows and keys:
            query = inputs.query[row : row + rows].float().transpose(0, 1)
            key, value = (
                one[first : first + keys].float().transpose(0, 1).repeat_interleave(group, dim=0)
                for one in (inputs.key, inputs.value)
            )
            scores = query @ key.transpose(1, 2) * inputs.scale
            output = torch.softmax(scores, dim=-1) @ value
            whole["output"][row : row + rows] = output.transpose(0, 1).to(inputs.query.dtype)
            whole["lse"][row : row + rows] = torch.logsumexp(scores, dim=-1).t()
        row, first = row + rows, first + keys
    return whole


def seen_by_rows(inputs: EncoderAttentionInputs) -> torch.Tensor:
    """The block diagonal mask, bool ``[rows, keys]``; True is seen."""
    rows, keys = sum(inputs.query_lengths), sum(inputs.kv_lengths)
    seen = inputs.query.new_zeros(rows, keys, dtype=torch.bool)
    row = first = 0
    for own, theirs in zip(ends(inputs.query_lengths), ends(inputs.kv_lengths), strict=True):
        seen[row:own, first:theirs] = True
        row, first = own, theirs
    return seen


@implementation("encoder_attention", supports={}, on_device=True, graph=True)
def sdpa_block_mask(inputs: EncoderAttentionInputs, target: Target) -> Outputs:
    """``scaled_dot_product_attention`` over all sequences, with a mask (vision.py 300-420)."""
    if nothing_to_do(inputs):
        return {"output": nothing(inputs)["output"]}
    return by_mask(inputs, seen_by_rows(inputs))


def by_mask(inputs: EncoderAttentionInputs, seen: torch.Tensor) -> Outputs:
    """Attention of the rows to what a mask shows them."""
    query, key, value = (one.transpose(0, 1)[None] for one in tokens_of(inputs))
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=inputs.scale, enable_gqa=True
    )[0].transpose(0, 1)
    return of_all_rows(inputs, torch.where(seen.any(dim=1)[:, None, None], output, 0))
