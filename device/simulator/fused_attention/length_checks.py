"""The checks of actual sequence lengths, block tables and caches.

Sources: DOC of both versions (actual lengths, page attention), ACLNN for TND, CANN's paged checker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.axes import row_axis
from npudiff.device.simulator.fused_attention.layouts import expand

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

_MAX_TND_SEQUENCES = 4096
# A row of a [blocks, block size, kv heads * dim] cache is moved by one instruction with a 16-bit size.
_MAX_CACHE_ROW = 65535
_INT32_MAX = 2**31 - 1
# C0 elements of a FRACTAL_NZ tile's row: 16 of 16 bits, 32 of int8.
_TILE_BYTES = 32


def check_paging(request: FusedAttentionRequest, table: Tensor, profile: CannProfile) -> None:
    """Refuse block tables and caches of a wrong form; block ids are not looked at, as on hardware.

    Raises
    ------
    OperatorRejected
        Table dtype or rank, cache rank or sizes, ``block_size``, or missing key lengths.
    """
    if table.dtype != torch.int32:
        raise request.check.rejected("block_table", table.dtype, "int32", ErrorCode.PARAMETER)
    if table.dim() != 2:
        raise request.check.rejected("block_table", f"of rank {table.dim()}", "rank 2", ErrorCode.PARAMETER)
    if request.key_lengths is None:
        raise request.check.rejected(request.names.key_lengths, "None", "one length per sequence, with block_table")
    if request.packed and request.query_rope is None and profile.tnd_paging == "rejected":
        raise request.check.rejected("block_table", f"given with layout {request.layout}", "None")
    _check_cache_form(request, profile)
    for name, cache in (("key", request.key), ("value", request.value)):
        _check_cache_sizes(request, name, cache)
    if request.key.shape[0] != request.value.shape[0]:
        allowed = f"as many as key, {request.key.shape[0]}"
        raise request.check.rejected("value", f"a cache of {request.value.shape[0]} blocks", allowed)


def _check_cache_form(request: FusedAttentionRequest, profile: CannProfile) -> None:
    rank = request.key.dim()
    if rank != request.value.dim():
        raise request.check.rejected("key", f"of rank {rank}", f"the value's rank {request.value.dim()}")
    rope = request.query_rope is not None
    if rank == 5 and not rope and not request.integer_cache and profile.five_dimensional_cache == "rejected":
        raise request.check.rejected("key", "a rank 5 (FRACTAL_NZ) cache", "rank 3 or 4, without rope and quantisation")
    if rank == 4 and profile.four_dimensional_cache == "bnsd_and_tnd" and request.axes in ("BSH", "BSND"):
        raise request.check.rejected(
            "key", f"a rank 4 cache with layout {request.layout}", "rank 3, or layout BNSD or TND"
        )


def _check_cache_sizes(request: FusedAttentionRequest, name: str, cache: Tensor) -> None:
    """Refuse a cache of another block size, number of heads, or width of a token or tile."""
    size = cache.shape[{3: 1, 4: 2, 5: 3}[cache.dim()]]
    if request.block_size != size:
        raise request.check.rejected("block_size", request.block_size, f"the {name} cache's {size}")
    if cache.dim() == 3:
        _check_cache_row(request, name, cache.shape[2])
        return
    if cache.shape[1] != request.kv_heads:
        raise request.check.rejected(
            name, f"a cache of {cache.shape[1]} heads", f"num_key_value_heads {request.kv_heads}"
        )
    if cache.dim() == 5:
        check_tiles(request, name, cache)


def check_tiles(request: FusedAttentionRequest, name: str, cache: Tensor) -> None:
    """Refuse a cache [blocks, kv heads, D / C0, block size, C0] whose C0 is not 32 bytes.

    Raises
    ------
    OperatorRejected
        Naming the cache.
    """
    width = _TILE_BYTES // cache.itemsize
    if cache.shape[4] != width:
        given = f"{list(cache.shape)}, a cache with tiles of {cache.shape[4]} elements"
        allowed = f"[blocks, kv heads, dim / {width}, block size, {width}]: tiles of {_TILE_BYTES} bytes"
        raise request.check.rejected(name, given, allowed)


def _check_cache_row(request: FusedAttentionRequest, name: str, elements: int) -> None:
    if elements % request.kv_heads:
        allowed = f"a multiple of its {request.kv_heads} heads"
        raise request.check.rejected(name, f"a cache of {elements} elements per token", allowed)
    if elements > _MAX_CACHE_ROW:
        allowed = f"at most {_MAX_CACHE_ROW}; [blocks, kv heads, block size, dim] has no such limit"
        raise request.check.rejected(name, f"a cache of {elements} elements per token", allowed)


def check_lengths(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse actual lengths that fit neither layout, tensors nor block table, and wrong block sizes.

    Raises
    ------
    OperatorRejected
        Naming the list, or ``block_size`` or ``block_table``.
    """
    if request.packed:
        _check_packed_lengths(request, geometry)
    else:
        if not geometry.single:
            _check_list(request, request.names.query_lengths, request.query_lengths, geometry, geometry.query_rows)
        if request.block_table is None:
            _check_list(request, request.names.key_lengths, request.key_lengths, geometry, geometry.key_rows)
    if request.block_table is not None:
        _check_table_size(request, request.block_table, geometry)
        _check_block_size(request, geometry, profile)


