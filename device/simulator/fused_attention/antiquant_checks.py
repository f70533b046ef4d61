"""The checks of keys and values of integers under a 16-bit query.

Sources: DOC of both versions (antiquantisation, decode, prefill, page attention, KV in NZ order), CANN's paged checker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention import antiquant
from npudiff.device.simulator.fused_attention.antiquant import Parameters, parameters
from npudiff.device.simulator.fused_attention.length_checks import check_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from npudiff.device.simulator.fused_attention.layouts import Geometry
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

_LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND")
_MAX_QUERIES = 16
_DIM_STEP = {torch.int8: 32, torch.int32: 64}
_NZ_HEADS = ((10, 1), (64, 8), (80, 8), (128, 16))
_NZ_BLOCK_SIZES = (128, 512)
_NZ_DIM = 128
_MODES = {torch.int8: (0, 1, 2, 3, 4, 5), torch.int32: (0, 1, 3)}
_PAGED_MODES = (antiquant.PAGED_PER_TOKEN, antiquant.PAGED_PER_TOKEN_AND_HEAD)
_OF_QUERY_DTYPE = (antiquant.PER_CHANNEL, antiquant.PER_HEAD)


def check_integers(request: FusedAttentionRequest) -> None:
    """Refuse dtypes, layouts and forms of caches that integers have not; sizes are not looked at.

    Raises
    ------
    OperatorRejected
        Naming ``key`` or ``value``.
    """
    key, value = request.key, request.value
    if value.dtype != key.dtype:
        raise request.check.rejected("value", value.dtype, f"the key's dtype {key.dtype}", ErrorCode.PARAMETER)
    if request.query_rope is not None:
        raise request.check.rejected("key", f"{key.dtype} with query_rope", f"{request.query.dtype}")
    if request.layout not in _LAYOUTS:
        raise request.check.rejected("key", f"{key.dtype} in {request.layout}", ", ".join(_LAYOUTS))
    if request.block_table is None:
        return
    if key.dtype == torch.int32:
        raise request.check.rejected("key", "torch.int32 with block_table", "int8 or 16-bit pages")
    if key.dim() == value.dim() == 5:
        check_tiles(request, "key", key)
        check_tiles(request, "value", value)
    if key.dim() == 4 and request.axes in ("BSH", "BSND"):
        given = f"a rank 4 cache of int8 with layout {request.layout}"
        raise request.check.rejected("key", given, "rank 3 or 5, or layout BNSD")


def check_antiquant(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse scales, offsets, modes and sizes that do not give the integers of a call back.

    Raises
    ------
    OperatorRejected
        Naming the argument in the caller's words.
    """
    key, value = parameters(request)
    _check_presence(request, key, value)
    for name, dim in (("query", geometry.head_dim), ("value", geometry.value_dim)):
        if dim % _DIM_STEP[request.key.dtype]:
            allowed = f"a multiple of {_DIM_STEP[request.key.dtype]}, with keys of {request.key.dtype}"
            raise request.check.rejected(name, f"of head dim {dim}", allowed)
    _check_modes(request, geometry, key, value)
    if not geometry.single:
        _check_several_queries(request, geometry, key)
    if request.block_table is not None and request.key.dim() == 5:
        _check_nz(request, geometry, key, value, profile)
    for side, dim in ((key, geometry.head_dim), (value, geometry.value_dim)):
        _check_numbers(request, geometry, side, dim)


def _check_presence(request: FusedAttentionRequest, key: Parameters, value: Parameters) -> None:
    for side, other in ((key, value), (value, key)):
        if side.scale is None:
            allowed = f"a scale, for keys and values of {request.key.dtype}"
            raise request.check.rejected(side.names[0], "None", allowed)
        if side.offset is None and other.offset is not None:
            raise request.check.rejected(side.names[1], "None", f"given together with {other.names[1]}")


def _check_modes(request: FusedAttentionRequest, geometry: Geometry, key: Parameters, value: Parameters) -> None:
    dtype, paged = request.key.dtype, request.block_table is not None
    if key.combined:
        if key.mode not in (0, 1):
            raise request.check.rejected(key.names[2], key.mode, "0 or 1")
        return
    allowed = _MODES[dtype] if geometry.single else (0, 1)
    for side in (key, value):
        if side.mode not in allowed:
            queries = "one query" if geometry.single else "several queries"
            listed = ", ".join(map(str, allowed))
            raise request.check.rejected(side.names[2], side.mode, f"{listed}, for {dtype} and {queries}")
    if key.mode in _PAGED_MODES and not paged:
        raise request.check.rejected(key.names[2], f"{key.mode} without block_table", "0 to 3")
    mixed = (key.mode, value.mode) == (antiquant.PER_CHANNEL, antiquant.PER_TOKEN) and geometry.single
    if key.mode != value.mode and not mixed:
        allowed_mode = f"{key.mode}, as {key.names[2]}; or 1 beside 0, for one query"
        raise request.check.rejected(value.names[2], value.mode, allowed_mode)
    if mixed and dtype == torch.int8 and request.query.dtype != torch.float16:
        given = f"{request.query.dtype} with {key.names[2]} 0 and {value.names[2]} 1"
        raise request.check.rejected("query", given, "float16", ErrorCode.PARAMETER)


