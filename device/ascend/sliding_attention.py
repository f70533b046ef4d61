"""Sliding-window attention as backends call it: extend, decode and multi-token decode through the fused operators."""

from __future__ import annotations

import itertools

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.fused_attention import (
    FusedCall,
    bsnd_call,
    cache_views,
    decode_call,
    decode_mask,
    graph_decode_call,
    real_rows,
    tnd_call,
)
from npudiff.model.constraints import Box, Joined
from npudiff.reference.sliding_attention import SlidingAttentionInputs

Outputs = dict[str, torch.Tensor]

POISON = ("large",)
"""NaN in storage that the operator may load but must not use is not within its documented contract: a hidden key has
weight 0, and 0 * NaN is NaN. Finite poison must not be seen."""

ND: Box = {"layout": ("PA_BSND",)}
NZ: Box = {"layout": ("PA_NZ",)}

SMALL_PAGES: Box = {**ND, "head_dims": ("64", "128"), "page_size": range(16, 1025, 16)}
"""The operator takes small pages for these head dims only."""

STRIPS = Joined((range(16, 513, 16),))
"""Head dims of whole strips, the same for keys and values."""

MANY_ROWS_PAGES: Box = {**ND, "page_size": range(128, 513, 128)}
"""Pages for other head dims: what is taken for one row per request, and for more, which alone may have up to 1,024."""

TND: Box = {"dtype": ("bfloat16",), "poison": POISON, "fully_masked_rows": ("none", "empty"), "group": range(1, 65)}
"""Ragged layout: bfloat16 only, and no request with more rows than keys, unless it has no keys at all."""

TND_BOXES: tuple[Box, ...] = (
    {**TND, **SMALL_PAGES},
    {**TND, **MANY_ROWS_PAGES, "head_dims": ("192/128",)},
    {
        **TND,
        **MANY_ROWS_PAGES,
        "head_dims": ("192",),
        "sinks": (False,),
    },  # sinks need a value head dim up to 128
)


def with_padding(inputs: SlidingAttentionInputs, output: torch.Tensor, lse: torch.Tensor) -> Outputs:
    """Return outputs for all rows: real ones ``[rows, heads, dim]`` and ``[rows, heads]``, then zeros for padding.

    The operator reports an LSE of plus infinity for a row that sees nothing; here that is the sum over no keys: minus
    infinity, or the sink.
    """
    heads = lse.shape[1]
    empty = torch.full((heads,), -torch.inf, device=lse.device) if inputs.sinks is None else inputs.sinks.float()
    lse = torch.where(torch.isposinf(lse), empty, lse)
    padding = inputs.query.shape[0] - output.shape[0]
    pad = torch.nn.functional.pad
    return {"output": pad(output, (0, 0, 0, 0, 0, padding)), "lse": pad(lse, (0, 0, 0, padding))}


def run_tnd(inputs: SlidingAttentionInputs, call: FusedCall) -> Outputs:
    """Run a TND call, whose rows are the real query rows."""
    output, lse = call()
    return with_padding(inputs, output, lse.squeeze(-1))


def run_decode(inputs: SlidingAttentionInputs, call: FusedCall) -> Outputs:
    """Run a BSND call with one row per request: output ``[batch, 1, heads, dim]``, LSE ``[batch, heads, 1, 1]``."""
    output, lse = call()
    return with_padding(inputs, output.squeeze(1), lse.flatten(1))


@implementation("sliding_attention", supports=TND_BOXES, on_device=True, graph=True)
def fia_extend_tnd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend through FIA v2 TND: ragged rows of all requests in one call."""
    return run_tnd(inputs, tnd_call(inputs))


@implementation(
    "sliding_attention",
    supports=(
        {"poison": POISON, "sinks": (False,), **SMALL_PAGES},
        {"poison": POISON, "sinks": (False,), **MANY_ROWS_PAGES, "head_dims": STRIPS},
        {
            "poison": POISON,
            "sinks": (False,),
            **MANY_ROWS_PAGES,
            "head_dims": ("192/128",),
            "window": (None,),
        },
    ),
    on_device=True,
)
def fia_extend_bsnd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend through FIA v2 BSND: one call per request."""
    results = [bsnd_call(inputs, request)() for request, rows in enumerate(inputs.query_lengths) if rows]
    output = torch.cat([output.squeeze(0) for output, _ in results])
    lse = torch.cat([lse.squeeze(0).squeeze(-1).transpose(0, 1) for _, lse in results])
    return with_padding(inputs, output, lse)


