"""Wrong kernels of cache_gather; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "cache_gather"


def _read(cache, layout, page, offset, heads, dim):
    """Tokens by page and offset, [tokens, heads, dim]."""
    if layout == "PA_BSND":
        return cache[page, offset]
    if layout == "PA_BNSD":
        return cache[page, :, offset]
    return cache[page, :, offset].reshape(-1, heads, dim)


def _gathered(inputs, *, starts=None, table=None, lengths=None, places=None, clear=False):
    """Keys and values of all tokens; ``places`` says at which row a request begins."""
    lengths = inputs.lengths.tolist() if lengths is None else lengths
    table = inputs.block_table if table is None else table
    if starts is None:
        starts = [0] * len(lengths) if inputs.starts is None else inputs.starts.tolist()
    result = {}
    for name in ("key", "value"):
        cache, rows = getattr(inputs, name + "_cache"), getattr(inputs, name).clone()
        if clear:
            rows.zero_()
        first = 0
        for request, (length, start) in enumerate(zip(lengths, starts)):
            place = first if places is None else places[request]
            token = torch.arange(start, start + length)
            page = table[request].to(torch.int64)[token // inputs.page_size]
            own = _read(cache, inputs.layout, page.clamp(0, cache.shape[0] - 1), token % inputs.page_size, *rows.shape[1:])
            room = max(0, min(length, len(rows) - place))
            rows[place : place + room] = own[:room]
            first += length
        result[name] = rows
    return result


@npudiff.implementation(NAME, name="c_cache_gather_01_starts_of_whole_pages", on_device=True)
def c01(inputs, target):
    """What is read begins with the page in which the first token lies, and not with the token."""
    if inputs.starts is None:
        return _gathered(inputs)
    starts, size = inputs.starts.tolist(), inputs.page_size
    return _gathered(inputs, starts=[start // size * size for start in starts] if WRONG else starts)


@npudiff.implementation(NAME, name="c_cache_gather_02_sums_of_eight_lengths", on_device=True)
def c02(inputs, target):
    """Where a request's rows begin is a running sum within a block of eight lengths, which carries nothing over to the
    next block."""
    lengths = inputs.lengths.tolist()
    block = 8 if WRONG else max(1, len(lengths))
    places = [sum(lengths[request // block * block : request]) for request in range(len(lengths))]
    return _gathered(inputs, places=places)


@npudiff.implementation(NAME, name="c_cache_gather_03_packed_into_zeros", on_device=True)
def c03(inputs, target):
    """Tokens are packed into a new buffer of zeros, and the rows behind the last one do not stay what they were."""
    return _gathered(inputs, clear=WRONG)


@npudiff.implementation(NAME, name="c_cache_gather_04_empty_requests_left_out", on_device=True)
def c04(inputs, target):
    """Requests of no tokens are left out of lengths and starts, and not of the block table."""
    lengths = inputs.lengths.tolist()
    starts = [0] * len(lengths) if inputs.starts is None else inputs.starts.tolist()
    some = [request for request, length in enumerate(lengths) if length]
    table = inputs.block_table if WRONG else inputs.block_table[some]
    return _gathered(
        inputs, starts=[starts[request] for request in some], lengths=[lengths[request] for request in some], table=table
    )