def _check_several_queries(request: FusedAttentionRequest, geometry: Geometry, key: Parameters) -> None:
    given = f"{request.key.dtype} with several queries"
    if request.key.dtype != torch.int8:
        raise request.check.rejected("key", given, "int8", ErrorCode.PARAMETER)
    if request.block_table is not None and request.key.dim() != 5:
        raise request.check.rejected("key", f"a rank {request.key.dim()} cache of int8 with several queries", "rank 5")
    dtype = torch.float16 if key.combined else torch.bfloat16
    if request.query.dtype != dtype:
        allowed = f"{dtype}, for several queries over int8 with {key.names[0]}"
        raise request.check.rejected("query", request.query.dtype, allowed, ErrorCode.PARAMETER)
    if not key.combined and geometry.query_rows > _MAX_QUERIES:
        given = f"of {geometry.query_rows} queries over int8 with {key.names[0]}"
        raise request.check.rejected("query", given, f"at most {_MAX_QUERIES}")


def _check_nz(
    request: FusedAttentionRequest, geometry: Geometry, key: Parameters, value: Parameters, profile: CannProfile
) -> None:
    where = "a rank 5 cache of int8"
    if request.query.dtype != torch.bfloat16:
        raise request.check.rejected("query", f"{request.query.dtype} with {where}", "bfloat16", ErrorCode.PARAMETER)
    if request.layout not in ("BSH", "BSND", "BNSD"):
        raise request.check.rejected("input_layout", f"{request.layout!r} with {where}", "BSH, BSND, BNSD")
    if (geometry.head_dim, geometry.value_dim) != (_NZ_DIM, _NZ_DIM):
        raise request.check.rejected("query", f"of head dim {geometry.head_dim} with {where}", f"{_NZ_DIM}")
    if key.combined or key.mode not in (0, 1) or key.mode != value.mode:
        allowed = "0 or 1, and separate scales of key and value"
        raise request.check.rejected(value.names[2], f"{value.mode} with {where}", allowed)
    if key.offset is not None:
        raise request.check.rejected(key.names[1], f"given with {where}", "None")
    if profile.antiquant_nz_sizes == "any":
        return
    if request.block_size not in _NZ_BLOCK_SIZES:
        raise request.check.rejected("block_size", f"{request.block_size} with {where}", "128 or 512")
    if (request.heads, request.kv_heads) not in _NZ_HEADS:
        given = f"{request.heads} over {request.kv_heads} with {where}"
        raise request.check.rejected(request.names.heads, given, " or ".join(f"{n} over {k}" for n, k in _NZ_HEADS))


def _check_numbers(request: FusedAttentionRequest, geometry: Geometry, side: Parameters, dim: int) -> None:
    """Check the shapes and dtypes of a scale and its offset."""
    mode = side.mode
    dtype = request.query.dtype if mode in _OF_QUERY_DTYPE else torch.float32
    for name, numbers in zip(side.names[:2], (side.scale, side.offset), strict=True):
        if numbers is None:
            continue
        if numbers.dtype != dtype:
            allowed = f"{dtype}, in mode {mode}"
            raise request.check.rejected(name, numbers.dtype, allowed, ErrorCode.PARAMETER)
        given = tuple(numbers.shape)
        shapes = _shapes(request, geometry, mode, dim)
        if side.combined:
            shapes = [*shapes, ()]
        if not any(_fits(given, shape) for shape in shapes):
            lead = "[2, ...] of " if side.combined else ""
            listed = " or ".join(f"[{', '.join(_named(size) for size in shape)}]" for shape in shapes if shape)
            raise request.check.rejected(name, f"of shape {_whole(side, given)}", f"{lead}{listed}, in mode {mode}")
    if side.scale is not None and side.offset is not None and side.scale.shape != side.offset.shape:
        allowed = f"{list(side.scale.shape)}, as {side.names[0]}"
        raise request.check.rejected(side.names[1], f"of shape {list(side.offset.shape)}", allowed)


def _shapes(request: FusedAttentionRequest, geometry: Geometry, mode: int, dim: int) -> list[tuple[int, ...]]:
    """Return the shapes that a mode may have; a negative size is the least, and what lies behind it is not read."""
    heads, keys = request.kv_heads, -geometry.key_rows
    if mode == antiquant.PER_CHANNEL:
        nz = request.block_table is not None and request.key.dim() == 5
        forms = {"BSH": (heads * dim,), "BNSD": (heads, 1, dim), "BSND": (heads, dim)}
        if nz:
            return [forms[request.axes]]
        plain = [(heads, 1, dim), (heads, dim), (heads * dim,)]
        one = [(1,)] if request.key.dtype == torch.int8 else []
        return [*plain, *((1, *shape) for shape in plain), *one]
    if mode == antiquant.PER_TOKEN:
        return [(geometry.batch, keys), (1, geometry.batch, keys)]
    if mode == antiquant.PER_HEAD:
        return [(heads,)]
    if mode == antiquant.PER_TOKEN_AND_HEAD:
        return [(geometry.batch, heads, keys)]
    blocks = request.key.shape[0]
    by_head = mode == antiquant.PAGED_PER_TOKEN_AND_HEAD
    return [(blocks, heads, request.block_size) if by_head else (blocks, request.block_size)]


def _fits(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(given) != len(shape):
        return False
    return all(size >= -want if want < 0 else size == want for size, want in zip(given, shape, strict=True))


def _named(size: int) -> str:
    return f"at least {-size}" if size < 0 else str(size)


def _whole(side: Parameters, shape: Sequence[int]) -> list[int]:
    return [2, *shape] if side.combined else list(shape)