def _check_list(
    request: FusedAttentionRequest, name: str, lengths: tuple[int, ...] | None, geometry: Geometry, limit: int
) -> None:
    """Check lengths per sequence; a list of one serves all, entries beyond the batch are not read."""
    if lengths is None:
        return
    if len(lengths) != 1 and len(lengths) < geometry.batch:
        raise request.check.rejected(name, f"{len(lengths)} entries", f"1 entry, or one for each of {geometry.batch}")
    for length in lengths[: geometry.batch]:
        if not 0 <= length <= limit:
            raise request.check.rejected(name, list(lengths), f"lengths from 0 to {limit}")


def _check_packed_lengths(request: FusedAttentionRequest, geometry: Geometry) -> None:
    names, queries, keys = request.names, request.query_lengths, request.key_lengths
    if queries is None:
        raise request.check.rejected(names.query_lengths, "None", f"cumulative lengths, in {request.layout}")
    if keys is None:
        raise request.check.rejected(names.key_lengths, "None", f"a list, in {request.layout}")
    _check_cumulative(request, names.query_lengths, queries)
    if not 0 < len(queries) <= _MAX_TND_SEQUENCES:
        raise request.check.rejected(names.query_lengths, f"{len(queries)} entries", f"1 to {_MAX_TND_SEQUENCES}")
    tokens = request.query.shape[row_axis(request.axes)]
    if queries[-1] != tokens:
        allowed = f"cumulative lengths that end with {tokens}, the tokens of query"
        raise request.check.rejected(names.query_lengths, _abridged(queries), allowed)
    if len(keys) != geometry.batch:
        allowed = f"{geometry.batch}, as in {names.query_lengths}"
        raise request.check.rejected(names.key_lengths, f"{len(keys)} entries", allowed)
    if request.block_table is None:
        _check_cumulative(request, names.key_lengths, keys)
        if keys[-1] > geometry.key_rows:
            allowed = f"cumulative lengths up to {geometry.key_rows}, the tokens of key"
            raise request.check.rejected(names.key_lengths, _abridged(keys), allowed)


def _check_cumulative(request: FusedAttentionRequest, name: str, lengths: tuple[int, ...]) -> None:
    if any(later < earlier for earlier, later in zip((0, *lengths), lengths, strict=False)):
        raise request.check.rejected(name, _abridged(lengths), "cumulative lengths that never fall")


def _check_table_size(request: FusedAttentionRequest, table: Tensor, geometry: Geometry) -> None:
    name = request.names.key_lengths
    if table.shape[0] != geometry.batch:
        raise request.check.rejected("block_table", f"of {table.shape[0]} rows", f"{geometry.batch}, one per sequence")
    lengths = request.key_lengths or ()
    if len(lengths) != 1 and len(lengths) < geometry.batch:
        raise request.check.rejected(name, f"{len(lengths)} entries", f"1 entry, or one for each of {geometry.batch}")
    used = expand(lengths, geometry.batch, 0)
    if min(used, default=0) < 0:
        raise request.check.rejected(name, _abridged(used), "lengths of 0 or more")
    if max(used, default=0) > geometry.key_rows:
        given = f"{table.shape[1]} blocks of {request.block_size} wide"
        raise request.check.rejected("block_table", given, f"room for the longest of {name}, {max(used)}")


def _check_block_size(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    size, single = request.block_size, geometry.query_rows <= 1
    if request.integer_cache:
        step, limit = 32, 512
    elif request.query_rope is not None:
        step, limit = 16, 1024
    elif profile.block_size_rule == "docs":
        step, limit = (16, 512) if single else (128, 512)
    elif geometry.head_dim in (64, 128):
        step, limit = 16, 1024
    else:
        step, limit = (16, 512) if single else (128, 1024)
    if size <= 0 or size % step or size > limit:
        queries = "one query" if single else "several queries"
        raise request.check.rejected(
            "block_size", size, f"a multiple of {step} up to {limit}, for {queries} per sequence"
        )
    if single and request.key.numel() > _INT32_MAX:
        raise request.check.rejected("key", f"a cache of {request.key.numel()} elements", f"at most {_INT32_MAX}")


def _abridged(lengths: tuple[int, ...]) -> str:
    return str(list(lengths)) if len(lengths) <= 8 else f"[{', '.join(map(str, lengths[:8]))}, ...]"
