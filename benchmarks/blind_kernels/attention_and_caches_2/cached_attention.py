"""Wrong kernels of cached_attention; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff
from c_core import attention as _attention
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

WRONG = os.environ.get("TWIN") != "1"
NAME = "cached_attention"


def _nz(pool):
    """[pages, page_size, heads, dim] as the bytes of the same pool in strips, in the same shape."""
    pages, size, heads, dim = pool.shape
    return pool.reshape(pages, size, heads * dim // 16, 16).transpose(1, 2).reshape(pool.shape)


def _nd(pool):
    """The inverse."""
    pages, size, heads, dim = pool.shape
    return pool.reshape(pages, heads * dim // 16, size, 16).transpose(1, 2).reshape(pool.shape)


def _as_read(pool, layout):
    """The tokens that attention sees in a pool that it takes for a layout."""
    return _nd(pool) if layout == "PA_NZ" else pool


def _written(inputs, tokens=None):
    """Both pools after the write, in the writer's layout; only the first ``tokens`` are written."""
    slots = inputs.slots.to(torch.int64)[:tokens]
    pools = []
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        pool = cache.clone().contiguous()
        pool = _nd(pool).contiguous() if inputs.write_layout == "PA_NZ" else pool
        pool.reshape(-1, *rows.shape[1:])[slots] = rows[: len(slots)]
        pools.append(_nz(pool).contiguous() if inputs.write_layout == "PA_NZ" else pool)
    return pools


def _converted(inputs, pools, pages):
    """The pools with some pages converted to the reader's layout, one after the other, in place."""
    turn = _nz if inputs.read_layout == "PA_NZ" else _nd
    result = []
    for pool in pools:
        pool = pool.clone()
        if inputs.read_layout != inputs.write_layout:
            for page in pages:
                pool[page : page + 1] = turn(pool[page : page + 1].clone())
        result.append(pool)
    return result


def _attended(inputs, pools):
    key, value = (_as_read(pool, inputs.read_layout) for pool in pools)
    given = SlidingAttentionInputs(
        query=inputs.query,
        full=PagedKV(key, value, inputs.block_table),
        sliding=None,
        query_lengths=inputs.query_lengths,
        kv_lengths=inputs.kv_lengths,
        window=inputs.window,
        scale=inputs.scale,
        sinks=None,
    )
    return {"output": _attention(given)["output"]}


def _all_pages(inputs):
    return range(inputs.key_cache.shape[0])


@npudiff.implementation(NAME, name="c_cached_attention_01_pages_of_the_table_converted", on_device=True)
def c01(inputs, target):
    """The pages that the block table names are converted in place, and a page that it names twice is converted twice."""
    pages = inputs.block_table.flatten().tolist() if WRONG else _all_pages(inputs)
    return _attended(inputs, _converted(inputs, _written(inputs), pages))


@npudiff.implementation(NAME, name="c_cached_attention_02_last_tokens_not_written_yet", on_device=True)
def c02(inputs, target):
    """Tokens are written 16 at a time, and attention begins before those behind the last whole 16 have arrived."""
    tokens = len(inputs.key)
    pools = _written(inputs, tokens // 16 * 16 if WRONG and tokens > 16 else tokens)
    return _attended(inputs, _converted(inputs, pools, _all_pages(inputs)))


@npudiff.implementation(NAME, name="c_cached_attention_03_pages_of_new_tokens_converted", on_device=True)
def c03(inputs, target):
    """Only pages into which new tokens were written are converted: those of the history are taken for converted, as they
    are where every step converts its own."""
    pages, size, start = set(), inputs.page_size, 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        own = inputs.slots[start + max(0, total - new) : start + total]
        pages.update((own // size).tolist())
        start += total
    return _attended(inputs, _converted(inputs, _written(inputs), sorted(pages) if WRONG else _all_pages(inputs)))


@npudiff.implementation(NAME, name="c_cached_attention_04_converted_once", stateful=True, on_device=True)
def c04():
    """The pool in the reader's layout is kept for each shape: converting it is no part of what is replayed."""
    kept = {}

    def call(inputs, target):
        pools = _written(inputs)
        if inputs.read_layout == inputs.write_layout:
            return _attended(inputs, pools)
        key = (tuple(inputs.key_cache.shape), inputs.key_cache.dtype, inputs.read_layout)
        if key not in kept or not WRONG:
            kept[key] = _converted(inputs, pools, _all_pages(inputs))
        return _attended(inputs, kept[key])

    return call
