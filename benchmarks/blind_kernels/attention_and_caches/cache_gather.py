"""Wrong kernels of cache_gather; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def tokens_of(inputs, page, offset, name, strip=None):
    """Tokens at pages and offsets, [tokens, heads, dim]."""
    cache, rows = getattr(inputs, name + "_cache"), getattr(inputs, name)
    heads, dim = rows.shape[1:]
    if inputs.layout == "PA_BSND":
        return cache[page, offset]
    if inputs.layout == "PA_BNSD":
        return cache[page, :, offset]
    if strip is None:
        return cache[page, :, offset].reshape(len(page), heads, dim)
    flat, size = cache.reshape(-1), inputs.page_size
    across = torch.arange(heads * dim)
    place = ((page[:, None] * (heads * dim // strip) + across // strip) * size + offset[:, None]) * strip + across % strip
    return flat[place].view(len(page), heads, dim)


def gather(inputs, lengths=None, starts=None, table=None, page_of=None, strip=None, finish=None):
    lengths = inputs.lengths.tolist() if lengths is None else lengths
    if starts is None:
        starts = [0] * len(lengths) if inputs.starts is None else inputs.starts.tolist()
    table = inputs.block_table.long() if table is None else table
    results = {"key": inputs.key, "value": inputs.value}
    row = 0
    for request, (length, start) in enumerate(zip(lengths, starts)):
        token = torch.arange(start, start + length)
        index = token // inputs.page_size
        pages = table[request]
        page = pages[index.clamp(max=len(pages) - 1)] if page_of is None else page_of(pages, index)
        page = page.clamp(0, inputs.key_cache.shape[0] - 1)
        last = min(row + length, len(inputs.key))
        for name in ("key", "value"):
            results[name][row:last] = tokens_of(inputs, page, token % inputs.page_size, name, strip)[: last - row]
        row = last
    if finish is not None:
        finish(results, row)
    return results


@npudiff.implementation("cache_gather", name="b_cache_gather_01_start_of_its_page", on_device=True)
def b01(inputs, target):
    """Starts are rounded down to pages."""
    starts = None
    if WRONG and inputs.starts is not None:
        starts = (inputs.starts // inputs.page_size * inputs.page_size).tolist()
    return gather(inputs, starts=starts)


@npudiff.implementation("cache_gather", name="b_cache_gather_02_empty_requests_compacted", on_device=True)
def b02(inputs, target):
    """Requests without tokens are dropped from lengths and starts, and not from the table."""
    kept = (inputs.lengths > 0).nonzero()[:, 0]
    starts = torch.zeros_like(inputs.lengths) if inputs.starts is None else inputs.starts
    table = inputs.block_table.long()
    return gather(inputs, inputs.lengths[kept].tolist(), starts[kept].tolist(), table if WRONG else table[kept])


@npudiff.implementation("cache_gather", name="b_cache_gather_03_full_last_page", on_device=True)
def b03(inputs, target):
    """The last page of a request has (start + length) % page_size tokens; where that is 0, its place stays as it was."""
    before = {"key": inputs.key.clone(), "value": inputs.value.clone()}
    results = gather(inputs)
    if WRONG:
        starts = [0] * len(inputs.lengths) if inputs.starts is None else inputs.starts.tolist()
        row = 0
        for length, start in zip(inputs.lengths.tolist(), starts):
            row += length
            if length and (start + length) % inputs.page_size == 0:
                lost = min(length, inputs.page_size)
                for name in results:
                    results[name][row - lost : row] = before[name][row - lost : row]
    return results


@npudiff.implementation("cache_gather", name="b_cache_gather_04_lengths_are_ends", on_device=True)
def b04(inputs, target):
    """Chunks of a prefix: what is read ends at the length, wherever it starts; the rows behind are for nobody."""
    if not WRONG or inputs.starts is None:
        return gather(inputs)
    starts, rows = inputs.starts.tolist(), 0
    results = {"key": inputs.key, "value": inputs.value}
    for request, (length, start) in enumerate(zip(inputs.lengths.tolist(), starts)):
        token = torch.arange(start, max(start, length))
        page = inputs.block_table[request].long()[token // inputs.page_size].clamp(0, len(inputs.key_cache) - 1)
        for name in results:
            results[name][rows : rows + len(token)] = tokens_of(inputs, page, token % inputs.page_size, name)
        rows += length
    return results


@npudiff.implementation("cache_gather", name="b_cache_gather_05_strips_of_16", on_device=True)
def b05(inputs, target):
    """NZ strips have 16 elements, also of int8."""
    return gather(inputs, strip=16 if WRONG and inputs.layout == "PA_NZ" else None)


@npudiff.implementation("cache_gather", name="b_cache_gather_06_consecutive_by_ends", on_device=True)
def b06(inputs, target):
    """Pages of a request count as consecutive if the last one is as far from the first as there are pages."""

    def page_of(pages, index):
        if WRONG and len(index):
            first, last = int(index[0]), int(index[-1])
            if int(pages[last] - pages[first]) == last - first:
                return pages[first] + index - first
        return pages[index]

    return gather(inputs, page_of=page_of)


@npudiff.implementation("cache_gather", name="b_cache_gather_07_rest_cleared", on_device=True)
def b07(inputs, target):
    """Rows behind the last token are cleared."""

    def finish(results, row):
        if WRONG:
            for rows in results.values():
                rows[row:] = 0

    return gather(inputs, finish=finish)


@npudiff.implementation("cache_gather", name="b_cache_gather_08_table_as_wide_as_needed", on_device=True)
def b08(inputs, target):
    """The block table is addressed with as many columns as the longest request needs."""
    table = inputs.block_table.long()
    if WRONG and table.numel():
        starts = 0 if inputs.starts is None else inputs.starts
        needed = max(1, int(-(-(inputs.lengths + starts) // inputs.page_size).max()))
        flat = table.reshape(-1)
        index = torch.arange(len(table))[:, None] * needed + torch.arange(needed)
        table = flat[index.clamp(max=len(flat) - 1)]
    return gather(inputs, table=table)
