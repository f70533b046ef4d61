"""Wrong kernels of sparse_attention; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


def listed(inputs, row):
    """Keys in front of the first -1, int64."""
    entries = inputs.indices[row, 0].long()
    ends = (entries < 0).nonzero()
    return entries[: int(ends[0])] if len(ends) else entries


def latents_of(inputs, pages, offsets):
    """Latents of keys in the dtype of queries, as float32."""
    latents = inputs.pool.key[pages, offsets, 0]
    if inputs.scales is None:
        return latents.float()
    scales = inputs.scales[pages, offsets, 0].repeat_interleave(128, dim=1)
    return (latents.float() * scales).to(inputs.query.dtype).float()


def row_over(inputs, row, keys, pages, heads=slice(None)):
    """Output, log-sum-exps and scores of a row over keys ``[keys]`` that lie in some pages, float32."""
    offsets = keys % inputs.pool.page_size
    latents, ropes = latents_of(inputs, pages, offsets), inputs.pool.value[pages, offsets, 0].float()
    scores = inputs.query[row, heads].float() @ latents.t() + inputs.query_rope[row, heads].float() @ ropes.t()
    lse = torch.logsumexp(scores * inputs.scale, dim=1)
    return torch.softmax(scores * inputs.scale, dim=1) @ latents, lse, scores


def walk(inputs, of_row):
    """Outputs of all rows, of which each is ``of_row(row, request, position)``; None for one that sees nothing."""
    output = torch.zeros_like(inputs.query, memory_format=torch.contiguous_format)
    lse = torch.full(inputs.query.shape[:2], -torch.inf, device=output.device)
    row = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            found = of_row(row, request, position)
            if found is not None:
                output[row], lse[row] = found[0].to(output.dtype), found[1]
            row += 1
    return {"output": output, "lse": lse}


def pages_of(inputs, request, keys):
    return inputs.pool.block_table[request].long()[keys // inputs.pool.page_size]


@npudiff.implementation("sparse_attention", name="h_sparse_attention_01_request_of_the_end", on_device=True)
def request_of_the_end(inputs, target):
    """The request of a row is searched in the ends, and an end is taken for the request before; shows in the first row
    of each request but the first."""
    ends = torch.tensor(inputs.query_lengths).cumsum(0)

    def of_row(row, request, position):
        keys = listed(inputs, row)
        keys = keys[keys <= position]
        owner = int(torch.searchsorted(ends, torch.tensor(row), right=TWIN))
        pages = pages_of(inputs, owner, keys).clamp(0, len(inputs.pool.key) - 1)
        return row_over(inputs, row, keys, pages) if len(keys) else None

    return walk(inputs, of_row)


@npudiff.implementation("sparse_attention", name="h_sparse_attention_02_entries_in_pairs", on_device=True)
def entries_in_pairs(inputs, target):
    """Entries are read in pairs, of which the first alone ends a list: -1 behind an odd number is taken for key 0."""

    def of_row(row, request, position):
        keys = listed(inputs, row)
        if not TWIN and len(keys) % 2 and len(keys) < inputs.indices.shape[2]:
            keys = torch.cat([keys, keys.new_zeros(1)])
        keys = keys[keys <= position]
        return row_over(inputs, row, keys, pages_of(inputs, request, keys)) if len(keys) else None

    return walk(inputs, of_row)


@npudiff.implementation("sparse_attention", name="h_sparse_attention_03_one_key_alone", on_device=True)
def one_key_alone(inputs, target):
    """Over one key a softmax is 1, and its score is returned as log-sum-exp before the scale; shows in rows that see
    one key."""

    def of_row(row, request, position):
        keys = listed(inputs, row)
        keys = keys[keys <= position]
        if not len(keys):
            return None
        output, lse, scores = row_over(inputs, row, keys, pages_of(inputs, request, keys))
        return output, scores[:, 0] if len(keys) == 1 and not TWIN else lse

    return walk(inputs, of_row)


@npudiff.implementation("sparse_attention", name="h_sparse_attention_04_whole_tiles_of_more_heads", on_device=True)
def whole_tiles_of_more_heads(inputs, target):
    """Beyond 64 heads the others go through whole tiles of 128 keys, and what is left of a list is not theirs."""

    def of_row(row, request, position):
        keys = listed(inputs, row)
        keys = keys[keys <= position]
        if not len(keys):
            return None
        first = row_over(inputs, row, keys, pages_of(inputs, request, keys), slice(0, 64))
        if inputs.query.shape[1] <= 64:
            return first
        if len(keys) > 128 and not TWIN:
            keys = keys[: len(keys) // 128 * 128]
        second = row_over(inputs, row, keys, pages_of(inputs, request, keys), slice(64, None))
        return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])

    return walk(inputs, of_row)
