"""``_npu_reshape_and_cache`` and ``..._siso``: tokens into the slots of ATB's caches.

Sources: op-plugin, ``op_plugin/ops/atb/ReshapeAndCachAtb.cpp`` and ``AtbCommon.cpp`` (WRAPPER); ATB,
``reshape_and_cache_operation.cpp`` for A2 and A3 (``KVCacheDimCheck910B``, ``KVCacheDimCheck910BNZ``,
``DimCheckSISO``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.cache.slots import TILE_BYTES
from npudiff.device.simulator.cache.store import Target, layout_of, store
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_BOTH = ArgumentChecks("_npu_reshape_and_cache", default=ErrorCode.TILING)
_SISO = ArgumentChecks("_npu_reshape_and_cache_siso", default=ErrorCode.TILING)
_DTYPES = ("float16", "bfloat16", "int8")
_NZ_BLOCK_STEP = 16


def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor) -> None:
    """Write tokens into both caches.

    Parameters
    ----------
    key, value : Tensor
        [T, kv heads, D] and [T, kv heads, Dv] in float16, bfloat16 or int8.
    key_cache, value_cache : Tensor
        Written. [blocks, block size, kv heads, D] and [..., Dv]; if both are in FRACTAL_NZ, [blocks,
        kv heads * D / C0, block size, C0], where an int8 key has 16 bit values.
    slot_indices : Tensor
        int32 [T]. Negative slots are skipped; of equal slots the last one is written.

    Raises
    ------
    OperatorRejected
        Shapes or dtypes that ATB refuses, and caches with gaps.
    DeviceFault
        A slot beyond a cache, or fewer slots than tokens.
    """
    formats = [format_of(cache) is Format.FRACTAL_NZ for cache in (key_cache, value_cache)]
    # AtTensor2AtbTensor refuses outputs with gaps, and copies inputs.
    _BOTH.contiguous(key_cache=key_cache, value_cache=value_cache, code=ErrorCode.WRAPPER)
    _check_pair(key, value, key_cache, value_cache, slot_indices, nz=all(formats))
    if any(formats) and not all(formats):
        _check_lone_nz(_BOTH, "value_cache" if formats[0] else "key_cache", "FRACTAL_NZ, as the other cache")
    block_size = key_cache.shape[2] if all(formats) else None
    pairs = {"key_cache": (key, key_cache), "value_cache": (value, value_cache)}
    _store(_BOTH, slot_indices, block_size, pairs)


def reshape_and_cache_siso(key: Tensor, key_cache: Tensor, slot_indices: Tensor) -> None:
    """Write tokens into one cache, always as ND.

    Parameters
    ----------
    key : Tensor
        [T, kv heads, D] in float16, bfloat16 or int8.
    key_cache : Tensor
        [blocks, block size, kv heads, D], written.
    slot_indices : Tensor
        int32 [T], as in :func:`reshape_and_cache`.

    Raises
    ------
    OperatorRejected, DeviceFault
        As :func:`reshape_and_cache`; here ATB wants as many slots as tokens.
    """
    _SISO.contiguous(key_cache=key_cache, code=ErrorCode.WRAPPER)
    _check_ranks(_SISO, slot_indices, key=key, key_cache=key_cache)
    _SISO.shape("slot_indices", slot_indices, (len(key),), meaning="one slot per token")
    _check_dtypes(_SISO, slot_indices, key=key, key_cache=key_cache)
    _SISO.shape("key_cache", key_cache, (-1, -1, *key.shape[1:]), meaning="[blocks, block size, kv heads, D] of key")
    if format_of(key_cache) is Format.FRACTAL_NZ:
        _check_lone_nz(_SISO, "key_cache", "a base format")
    _store(_SISO, slot_indices, None, {"key_cache": (key, key_cache)})


def reshape_and_cache_meta() -> None:
    """Give the shapes of nothing: the operators return nothing."""


def _check_pair(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor, *, nz: bool
) -> None:
    _check_ranks(_BOTH, slot_indices, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    _check_dtypes(_BOTH, slot_indices, key=key, key_cache=key_cache)
    _check_dtypes(_BOTH, slot_indices, value=value, value_cache=value_cache)
    _BOTH.shape("value", value, (*key.shape[:2], -1), meaning="the tokens and kv heads of key")
    if nz:
        _check_nz(key, value, key_cache, value_cache)
        return
    # The IR of the ND operation has one dtype for all tensors (inferred from its documentation).
    _BOTH.same_dtype("value", value, "key", key)
    _BOTH.shape("key_cache", key_cache, (-1, -1, *key.shape[1:]), meaning="[blocks, block size, kv heads, D] of key")
    wanted = (*key_cache.shape[:2], *value.shape[1:])
    _BOTH.shape("value_cache", value_cache, wanted, meaning="the blocks of key_cache, the kv heads and dim of value")


def _check_nz(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """Refuse caches in FRACTAL_NZ of other shapes; C0 of values is 16 whatever the keys are."""
    block_size = key_cache.shape[2]
    if not block_size or block_size % _NZ_BLOCK_STEP:
        raise _BOTH.rejected(
            "key_cache", f"of block size {block_size} in FRACTAL_NZ", f"a multiple of {_NZ_BLOCK_STEP}"
        )
    _BOTH.dtype("value", value, "float16", "bfloat16")
    for name, tokens, cache in (("key", key, key_cache), ("value", value, value_cache)):
        heads, dim = tokens.shape[1:]
        width = TILE_BYTES // tokens.itemsize
        if not heads * dim or heads * dim % width:
            raise _BOTH.rejected(name, f"of {heads} kv heads * {dim} in FRACTAL_NZ", f"a multiple of {width} per token")
        wanted = (-1, heads * dim // width, block_size, width)
        _BOTH.shape(
            f"{name}_cache", cache, wanted, meaning="[blocks, kv heads * dim / C0, block size, C0] in FRACTAL_NZ"
        )


def _check_ranks(check: ArgumentChecks, slot_indices: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if name.endswith("cache"):
            check.rank(name, tensor, 4, "[blocks, block size, kv heads, dim]")
        else:
            check.rank(name, tensor, 3, "[tokens, kv heads, dim]")
            if 0 in tensor.shape:
                raise check.not_simulated(name, f"empty, {list(tensor.shape)}", "at least one element")
    check.rank("slot_indices", slot_indices, 1, "[tokens]")


def _check_dtypes(check: ArgumentChecks, slot_indices: Tensor, **tensors: Tensor) -> None:
    """Refuse dtypes; the tensors are tokens and their cache."""
    (name, tokens), (cache_name, cache) = tensors.items()
    check.dtype(name, tokens, *_DTYPES)
    check.same_dtype(cache_name, cache, name, tokens)
    check.dtype("slot_indices", slot_indices, "int32")


def _check_lone_nz(check: ArgumentChecks, argument: str, allowed: str) -> None:
    if active_profile().reshape_and_cache_lone_nz == "rejected":
        raise check.rejected(argument, "not of the format of the operation", allowed)


def _store(
    check: ArgumentChecks,
    slot_indices: Tensor,
    nz_block_size: int | None,
    pairs: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Write pairs of tokens and cache, named by the cache. ATB counts tokens by the key and not by the slots."""
    count = len(pairs["key_cache"][0])
    if len(slot_indices) < count:
        message = f"slot_indices has {len(slot_indices)} slots for {count} tokens"
        raise DeviceFault(f"{check.operator}: {message}, and what lies behind them is read")
    targets = [Target(name, tokens, cache, layout_of(tokens, nz_block_size)) for name, (tokens, cache) in pairs.items()]
    store(check.operator, "slot_indices", slot_indices[:count], targets)
