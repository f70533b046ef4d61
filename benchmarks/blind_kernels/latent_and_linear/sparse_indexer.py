"""Wrong kernels of sparse_indexer; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
BLOCK = 64


def keys_of(inputs, request, first, last):
    """Keys of a request and their scales, float32 ``[keys, dim]`` and ``[keys]``."""
    size, token = inputs.key.shape[1], torch.arange(first, last, device=inputs.key.device)
    pages = inputs.block_table[request].long()[token // size]
    keys = inputs.key[pages, token % size, 0].float()
    scales = torch.ones(len(keys), device=keys.device)
    return keys, scales if inputs.key_scale is None else inputs.key_scale[pages, token % size, 0].float()


def factors(inputs, row):
    """Weights of heads, float32."""
    weights = inputs.weights[row].float()
    return weights if inputs.query_scale is None else weights * inputs.query_scale[row].float()


def scores_of(inputs, row, keys, scales):
    """Scores of keys for a row."""
    return (factors(inputs, row).unsqueeze(1) * (inputs.query[row].float() @ keys.t()).relu()).sum(dim=0) * scales


def rows_of(inputs):
    """Row, request and position of all rows that are not padding."""
    row = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            yield row, request, position
            row += 1


def as_sets(inputs, lists):
    """How often each key is listed for a row, and how many entries there are."""
    tokens, longest = len(inputs.query), inputs.longest
    chosen = torch.zeros(tokens, longest + 1, dtype=torch.int8, device=inputs.query.device)
    counts = torch.zeros(tokens, 2, dtype=torch.int32, device=inputs.query.device)
    for row, keys in lists.items():
        place = torch.where(keys < longest, keys, longest)
        chosen[row] = chosen[row].scatter_add(0, place, torch.ones_like(place, dtype=torch.int8))
        counts[row] = len(keys)
    return {"chosen": chosen, "listed": counts}


def best(scores, count):
    return scores.topk(min(count, len(scores))).indices


@npudiff.implementation("sparse_indexer", name="h_sparse_indexer_01_rectified_behind_the_weight", on_device=True)
def rectified_behind_the_weight(inputs, target):
    """The weight of a head is multiplied in before the rectifier; shows where weights are negative."""
    lists = {}
    for row, request, position in rows_of(inputs):
        keys, scales = keys_of(inputs, request, 0, position + 1)
        if TWIN:
            scores = scores_of(inputs, row, keys, scales)
        else:
            products = inputs.query[row].float() @ keys.t()
            scores = (factors(inputs, row).unsqueeze(1) * products).relu().sum(dim=0) * scales
        lists[row] = best(scores, inputs.count)
    return as_sets(inputs, lists)


@npudiff.implementation("sparse_indexer", name="h_sparse_indexer_02_all_of_a_short_request", on_device=True)
def all_of_a_short_request(inputs, target):
    """A request with no more tokens than are chosen has all of them listed, without scores, in each of its rows."""
    lists = {}
    for row, request, position in rows_of(inputs):
        total = inputs.kv_lengths[request]
        if total <= inputs.count:
            lists[row] = torch.arange(position + 1 if TWIN else total, device=inputs.query.device)
        else:
            lists[row] = best(scores_of(inputs, row, *keys_of(inputs, request, 0, position + 1)), inputs.count)
    return as_sets(inputs, lists)


@npudiff.implementation("sparse_indexer", name="h_sparse_indexer_03_merged_at_the_end_of_the_request", on_device=True)
def merged_at_the_end_of_the_request(inputs, target):
    """Blocks of 64 keys are merged when they are full or the last of their request, and a row that ends in an earlier
    block leaves its last keys unmerged."""
    lists = {}
    for row, request, position in rows_of(inputs):
        total, seen = inputs.kv_lengths[request], position + 1
        values = torch.zeros(0, device=inputs.query.device)
        kept = torch.zeros(0, dtype=torch.int64, device=inputs.query.device)
        for first in range(0, seen, BLOCK):
            last = min(first + BLOCK, seen)
            found = scores_of(inputs, row, *keys_of(inputs, request, first, last))
            if TWIN or last - first == BLOCK or first + BLOCK >= total:
                values = torch.cat([values, found])
                kept = torch.cat([kept, torch.arange(first, last, device=kept.device)])
                some = best(values, inputs.count)
                values, kept = values[some], kept[some]
        lists[row] = kept
    return as_sets(inputs, lists)


@npudiff.implementation("sparse_indexer", name="h_sparse_indexer_04_scales_of_the_first_keys", on_device=True)
def scales_of_the_first_keys(inputs, target):
    """Scores go in blocks of 256 keys, whose scales are those of the first block; shows in int8 beyond 256 keys."""
    lists = {}
    for row, request, position in rows_of(inputs):
        found = []
        _, first_scales = keys_of(inputs, request, 0, min(256, position + 1))
        for first in range(0, position + 1, 256):
            keys, scales = keys_of(inputs, request, first, min(first + 256, position + 1))
            found.append(scores_of(inputs, row, keys, scales if TWIN else first_scales[: len(keys)]))
        lists[row] = best(torch.cat(found), inputs.count)
    return as_sets(inputs, lists)
