"""Attention of ATB over a paged cache: decoding, chunks of a prefill, and a prefill behind a cached prefix."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.atb_attention.arithmetic import Softmax, attend
from npudiff.device.simulator.atb_attention.checks import (
    DTYPES,
    by_head,
    check_output,
    key_heads,
    lengths_of,
    paged_tokens,
)
from npudiff.device.simulator.atb_attention.masks import check_template
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_DECODE = ArgumentChecks("_npu_paged_attention", default=ErrorCode.TILING)
_MLA = ArgumentChecks("_npu_paged_attention_mla", default=ErrorCode.TILING)
_SPLITFUSE = ArgumentChecks("_npu_paged_attention_splitfuse", default=ErrorCode.TILING)
_QLENS = ArgumentChecks("_npu_flash_attention_qlens", default=ErrorCode.TILING)

_MAX_HEAD_DIM = 576
_LARGE_HEAD_DIM = 256
_MAX_LARGE_BLOCK = 128
_MAX_BLOCK_ELEMENTS = 128 * 128
_MAX_PREFIX_HEAD_DIM = 128
_PREFIX_HEAD_DIM_STEP = 16
_MAX_MLA_BATCH = 8192

# A number of our own: the content is scratch, and nothing reads it here.
_WORKSPACE_BYTES = 1024


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
) -> None:
    """Attend one query of each sequence to all of its keys.

    Parameters
    ----------
    query : Tensor
        [T, heads, D], float16 or bfloat16; token ``b`` is that of sequence ``b``.
    key_cache, value_cache : Tensor
        [blocks, block size, kv heads, D] and [..., Dv].
    num_kv_heads, num_heads : int
        Heads; 0 key heads are as many as query heads.
    scale_value : float
        Multiplies the scores.
    block_table : Tensor
        int32 [batch or more, blocks per sequence].
    context_lens : Tensor
        int32 [batch], on the host or the device.
    out : Tensor
        Written: [T, heads, Dv]. Tokens behind the last sequence keep what they have.

    Raises
    ------
    OperatorRejected
        Shapes, dtypes or sizes that ATB refuses.
    DeviceFault
        A block outside the cache or the table, or fewer tokens than sequences.
    """
    lengths = _check_decode(query, key_cache, value_cache, num_kv_heads, num_heads, block_table, context_lens, out)
    _decode(_DECODE, query, (key_cache, value_cache), scale_value, block_table, lengths, out)


def paged_attention_workspace(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
) -> Tensor:
    """Return scratch memory for :func:`paged_attention`, uint8, after all checks of the call."""
    _check_decode(query, key_cache, value_cache, num_kv_heads, num_heads, block_table, context_lens, out)
    return paged_attention_workspace_meta(query)


def paged_attention_workspace_meta(query: Tensor) -> Tensor:
    """Return the scratch memory of any call."""
    return query.new_empty(_WORKSPACE_BYTES, dtype=torch.uint8)


def paged_attention_mla(
    query: Tensor,
    key_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    mla_vheadsize: int,
    out: Tensor,
) -> None:
    """Attend as :func:`paged_attention`, with the first part of each key as its value.

    Parameters
    ----------
    query : Tensor
        [T, heads, D].
    key_cache : Tensor
        [blocks, block size, 1, D]: the latent and the rotated part of each token, side by side.
    num_kv_heads, num_heads, scale_value, block_table, context_lens
        As there; there is one key head.
    mla_vheadsize : int
        Elements of a key that are its value, up to D.
    out : Tensor
        Written: [T, heads, mla_vheadsize].

    Raises
    ------
    OperatorRejected, DeviceFault
        As there.
    """
    _check_mla(query, key_cache, num_kv_heads, num_heads, mla_vheadsize)
    lengths = _check_tables(_MLA, block_table, context_lens)
    if len(lengths) > _MAX_MLA_BATCH or len(block_table) > _MAX_MLA_BATCH:
        raise _MLA.rejected("block_table", f"of {len(block_table)} rows", f"up to {_MAX_MLA_BATCH}")
    shape = (*query.shape[:2], mla_vheadsize)
    check_output(_MLA, out, query, shape, meaning="[tokens, heads, mla_vheadsize]")
    caches = key_cache, key_cache[..., :mla_vheadsize]
    _decode(_MLA, query, caches, scale_value, block_table, lengths, out)


def paged_attention_splitfuse(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """Attend some queries of each sequence, under a mask of all tokens.

    Parameters
    ----------
    query : Tensor
        [T, heads, D], the sequences one after the other.
    key_cache, value_cache : Tensor
        [blocks, block size, kv heads, D].
    block_table, context_lens : Tensor
        As in :func:`paged_attention`; the lengths contain the queries.
    mask : Tensor
        [T, keys or more] in the query's dtype, added to the scaled scores.
    seq_len : Tensor
        int32 [batch]: queries of each sequence.
    num_kv_heads, num_heads, scale_value
        As there.
    out : Tensor
        Written: [T, heads, D].

    Raises
    ------
    OperatorRejected, DeviceFault
        As there.
    NotSimulated
        Masks of another rank.
    """
    _check_caches(_SPLITFUSE, query, key_cache, value_cache, num_kv_heads, num_heads)
    _SPLITFUSE.shape("value_cache", value_cache, key_cache.shape, meaning="as key_cache")
    _check_blocks_of_equal_dims(_SPLITFUSE, key_cache)
    check_output(_SPLITFUSE, out, query, query.shape, meaning="as query")
    lengths = _check_tables(_SPLITFUSE, block_table, context_lens)
    counts = _counts(_SPLITFUSE, seq_len, lengths, len(query))
    _SPLITFUSE.same_dtype("mask", mask, "query", query)
    if mask.dim() != 2:
        raise _SPLITFUSE.not_simulated("mask", f"of rank {mask.dim()}", "rank 2, [tokens, keys]")
    if len(mask) < sum(counts) or mask.shape[1] < max(lengths, default=0):
        allowed = f"[{sum(counts)} or more, {max(lengths)} or more], a row per token"
        raise _SPLITFUSE.rejected("mask", f"of shape {list(mask.shape)}", allowed)
    halves = query.dtype == torch.float16 and active_profile().atb_float16_scores == "float16"
    softmax = Softmax(scale_value, halves)
    for batch, (start, count, length) in enumerate(_spans(counts, lengths)):
        window = slice(start, start + count)
        keys, values = _read(_SPLITFUSE, block_table, batch, length, (key_cache, value_cache))
        queries = query[window].transpose(0, 1)
        out[window] = attend(queries, keys, values, softmax, bias=mask[window, :length]).transpose(0, 1)


def flash_attention_qlens(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    context_lens: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """Attend the last queries of each sequence causally to all of its keys, in float32.

    Parameters
    ----------
    query : Tensor
        [T, heads, D] or [T, heads * D], the sequences one after the other; D is a multiple of 16 up to 128.
    key_cache, value_cache : Tensor
        [blocks, block size, kv heads, D] or [blocks, block size, kv heads * D].
    block_table : Tensor
        int32 [batch, blocks per sequence].
    mask : Tensor
        [128, 128], the template of :func:`check_template`.
    seq_len, context_lens : Tensor
        int32 [batch]: queries, and keys with those of the queries.
    num_kv_heads, num_heads, scale_value
        As in :func:`paged_attention`.
    out : Tensor
        Written: as query.

    Raises
    ------
    OperatorRejected, DeviceFault
        As there.
    UndefinedBehaviour
        A mask of another content.
    """
    kv_heads = key_heads(_QLENS, num_heads, num_kv_heads)
    _QLENS.dtype("query", query, *DTYPES)
    _QLENS.rank("query", query, (2, 3), "[tokens, heads * dim] or [tokens, heads, dim]")
    queries = by_head(_QLENS, "query", query, num_heads, 3)
    caches = (
        by_head(_QLENS, "key_cache", key_cache, kv_heads, 4),
        by_head(_QLENS, "value_cache", value_cache, kv_heads, 4),
    )
    _check_caches(_QLENS, queries, *caches, num_kv_heads, num_heads)
    _QLENS.shape("value_cache", caches[1], caches[0].shape, meaning="as key_cache")
    dim = queries.shape[2]
    if dim > _MAX_PREFIX_HEAD_DIM or dim % _PREFIX_HEAD_DIM_STEP:
        allowed = f"a multiple of {_PREFIX_HEAD_DIM_STEP} up to {_MAX_PREFIX_HEAD_DIM}"
        raise _QLENS.rejected("query", f"of head dim {dim}", allowed)
    _check_blocks_of_equal_dims(_QLENS, caches[0])
    check_output(_QLENS, out, query, query.shape, meaning="as query")
    lengths = _check_tables(_QLENS, block_table, context_lens)
    if len(lengths) != len(block_table):
        raise _QLENS.rejected("context_lens", f"{len(lengths)} lengths", f"{len(block_table)}, as block_table has rows")
    counts = _counts(_QLENS, seq_len, lengths, len(query))
    check_template(_QLENS, mask, query)
    target = out.view(queries.shape)
    for batch, (start, count, length) in enumerate(_spans(counts, lengths)):
        if not count:
            continue
        window = slice(start, start + count)
        keys, values = _read(_QLENS, block_table, batch, length, caches)
        attention = attend(queries[window].transpose(0, 1), keys, values, Softmax(scale_value), causal=True)
        target[window] = attention.transpose(0, 1)


def nothing_meta() -> None:
    """Give the shapes of nothing: the operators return nothing."""


def _check_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
) -> list[int]:
    """Check all arguments, and return the lengths."""
    _check_caches(_DECODE, query, key_cache, value_cache, num_kv_heads, num_heads)
    meaning = "the blocks and heads of key_cache"
    _DECODE.shape("value_cache", value_cache, (*key_cache.shape[:3], -1), meaning=meaning)
    _check_block_size(key_cache, value_cache)
    check_output(
        _DECODE, out, query, (*query.shape[:2], value_cache.shape[3]), meaning="[tokens, heads, dim of value_cache]"
    )
    return _check_tables(_DECODE, block_table, context_lens)


def _check_mla(query: Tensor, key_cache: Tensor, num_kv_heads: int, num_heads: int, value_dim: int) -> None:
    if num_kv_heads != 1:
        raise _MLA.rejected("num_kv_heads", num_kv_heads, "1")
    _check_caches(_MLA, query, key_cache, key_cache, num_kv_heads, num_heads)
    block_size, dim = key_cache.shape[1], key_cache.shape[3]
    _MLA.between("mla_vheadsize", value_dim, 1, dim)
    if block_size == 2 * _MAX_LARGE_BLOCK and num_heads in (16, 32) and (dim, value_dim) == (576, 512):
        return
    _check_large_block(_MLA, block_size, dim, value_dim)


def _check_caches(
    check: ArgumentChecks, query: Tensor, key_cache: Tensor, value_cache: Tensor, num_kv_heads: int, num_heads: int
) -> None:
    kv_heads = key_heads(check, num_heads, num_kv_heads)
    check.dtype("query", query, *DTYPES)
    check.rank("query", query, 3, "[tokens, heads, dim]")
    check.shape("query", query, (-1, num_heads, -1), meaning="[tokens, num_heads, dim]")
    check.not_empty("query", query)
    for name, cache in _named_caches(key_cache, value_cache):
        check.rank(name, cache, 4, "[blocks, block size, kv heads, dim]")
        check.same_dtype(name, cache, "query", query)
        check.not_empty(name, cache)
        if cache.shape[3] > _MAX_HEAD_DIM:
            raise check.rejected(name, f"of head dim {cache.shape[3]}", f"up to {_MAX_HEAD_DIM}")
    wanted = (-1, -1, kv_heads, query.shape[2])
    check.shape("key_cache", key_cache, wanted, meaning="[blocks, block size, num_kv_heads, dim of query]")


def _check_block_size(key_cache: Tensor, value_cache: Tensor) -> None:
    block_size, dim, value_dim = key_cache.shape[1], key_cache.shape[3], value_cache.shape[3]
    if max(dim, value_dim) > _LARGE_HEAD_DIM:
        _check_large_block(_DECODE, block_size, dim, value_dim)
    elif dim == value_dim == _LARGE_HEAD_DIM and block_size >= _MAX_LARGE_BLOCK:
        if block_size % _MAX_LARGE_BLOCK:
            allowed = f"a multiple of {_MAX_LARGE_BLOCK} with head dim {_LARGE_HEAD_DIM}"
            raise _DECODE.rejected("key_cache", f"of block size {block_size}", allowed)
    elif dim == value_dim:
        _check_blocks_of_equal_dims(_DECODE, key_cache)


def _check_large_block(check: ArgumentChecks, block_size: int, dim: int, value_dim: int) -> None:
    if max(dim, value_dim) > _LARGE_HEAD_DIM and block_size > _MAX_LARGE_BLOCK:
        allowed = f"up to {_MAX_LARGE_BLOCK} with a head dim above {_LARGE_HEAD_DIM}"
        raise check.rejected("key_cache", f"of block size {block_size}", allowed)


def _check_blocks_of_equal_dims(check: ArgumentChecks, key_cache: Tensor) -> None:
    block_size, dim = key_cache.shape[1], key_cache.shape[3]
    if dim > _LARGE_HEAD_DIM or block_size * dim > _MAX_BLOCK_ELEMENTS:
        given = f"of block size {block_size} and head dim {dim}"
        raise check.rejected("key_cache", given, f"a product up to {_MAX_BLOCK_ELEMENTS}, a head dim up to 256")


def _check_tables(check: ArgumentChecks, block_table: Tensor, context_lens: Tensor) -> list[int]:
    check.rank("block_table", block_table, 2, "[batch, blocks per sequence]")
    check.dtype("block_table", block_table, "int32")
    return lengths_of(check, "context_lens", context_lens)


def _counts(check: ArgumentChecks, seq_len: Tensor, lengths: list[int], tokens: int) -> list[int]:
    """Return the queries of each sequence."""
    counts = lengths_of(check, "seq_len", seq_len)
    if len(counts) != len(lengths):
        raise check.rejected("seq_len", f"{len(counts)} lengths", f"{len(lengths)}, as context_lens")
    if sum(counts) > tokens:
        raise DeviceFault(f"{check.operator}: seq_len has {sum(counts)} queries, and query {tokens} tokens")
    for batch, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        if count > length:
            found = f"sequence {batch} has {count} queries and {length} keys"
            raise UndefinedBehaviour(f"{check.operator}: {found}; its first queries see none")
    return counts


def _decode(
    check: ArgumentChecks,
    query: Tensor,
    caches: tuple[Tensor, Tensor],
    scale: float,
    block_table: Tensor,
    lengths: list[int],
    out: Tensor,
) -> None:
    if len(lengths) > len(query):
        raise DeviceFault(f"{check.operator}: context_lens has {len(lengths)} sequences, and query {len(query)} tokens")
    for batch, length in enumerate(lengths):
        if length:
            keys, values = _read(check, block_table, batch, length, caches)
            out[batch] = attend(query[batch].unsqueeze(1), keys, values, Softmax(scale)).squeeze(1)
        elif active_profile().atb_empty_context == "zero":
            out[batch] = 0


def _spans(counts: list[int], lengths: list[int]) -> zip[tuple[int, int, int]]:
    """Return first token, number of queries, and number of keys of each sequence."""
    starts = (end - count for end, count in zip(accumulate(counts), counts, strict=True))
    return zip(starts, counts, lengths, strict=True)


def _read(
    check: ArgumentChecks, table: Tensor, batch: int, length: int, caches: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return keys and values [kv heads, length, dim] of one sequence, and touch no others."""
    keys, values = (paged_tokens(check, table, batch, length, cache).read(0, length) for cache in caches)
    return keys, values


def _named_caches(key_cache: Tensor, value_cache: Tensor) -> tuple[tuple[str, Tensor], ...]:
    return ("key_cache", key_cache), ("value_cache", value_cache)
