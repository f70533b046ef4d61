"""Wrong attention over chosen keys."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.sparse_attention import (
    Outputs,
    attended,
    gathered,
    latents_of,
    npu_kv_quant_sparse_flash_attention,
    npu_sparse_flash_attention,
    sgl_sparse_flash_attention,
)
from npudiff.reference.sparse_attention import SparseAttentionInputs

_SEVERAL = range(2, 4097)


@mutant(
    gathered,
    "vllm_ascend/attention/sfa_v1.py 1271: places behind the last key that is chosen name none",
    supports={"chosen": range(2, 2**13 + 1)},
)
def nothing_listed_is_a_key(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """See the first key again for each place behind the last that is listed."""
    outputs = attended(inputs)
    latents, size, row = latents_of(inputs), inputs.pool.page_size, 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for _ in range(total - new, total):
            keys = inputs.indices[row, 0].long()
            if bool((keys < 0).any()) and int(keys[0]) >= 0:
                seen = torch.where(keys < 0, keys[0], keys)
                seen = seen[seen < total]
                page, offset = inputs.pool.block_table[request].long()[seen // size], seen % size
                scores = inputs.query[row].float() @ latents[page, offset].squeeze(1).float().t()
                scores = (
                    scores + inputs.query_rope[row].float() @ inputs.pool.value[page, offset].squeeze(1).float().t()
                )
                weights = torch.softmax(scores * inputs.scale, dim=-1)
                outputs["output"][row] = (weights @ latents[page, offset].squeeze(1).float()).to(inputs.query.dtype)
            row += 1
    return outputs


@perturbed(
    npu_sparse_flash_attention,
    "vllm_ascend/attention/sfa_v1.py 410: positions are looked up in the table",
    supports={"page_order": ("scattered",), "kv_length": range(1, 257)},
)
def positions_are_places(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Read the pages of the pool in order, whatever the table says."""
    table = inputs.pool.block_table
    order = torch.arange(table.shape[1], dtype=torch.int32).expand_as(table) % len(inputs.pool.key)
    return replace(inputs, pool=replace(inputs.pool, block_table=order.contiguous()))


@perturbed(
    npu_sparse_flash_attention,
    "vllm_ascend/attention/sfa_v1.py 1266: all keys that are chosen count, of however many tiles",
    supports={"chosen": range(513, 2**13 + 1), "kv_length": range(1025, 2**20 + 1)},
)
def one_tile_of_keys(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """List 512 keys at most."""
    return replace(inputs, indices=inputs.indices[..., :512].contiguous())


@perturbed(
    gathered,
    "vllm_ascend/attention/sfa_v1.py 1196: a key behind a row counts for nothing",
    supports={"choice": ("behind",), "query_length": range(2, 2**20 + 1), "chosen": range(2, 2**13 + 1)},
)
def keys_behind_the_row(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Replace what lies behind a row by its newest key."""
    indices, row = inputs.indices.clone(), 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        for position in range(total - new, total):
            listed = indices[row, 0]
            listed[listed > position] = position
            row += 1
    return replace(inputs, indices=indices)


@perturbed(
    sgl_sparse_flash_attention,
    "vllm-project/vllm-ascend/pull/14451: a layer that shares another one's choice reads that of other rows",
    supports={"chosen": range(1, 65), "query_length": range(2, 2**20 + 1)},
)
def choice_of_the_row_before(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Give each row the keys of the row before, as far as it may see them."""
    tokens = sum(inputs.query_lengths)
    indices = inputs.indices.clone()
    indices[1:tokens] = inputs.indices[: tokens - 1]
    row = 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        for position in range(total - new, total):
            indices[row][indices[row] > position] = 0
            row += 1
    return replace(inputs, indices=indices)


@perturbed(
    npu_sparse_flash_attention,
    "vllm_ascend/attention/sfa_v1.py 1265: the rotated part of queries",
)
def no_rotated_part(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Leave the rotated part out of the scores."""
    return replace(inputs, query_rope=torch.zeros_like(inputs.query_rope))


@perturbed(
    npu_kv_quant_sparse_flash_attention,
    "vllm_ascend/device/device_op.py 985: a latent of int8 has a scale per 128 elements",
)
def one_scale_per_latent(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Take the first scale for all of a latent."""
    scales = inputs.scales
    return inputs if scales is None else replace(inputs, scales=scales[..., :1].expand_as(scales).contiguous())


@perturbed(
    npu_sparse_flash_attention,
    "vllm_ascend/attention/sfa_v1.py 410: each request has a row of the table",
    supports={"batch": _SEVERAL, "kv_length": range(1, 257)},
)
def pages_of_the_first_request(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Use one row of the table for the whole batch."""
    table = inputs.pool.block_table
    return replace(inputs, pool=replace(inputs.pool, block_table=table[:1].expand_as(table).contiguous()))


@mutant(
    sgl_sparse_flash_attention,
    "sgl-project/sgl-kernel-npu/pull/775: maxima alone are merged, without their sums",
    supports={"chosen": range(2, 2**13 + 1)},
)
def lse_is_the_maximum(inputs: SparseAttentionInputs, target: Target) -> Outputs:
    """Return the largest score for the log-sum-exp."""
    outputs = dict(attended(inputs))
    latents, size, row = latents_of(inputs), inputs.pool.page_size, 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            keys = inputs.indices[row, 0].long()
            keys = keys[(keys >= 0) & (keys <= position)]
            if len(keys):
                place = inputs.pool.block_table[request].long()[keys // size], keys % size
                scores = inputs.query[row].float() @ latents[place].squeeze(1).float().t()
                scores = scores + inputs.query_rope[row].float() @ inputs.pool.value[place].squeeze(1).float().t()
                outputs["lse"][row] = (scores * inputs.scale).amax(dim=-1)
            row += 1
    return outputs


@perturbed(
    gathered,
    "vllm_ascend/attention/sfa_v1.py 1274: each row has a choice of its own",
    supports={"query_length": range(2, 2**20 + 1), "chosen": range(1, 65), "choice": ("newest",)},
)
def draft_has_one_choice(inputs: SparseAttentionInputs) -> SparseAttentionInputs:
    """Give all rows of a request the keys of its last one, as far as they may see them."""
    indices, row = inputs.indices.clone(), 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        for position in range(total - new, total):
            last = inputs.indices[row + new - 1 - (position - (total - new)), 0]
            seen = last[(last >= 0) & (last <= position)]
            indices[row, 0] = -1
            indices[row, 0, : len(seen)] = seen
            row += 1
    return replace(inputs, indices=indices)
