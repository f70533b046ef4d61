"""``npu_gather_pa_kv_cache``: the tokens of sequences, out of their blocks and into one piece.

Sources: op-plugin, ``NpuGatherPaKvCacheKernelNpuOpApi.cpp`` (the format of the key cache decides the mode); DOC,
aclnn's page aclnnGatherPaKvCache; SOURCE, the kernels ``gather_pa_kv_cache_nd.h`` and ``..._nz.h`` for A2 and A3
in ops-transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.cache.physical import device_bytes
from npudiff.device.simulator.cache.slots import TILE_BYTES, read
from npudiff.device.simulator.cache.store import layout_of
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "npu_gather_pa_kv_cache"
_CHECK = ArgumentChecks(_NAME, default=ErrorCode.TILING)
_DTYPES = ("int8", "float16", "bfloat16")


def gather_pa(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    seq_offset: Tensor | None = None,
    is_seq_lens_cumsum: bool = False,
) -> None:
    """Copy the tokens of every sequence, one sequence after the other.

    Parameters
    ----------
    key_cache, value_cache : Tensor
        [blocks, block size, kv heads, D] and [..., Dv]; if the key cache is in FRACTAL_NZ, both are
        [blocks, kv heads * D / C0, block size, C0].
    block_tables : Tensor
        int32 [batch, blocks per sequence].
    seq_lens : Tensor
        int32 [batch] lengths, or [batch + 1] cumulative ones that begin with 0.
    key, value : Tensor
        Written: [T, kv heads, D], in FRACTAL_NZ [T, kv heads * D]. Rows behind the last sequence stay.
    seq_offset : Tensor, optional
        int32 [batch]: the token at which each sequence begins, rounded down to a block.
    is_seq_lens_cumsum : bool, default False
        Whether ``seq_lens`` is cumulative.

    Raises
    ------
    OperatorRejected
        Shapes or dtypes that the operator refuses.
    UndefinedBehaviour
        A tensor with gaps, or lengths that are negative or do not begin with 0.
    DeviceFault
        A block outside the cache or the table, or more tokens than ``key`` has rows.
    """
    nz = format_of(key_cache) is Format.FRACTAL_NZ
    _check(key_cache, value_cache, block_tables, seq_lens, key, value, seq_offset, nz=nz, cumulative=is_seq_lens_cumsum)
    lengths = _lengths(seq_lens, cumulative=is_seq_lens_cumsum)
    total = int(lengths.sum())
    if total > len(key):
        raise DeviceFault(f"{_NAME}: seq_lens has {total} tokens, and key has {len(key)} rows")
    if total == 0:
        return
    block_size = key_cache.shape[2 if nz else 1]
    columns, sequences, rows = _places(lengths, block_size, _first_columns(seq_offset, lengths, block_size, nz=nz))
    blocks, readable = _blocks(block_tables, sequences, columns, len(key_cache))
    slots = blocks * block_size + rows
    for name, cache, output in (("key_cache", key_cache, key), ("value_cache", value_cache, value)):
        layout = layout_of(output, block_size if nz else None)
        tokens = read(device_bytes(_NAME, name, cache), layout, slots)
        tokens.masked_fill_(~readable.unsqueeze(1), 0)
        output.view(len(output), -1).view(torch.uint8)[:total] = tokens


def gather_pa_functional(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    **options: object,
) -> tuple[Tensor, Tensor]:
    """Return copies of ``key`` and ``value`` with the tokens written, as :func:`gather_pa` would."""
    outputs = key.clone(), value.clone()
    gather_pa(key_cache, value_cache, block_tables, seq_lens, *outputs, **options)  # type: ignore[arg-type]
    return outputs


def gather_pa_meta() -> None:
    """Give the shapes of nothing: the operator returns nothing."""


def gather_pa_functional_meta(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors like ``key`` and ``value``."""
    return key.new_empty(key.shape), value.new_empty(value.shape)