@implementation(
    "sliding_attention",
    supports=(
        {"query_length": (1,), "poison": POISON, "sinks": (False,), **SMALL_PAGES},
        {
            "query_length": (1,),
            "poison": POISON,
            "sinks": (False,),
            **ND,
            "head_dims": STRIPS,
            "page_size": range(16, 513, 16),
        },
    ),
    on_device=True,
)
def fia_decode_mask(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Eager decode through FIA v2 BSND: the window is a mask, since the operator ignores the band at query length 1."""
    return run_decode(inputs, decode_call(inputs))


@implementation(
    "sliding_attention", supports=[{**box, "query_length": (1,)} for box in TND_BOXES], on_device=True, graph=True
)
def fia_decode_tnd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Graph-style decode through FIA v2 TND: the window is the band."""
    return run_tnd(inputs, graph_decode_call(inputs))


@implementation(
    "sliding_attention",
    supports=[{**box, "query_length": range(1, 9), "ragged": (False,)} for box in TND_BOXES],
    on_device=True,
    graph=True,
)
def fia_verify_tnd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Multi-token decode (draft verification) through FIA v2 TND: every request has the same few rows."""
    rows = inputs.query_lengths[0]
    lengths = list(range(rows, rows * len(inputs.query_lengths) + 1, rows))
    return run_tnd(inputs, tnd_call(inputs).having(actual_seq_qlen=lengths))


@implementation(
    "sliding_attention",
    supports=[{**box, "window": (None,), "sinks": (False,)} for box in TND_BOXES],
    on_device=True,
    graph=True,
)
def fia_v1_extend_tnd(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend of full-attention layers through FIA v1 TND (ascend_backend.py 1875-1924)."""
    key, value = cache_views(inputs.kv)
    modern = tnd_call(inputs).arguments
    arguments = {
        "input_layout": "TND",
        "actual_seq_lengths": list(itertools.accumulate(inputs.query_lengths)),
        "actual_seq_lengths_kv": list(inputs.kv_lengths),
        "atten_mask": modern["atten_mask"],
        "block_table": inputs.kv.block_table,
        "block_size": inputs.kv.page_size,
        "num_heads": modern["num_query_heads"],
        "num_key_value_heads": modern["num_key_value_heads"],
        "scale": inputs.scale,
        "sparse_mode": 3,
        "softmax_lse_flag": True,
    }
    call = FusedCall("npu_fused_infer_attention_score", real_rows(inputs), key, value, arguments)
    return run_tnd(inputs, call)


@implementation("sliding_attention", supports=fia_decode_mask.constraints.boxes, on_device=True)
def fia_v1_decode_bsh(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Graph decode through FIA v1 BSH with preallocated outputs and workspace (ascend_backend.py 2929-2990)."""
    batch, heads = len(inputs.query_lengths), inputs.query.shape[1]
    value_dim = inputs.kv.value_head_dim
    key, value = cache_views(inputs.kv)
    query = real_rows(inputs).flatten(1).unsqueeze(1)
    arguments = {
        "input_layout": "BSH",
        "actual_seq_lengths_kv": list(inputs.kv_lengths),
        "block_table": inputs.kv.block_table,
        "block_size": inputs.kv.page_size,
        "num_heads": heads,
        "num_key_value_heads": inputs.kv.kv_heads,
        "scale": inputs.scale,
        "softmax_lse_flag": True,
        "sparse_mode": 0,
        "atten_mask": decode_mask(inputs, list(range(batch)))["atten_mask"],
    }
    operators = torch.ops.npu
    workspace = operators._npu_fused_infer_attention_score_get_max_workspace(query, key, value, **arguments)
    output = query.new_full((batch, 1, heads * value_dim), 777.0)
    lse = torch.full((batch, heads, 1, 1), 777.0, dtype=torch.float32, device=query.device)
    operators.npu_fused_infer_attention_score.out(
        query, key, value, **arguments, workspace=workspace, out=[output, lse]
    )
    return with_padding(inputs, output.reshape(batch, heads, value_dim), lse.flatten(1))


@implementation(
    "sliding_attention",
    supports=[{**box, **NZ} for box in fia_extend_tnd.constraints.boxes],
    on_device=True,
    graph=True,
)
def fia_extend_nz(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend through FIA v2 TND on NZ pages: the caches go to the operator as they lie, with five axes."""
    return run_tnd(inputs, tnd_call(inputs))


@implementation(
    "sliding_attention", supports=[{**box, **NZ} for box in fia_decode_mask.constraints.boxes], on_device=True
)
def fia_decode_nz(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Eager decode through FIA v2 BSND on NZ pages."""
    return run_decode(inputs, decode_call(inputs))


@implementation("sliding_attention", supports={"sinks": (False,), **ND}, on_device=True, graph=True)
def torch_native(inputs: SlidingAttentionInputs, target: Target) -> torch.Tensor:
    """Gather each request's visible keys and call scaled_dot_product_attention: the path without fused operators."""
    pool = inputs.kv
    output = inputs.query.new_zeros(*inputs.query.shape[:2], pool.value_head_dim)
    start = 0
    for request, (rows, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        positions = torch.arange(total - rows, total, device=target.device)
        first = 0 if inputs.window is None else max(0, total - rows - inputs.window + 1)
        keys = torch.arange(first, total, device=target.device)
        seen = keys[None, :] <= positions[:, None]
        if inputs.window is not None:
            seen &= keys[None, :] > positions[:, None] - inputs.window
        if len(keys) and rows:
            pages, offsets = pool.block_table[request].long()[keys // pool.page_size], keys % pool.page_size
            query = inputs.query[start : start + rows].transpose(0, 1)
            key, value = (cache[pages, offsets].transpose(0, 1) for cache in (pool.key, pool.value))
            result = torch.nn.functional.scaled_dot_product_attention(
                query[None], key[None], value[None], attn_mask=seen, scale=inputs.scale, enable_gqa=True
            )
            visible = seen.any(dim=1)[:, None, None]
            output[start : start + rows] = torch.where(visible, result[0].transpose(0, 1), 0)
        start += rows
    return output
