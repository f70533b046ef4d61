"""The choice of keys as vllm-ascend and sglang have it made: the operators, and plain torch."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.sparse_indexer import SparseIndexerInputs

Outputs = dict[str, torch.Tensor]

_PER_TOKEN_HEAD = 0
_COUNTS = (*range(1, 2049), *range(3072, 8193, 1024))


def as_sets(inputs: SparseIndexerInputs, indices: torch.Tensor) -> Outputs:
    """Return what indices ``[tokens, count]`` of all rows list: how often each key, and how many entries there are."""
    there = indices >= 0
    place = torch.where(there, indices.clamp(max=inputs.longest), inputs.longest).long()
    place = torch.where(there & (indices >= inputs.longest), inputs.longest, place)
    chosen = torch.zeros(len(indices), inputs.longest + 1, dtype=torch.int8, device=indices.device)
    chosen.scatter_add_(1, place, there.to(torch.int8))
    leading = (~there).cumsum(dim=1).eq(0).sum(dim=1)
    return {"chosen": chosen, "listed": torch.stack([leading, there.sum(dim=1)], dim=1).to(torch.int32)}


def _arguments(inputs: SparseIndexerInputs) -> dict[str, object]:
    device = inputs.query.device
    return {
        "actual_seq_lengths_query": torch.tensor(inputs.query_lengths).cumsum(dim=0).to(device, torch.int32),
        "actual_seq_lengths_key": torch.tensor(inputs.kv_lengths, dtype=torch.int32, device=device),
        "block_table": inputs.block_table,
        "layout_query": "TND",
        "layout_key": "PA_BSND",
        "sparse_count": inputs.count,
        "sparse_mode": 3,
    }


def of_all_rows(inputs: SparseIndexerInputs, indices: torch.Tensor) -> torch.Tensor:
    """Indices of rows of requests, and -1 for those of padding."""
    flat = indices.flatten(1)
    padded = torch.full((len(inputs.query), inputs.count), -1, dtype=torch.int32, device=flat.device)
    padded[: len(flat)] = flat
    return padded


@implementation("sparse_indexer", supports={"form": ("16 bits",), "count": _COUNTS}, on_device=True)
def npu_lightning_indexer(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """torch_npu's operator over a paged cache."""
    return as_sets(inputs, of_all_rows(inputs, indexed(inputs)))


def indexed(inputs: SparseIndexerInputs) -> torch.Tensor:
    """Indices of the rows of requests, by the operator, which writes no others."""
    tokens = sum(inputs.query_lengths)
    if not tokens:
        return torch.zeros(0, inputs.count, dtype=torch.int32)
    query, weights = inputs.query[:tokens].contiguous(), inputs.weights[:tokens].contiguous()
    indices: torch.Tensor = torch.ops.npu.npu_lightning_indexer(query, inputs.key, weights, **_arguments(inputs))[0]
    return indices


@implementation("sparse_indexer", supports={"form": ("int8",), "count": range(1, 2049)}, on_device=True)
def npu_quant_lightning_indexer(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """The operator for queries and keys of int8."""
    return as_sets(inputs, of_all_rows(inputs, indexed_int8(inputs)))


def indexed_int8(inputs: SparseIndexerInputs) -> torch.Tensor:
    """The same of int8."""
    tokens = sum(inputs.query_lengths)
    if not tokens or inputs.query_scale is None:
        return torch.zeros(0, inputs.count, dtype=torch.int32)
    indices: torch.Tensor = torch.ops.npu.npu_quant_lightning_indexer(
        inputs.query[:tokens].contiguous(), inputs.key, inputs.weights[:tokens].contiguous(),
        inputs.query_scale[:tokens].contiguous(), inputs.key_scale, _PER_TOKEN_HEAD, _PER_TOKEN_HEAD,
        **_arguments(inputs),
    )  # fmt: skip
    return indices


@implementation("sparse_indexer", supports={}, on_device=True)
def scores_and_topk(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """Scores of all keys in float32, and torch's top-k."""
    return as_sets(inputs, of_all_rows(inputs, chosen(inputs)))


def keys_of(inputs: SparseIndexerInputs, request: int) -> torch.Tensor:
    """Keys of a request, float32 ``[tokens, dim]``."""
    size, position = inputs.key.shape[1], torch.arange(inputs.kv_lengths[request])
    place = inputs.block_table[request].long()[position // size], position % size
    keys = inputs.key[place].squeeze(1).float()
    return keys if inputs.key_scale is None else keys * inputs.key_scale[place].float()


def scored(inputs: SparseIndexerInputs, row: int, keys: torch.Tensor) -> torch.Tensor:
    """Scores of keys for a row."""
    query, weights = inputs.query[row].float(), inputs.weights[row].float()
    if inputs.query_scale is not None:
        weights = weights * inputs.query_scale[row].float()
    return weights @ (query @ keys.t()).relu()


def chosen(inputs: SparseIndexerInputs) -> torch.Tensor:
    """Indices of the rows of requests, the best first."""
    indices = torch.full((sum(inputs.query_lengths), inputs.count), -1, dtype=torch.int32)
    row = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        keys = keys_of(inputs, request)
        for position in range(total - new, total):
            scores = scored(inputs, row, keys[: position + 1])
            best = scores.topk(min(inputs.count, position + 1)).indices
            indices[row, : len(best)] = best.to(torch.int32)
            row += 1
    return indices