def _check(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    seq_offset: Tensor | None,
    *,
    nz: bool,
    cumulative: bool,
) -> None:
    _CHECK.rank("block_tables", block_tables, 2, "[batch, blocks per sequence]")
    batch = len(block_tables)
    _CHECK.shape("seq_lens", seq_lens, (batch + cumulative,), meaning="as block_tables and is_seq_lens_cumsum say")
    integers = {"block_tables": block_tables, "seq_lens": seq_lens}
    if seq_offset is not None:
        _CHECK.shape("seq_offset", seq_offset, (batch,), meaning="one per sequence")
        integers["seq_offset"] = seq_offset
    for name, tensor in integers.items():
        _CHECK.dtype(name, tensor, "int32")
        _CHECK.not_empty(name, tensor)
    _CHECK.dtype("key_cache", key_cache, *_DTYPES)
    for name, tensor in (("value_cache", value_cache), ("key", key), ("value", value)):
        _CHECK.same_dtype(name, tensor, "key_cache", key_cache)
    _check_shapes(key_cache, value_cache, key, value, nz=nz)
    _CHECK.addressed_as_contiguous(key_cache=key_cache, value_cache=value_cache, key=key, value=value, **integers)


def _check_shapes(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, *, nz: bool) -> None:
    for name, cache, output in (("key", key_cache, key), ("value", value_cache, value)):
        _CHECK.rank(f"{name}_cache", cache, 4, "[blocks, block size, kv heads, dim], or NZ")
        axes = "[tokens, kv heads * dim] for a key cache in FRACTAL_NZ" if nz else "[tokens, kv heads, dim]"
        _CHECK.rank(name, output, 2 if nz else 3, axes)
        for argument, tensor in ((f"{name}_cache", cache), (name, output)):
            _CHECK.not_empty(argument, tensor)
    _CHECK.shape("value", value, (len(key), *[-1] * (value.dim() - 1)), meaning="as many tokens as key")
    for name, cache, output in (("key", key_cache, key), ("value", value_cache, value)):
        if nz:
            width = TILE_BYTES // cache.itemsize
            wanted = (len(key_cache), output.shape[1] // width, key_cache.shape[2], width)
        else:
            wanted = (*key_cache.shape[:2], *output.shape[1:])
        _CHECK.shape(f"{name}_cache", cache, wanted, meaning=f"the blocks of key_cache and the tokens of {name}")
        if nz and output.shape[1] % (TILE_BYTES // cache.itemsize):
            allowed = f"a multiple of {TILE_BYTES // cache.itemsize} per token in FRACTAL_NZ"
            raise _CHECK.rejected(name, f"of {output.shape[1]} elements per token", allowed)


def _lengths(seq_lens: Tensor, *, cumulative: bool) -> Tensor:
    """Return int64 [batch] lengths."""
    lengths = seq_lens.to(torch.int64)
    if cumulative:
        if lengths[0]:
            raise UndefinedBehaviour(f"{_NAME}: seq_lens is cumulative and begins with {int(lengths[0])}, not with 0")
        lengths = lengths.diff()
    if (lengths < 0).any():
        position = int((lengths < 0).nonzero()[0])
        raise UndefinedBehaviour(f"{_NAME}: the length of sequence {position} is {int(lengths[position])}")
    return lengths


def _first_columns(seq_offset: Tensor | None, lengths: Tensor, block_size: int, *, nz: bool) -> Tensor:
    """Return the column of the block table at which each sequence begins."""
    if seq_offset is None:
        return torch.zeros_like(lengths)
    if nz and active_profile().gather_pa_nz_offset == "blocks":
        return seq_offset.to(torch.int64)
    return seq_offset.to(torch.int64).div(block_size, rounding_mode="trunc")


def _places(lengths: Tensor, block_size: int, first_columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return column in the block table, sequence, and row in the block, of every token."""
    sequences = torch.arange(len(lengths)).repeat_interleave(lengths)
    tokens = torch.arange(len(sequences)) - (lengths.cumsum(0) - lengths)[sequences]
    return first_columns[sequences] + tokens.div(block_size, rounding_mode="floor"), sequences, tokens % block_size


def _blocks(block_tables: Tensor, sequences: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the block of every token, and whether there is one; the block is 0 where there is none."""
    width = block_tables.shape[1]
    in_table = (columns >= 0) & (columns < width)
    blocks = block_tables.to(torch.int64)[sequences, columns.clamp(0, width - 1)]
    readable = in_table & (blocks >= 0) & (blocks < count)
    if active_profile().gather_pa_missing_block == "fault" and not readable.all():
        token = int((~readable).nonzero()[0])
        where = f"{_NAME}: block_tables[{int(sequences[token])}, {int(columns[token])}]"
        if not in_table[token]:
            raise DeviceFault(f"{where} is read, and the table has {width} columns")
        raise DeviceFault(f"{where} is {int(blocks[token])}, and the cache has {count} blocks")
    return blocks.where(readable, torch.zeros_like(blocks)), readable
