"""Attention over chosen keys as vllm-ascend and sglang call it: the operators, and plain torch."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.sparse_attention import SparseAttentionInputs

Outputs = dict[str, torch.Tensor]

ABSORBED = 2
_PER_TILE = 2

_HEADS = (*range(1, 65), 128)
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
_WIDE, _INT8 = {"form": ("16 bits",)}, {"form": ("int8",)}


def lengths(inputs: SparseAttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the rows of each request end, and the tokens of each, int32 on the device."""
    device = inputs.query.device
    ends = torch.tensor(inputs.query_lengths).cumsum(dim=0).to(device, torch.int32)
    return ends, torch.tensor(inputs.kv_lengths, dtype=torch.int32, device=device)


def _arguments(inputs: SparseAttentionInputs) -> dict[str, object]:
    ends, totals = lengths(inputs)
    return {
        "block_table": inputs.pool.block_table,
        "actual_seq_lengths_query": ends,
        "actual_seq_lengths_kv": totals,
        "sparse_block_size": 1,
        "layout_query": "TND",
        "layout_kv": "PA_BSND",
        "sparse_mode": 3,
        "attention_mode": ABSORBED,
    }


def rows_of_requests(inputs: SparseAttentionInputs) -> int:
    """Rows that are not padding."""
    return sum(inputs.query_lengths)


def _padded(inputs: SparseAttentionInputs, rows: torch.Tensor) -> torch.Tensor:
    """Rows of requests, and behind them as many as are padding."""
    more = len(inputs.query) - len(rows)
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def _queries(inputs: SparseAttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and indices of the rows of requests: the operators write no others, and look up none."""
    tokens = rows_of_requests(inputs)
    query, rope, indices = (one[:tokens].contiguous() for one in (inputs.query, inputs.query_rope, inputs.indices))
    return query, rope, indices


def _nothing(inputs: SparseAttentionInputs) -> Outputs:
    return {"output": inputs.query.new_zeros(inputs.query.shape)}


@implementation("sparse_attention", supports={**_WIDE, "heads": _HEADS}, on_device=True)
def npu_sparse_flash_attention(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """torch_npu's operator over a paged cache, which says nothing of log-sum-exps."""
    if not rows_of_requests(inputs):
        return _nothing(inputs)
    query, rope, indices = _queries(inputs)
    pool = inputs.pool
    output = torch.ops.npu.npu_sparse_flash_attention(
        query, pool.key, pool.key, indices, inputs.scale, query_rope=rope, key_rope=pool.value, **_arguments(inputs)
    )[0]
    return {"output": _padded(inputs, output)}


@implementation("sparse_attention", supports={**_WIDE, "heads": _HEADS}, on_device=True)
def sgl_sparse_flash_attention(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """sgl-kernel-npu's, with log-sum-exps as sglang merges them."""
    if not rows_of_requests(inputs):
        return _nothing(inputs)
    query, rope, indices = _queries(inputs)
    pool = inputs.pool
    output, largest, total = torch.ops.npu.sgl_sparse_flash_attention(
        query, pool.key, pool.key, indices, inputs.scale, query_rope=rope, key_rope=pool.value,
        return_softmax_lse=True, **_arguments(inputs),
    )  # fmt: skip
    return {"output": _padded(inputs, output), "lse": _padded(inputs, (largest + total.log())[0])}


@implementation("sparse_attention", supports={**_INT8, "heads": _POWERS}, on_device=True)
def npu_kv_quant_sparse_flash_attention(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """The operator for a cache of int8, whose rows have latent, rotated key and scales side by side."""
    if not rows_of_requests(inputs):
        return _nothing(inputs)
    query, rope, indices = _queries(inputs)
    packed = pack(inputs)
    output = torch.ops.npu.npu_kv_quant_sparse_flash_attention(
        torch.cat([query, rope], dim=-1), packed, packed, indices, inputs.scale, _PER_TILE, _PER_TILE,
        **_arguments(inputs),
    )  # fmt: skip
    return {"output": _padded(inputs, output)}


def pack(inputs: SparseAttentionInputs) -> torch.Tensor:
    """int8 ``[pages, page_size, 1, 656]``: bytes of latent, rotated key and scales."""
    if inputs.scales is None:
        raise TypeError("latents without scales")
    parts = (inputs.pool.key, inputs.pool.value.contiguous(), inputs.scales.contiguous())
    return torch.cat([part.view(torch.int8) for part in parts], dim=-1)


@implementation("sparse_attention", supports={}, on_device=True)
def gathered(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """The chosen keys of each row gathered, and attention over them in float32."""
    return attended(inputs)


def latents_of(inputs: SparseAttentionInputs) -> torch.Tensor:
    """The latents of the pool in the queries' dtype."""
    latents = inputs.pool.key
    if inputs.scales is None:
        return latents
    wide = latents.float() * inputs.scales.repeat_interleave(128, dim=-1)
    return wide.to(inputs.query.dtype)


def attended(inputs: SparseAttentionInputs) -> Outputs:
    """Attention row by row."""
    output = inputs.query.new_zeros(inputs.query.shape)
    lse = torch.full(inputs.query.shape[:2], -torch.inf)
    latents, size, row = latents_of(inputs), inputs.pool.page_size, 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            keys = inputs.indices[row, 0].long()
            keys = keys[(keys >= 0) & (keys <= position)]
            place = inputs.pool.block_table[request].long()[keys // size], keys % size
            output[row], lse[row] = one_row(inputs, row, latents[place].squeeze(1), inputs.pool.value[place].squeeze(1))
            row += 1
    return {"output": output, "lse": lse}


def one_row(
    inputs: SparseAttentionInputs, row: int, latents: torch.Tensor, ropes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of one row over ``[keys, rank]`` and ``[keys, rope_dim]``."""
    wide = latents.float()
    scores = inputs.query[row].float() @ wide.t() + inputs.query_rope[row].float() @ ropes.float().t()
    scores = scores * inputs.scale
    weights = torch.softmax(scores, dim=-1) if len(wide) else scores
    return (weights @ wide).to(inputs.query.dtype), torch.logsumexp(scores, dim=-1)
