"""Wrong choices of keys."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.sparse_indexer import (
    Outputs,
    as_sets,
    chosen,
    indexed,
    indexed_int8,
    keys_of,
    npu_lightning_indexer,
    npu_quant_lightning_indexer,
    of_all_rows,
    scores_and_topk,
)
from npudiff.reference.sparse_indexer import SparseIndexerInputs

_MANY = range(2, 2**20 + 1)


def _of_scores(inputs: SparseIndexerInputs, score: str, *, visible: int = 0) -> torch.Tensor:
    """Indices by other scores, or of rows that see other numbers of keys."""
    indices = torch.full((sum(inputs.query_lengths), inputs.count), -1, dtype=torch.int32)
    row = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        keys = keys_of(inputs, request)
        for position in range(total - new, total):
            seen = total if score == "all" else max(0, min(total, position + 1 + visible))
            weights, products = inputs.weights[row].float(), inputs.query[row].float() @ keys[:seen].t()
            if inputs.query_scale is not None:
                weights = weights * inputs.query_scale[row].float()
            if score == "absolute":
                weights = weights.abs()
            scores = weights @ (products if score == "not rectified" else products.relu())
            best = scores.topk(min(inputs.count, seen)).indices
            indices[row, : len(best)] = best.to(torch.int32)
            row += 1
    return indices


@mutant(scores_and_topk, "vllm_ascend/attention/sfa_v1.py 1148: products are rectified before they are summed")
def products_are_not_rectified(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Sum products of either sign."""
    return as_sets(inputs, of_all_rows(inputs, _of_scores(inputs, "not rectified")))


@mutant(
    scores_and_topk,
    "sglang/srt/layers/attention/dsa/dsa_npu_indexer.py 60: weights of heads may be negative",
)
def absolute_weights(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Take absolute weights."""
    return as_sets(inputs, of_all_rows(inputs, _of_scores(inputs, "absolute")))


@mutant(
    scores_and_topk,
    "vllm_ascend/attention/sfa_v1.py 1196: a row sees the tokens up to its own",
    supports={"query_length": range(2, 2**20 + 1)},
)
def rows_see_what_is_behind(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Let all rows of a request see all of it."""
    return as_sets(inputs, of_all_rows(inputs, _of_scores(inputs, "all")))


@mutant(
    scores_and_topk,
    "vllm_ascend/attention/sfa_v1.py 1266: a row sees its own token",
    supports={"kv_length": _MANY},
)
def own_token_unseen(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Let each row see the keys before its own token."""
    return as_sets(inputs, of_all_rows(inputs, _of_scores(inputs, "", visible=-1)))


@mutant(
    npu_lightning_indexer,
    "vllm-project/vllm-ascend/pull/16595: keys behind the first 8,192 are not merged with them",
    supports={"kv_length": range(10_001, 20_000), "count": range(1, 2049)},
)
def first_keys_only(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Choose out of the first 8,192 keys."""
    indices, row = indexed(inputs), 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        keys = keys_of(inputs, request)[:8192]
        for position in range(total - new, total):
            scores = inputs.weights[row].float() @ (inputs.query[row].float() @ keys[: position + 1].t()).relu()
            best = scores.topk(min(inputs.count, len(scores))).indices
            indices[row].view(-1)[: len(best)] = best.to(torch.int32)
            row += 1
    return as_sets(inputs, of_all_rows(inputs, indices))


@perturbed(
    npu_lightning_indexer,
    "vllm_ascend/attention/sfa_v1.py 410: each request has a row of the table",
    supports={"batch": range(2, 4097), "kv_length": range(2, 257)},
)
def choice_in_pages_of_the_first(inputs: SparseIndexerInputs) -> SparseIndexerInputs:
    """Use one row of the table for the whole batch."""
    return replace(inputs, block_table=inputs.block_table[:1].expand_as(inputs.block_table).contiguous())


@perturbed(
    scores_and_topk,
    "vllm_ascend/attention/sfa_v1.py 1148: the products of all heads are summed",
    supports={"heads": range(17, 65)},
)
def heads_of_the_first_group(inputs: SparseIndexerInputs) -> SparseIndexerInputs:
    """Give heads behind the first 16 no weight."""
    weights = inputs.weights.clone()
    weights[:, 16:] = 0
    return replace(inputs, weights=weights)


@perturbed(
    npu_quant_lightning_indexer,
    "vllm_ascend/attention/sfa_v1.py 1265: keys of int8 have a scale each",
    supports={"recipe": ("gaussian", "needle", "alike")},
)
def keys_without_scales(inputs: SparseIndexerInputs) -> SparseIndexerInputs:
    """Take all scales of keys for the same."""
    scale = inputs.key_scale
    return inputs if scale is None else replace(inputs, key_scale=torch.full_like(scale, 0.015))


@perturbed(
    npu_quant_lightning_indexer,
    "vllm_ascend/attention/sfa_v1.py 1200: queries of int8 have a scale per head",
    supports={"heads": range(2, 65)},
)
def heads_without_scales(inputs: SparseIndexerInputs) -> SparseIndexerInputs:
    """Take the scale of the first head for all."""
    scale = inputs.query_scale
    turned = None if scale is None else scale[:, :1] * torch.linspace(0.5, 1.5, scale.shape[1]).to(scale.dtype)
    return replace(inputs, query_scale=turned)


@mutant(
    scores_and_topk,
    "vllm_ascend/attention/sfa_v1.py 1274: where fewer are seen than chosen, places behind them name none",
    supports={"count": range(2, 8193)},
)
def empty_places_hold_token_0(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """List token 0 in each place behind the last."""
    return as_sets(inputs, of_all_rows(inputs, chosen(inputs).clamp(min=0)))


@mutant(
    npu_lightning_indexer,
    "vllm_ascend/attention/sfa_v1.py 1277: keys are in front of the places that name none",
    supports={"count": range(2, 8193)},
)
def keys_come_last(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """List keys behind the places that hold none."""
    return as_sets(inputs, of_all_rows(inputs, indexed(inputs).flip(-1)))


@mutant(
    npu_quant_lightning_indexer,
    "vllm-project/vllm-ascend/pull/14451: a layer that shares another one's choice reads that of other rows",
    supports={"query_length": range(2, 2**20 + 1), "count": range(1, 65)},
)
def choice_of_another_row(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Give each row the choice of the row before."""
    indices = indexed_int8(inputs)
    return as_sets(inputs, of_all_rows(inputs, indices.roll(1, 0) if len(indices) > 1 else indices))
