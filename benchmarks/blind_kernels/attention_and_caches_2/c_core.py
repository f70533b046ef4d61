"""Right attention over a paged cache in float64, with places where kernels may do something else."""

import math

import torch


def gathered(pool, table, request, tokens):
    """Keys and values of some tokens, [tokens, kv_heads, dim]."""
    size = pool.page_size
    page, offset = table[request].to(torch.int64)[tokens // size], tokens % size
    if pool.layout == "PA_NZ":
        return tuple(cache[page, :, :, offset].flatten(2) for cache in (pool.key, pool.value))
    return pool.key[page, offset], pool.value[page, offset]


def softmax_of(scores, values, sinks):
    """Output [rows, heads, dim] and LSE [rows, heads] of scores [rows, heads, keys] with minus infinity where hidden."""
    largest = scores.amax(dim=-1) if scores.shape[-1] else torch.full(scores.shape[:-1], -math.inf, dtype=torch.float64)
    if sinks is not None:
        largest = torch.maximum(largest, sinks)
    shift = torch.where(largest.isneginf(), 0.0, largest)
    weights = torch.exp(scores - shift.unsqueeze(-1))
    total = weights.sum(dim=-1)
    if sinks is not None:
        total = total + torch.exp(sinks - shift)
    output = torch.where((total > 0).unsqueeze(-1), torch.matmul(weights, values) / total.unsqueeze(-1), 0.0)
    return output, torch.where(total > 0, shift + total.log(), -math.inf)


def band(inputs):
    """Which keys a row sees; arguments are request, rows' numbers, their positions, the keys' positions, new, total."""

    def seen(request, rows, positions, keys, new, total):
        distance = positions.unsqueeze(1) - keys
        visible = distance >= 0
        return visible if inputs.window is None else visible & (distance < inputs.window)

    return seen


def attention(inputs, *, seen=None, table=None, softmax=None, kv_of_head=None, before=0, scores_as=None, output=None,
               skip_empty=False):
    """Attention in float64, tile by tile."""
    seen, pool = seen or band(inputs), inputs.kv
    table = pool.block_table if table is None else table
    tokens, heads, _ = inputs.query.shape
    group = heads // pool.kv_heads
    kv_of_head = torch.arange(heads) // group if kv_of_head is None else kv_of_head
    if output is None:
        output = torch.zeros(tokens, heads, pool.value_head_dim, dtype=torch.float64)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    sinks = None if inputs.sinks is None else inputs.sinks.to(torch.float64)
    start = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        if skip_empty and not total:
            start += new
            continue
        lowest = 0 if inputs.window is None else max(0, total - new - inputs.window + 1 - before)
        keys = torch.arange(min(lowest, total), total)
        key, value = gathered(pool, table, request, keys)
        step = max(1, min(64, 2**22 // max(1, len(keys) * group)))
        for first in range(0, new, step):
            rows = torch.arange(first, min(first + step, new))
            positions = total - new + rows
            hidden = ~seen(request, rows, positions, keys, new, total)
            for kv in range(pool.kv_heads):
                own = (kv_of_head == kv).nonzero()[:, 0]
                if not len(own):
                    continue
                used = ~hidden.all(dim=0)
                ks, vs = key[used, kv].to(torch.float64), value[used, kv].to(torch.float64)
                queries = inputs.query[start + rows][:, own].to(torch.float64)
                scores = torch.matmul(queries, ks.T) * inputs.scale
                if scores_as is not None:
                    scores = scores.to(scores_as).to(torch.float64)
                scores = scores.masked_fill(hidden[:, used].unsqueeze(1), -math.inf)
                result = (softmax or softmax_of)(scores, vs, None if sinks is None else sinks[own].expand(len(rows), -1))
                output[(start + rows).unsqueeze(1), own], lse[(start + rows).unsqueeze(1), own] = result
        start += new
    output[start:] = 0
    return {"output": output.to(inputs.query.dtype), "lse": lse.to(torch.float32)}
