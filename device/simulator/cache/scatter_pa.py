"""``npu_scatter_pa_kv_cache``: tokens into the slots of ND or NZ caches, as ``cache_mode`` says.

Sources: DOC, the torch_npu documentation of the operator; SOURCE, ``ScatterPaKvCacheMembaseTiling`` (A2 and A3)
in ops-transformer, ``attention/scatter_pa_kv_cache/op_host``. The storage format of the caches plays no part
in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.slots import TILE_BYTES
from npudiff.device.simulator.cache.store import Target, layout_of, store
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.profiles import CannProfile, active_profile

if TYPE_CHECKING:
    from torch import Tensor

_NZ_MAX_BLOCK_SIZE = 65535
_NZ_AXES = "[blocks, kv heads * dim / C0, block size, C0] or [blocks, kv heads, dim / C0, block size, C0]"


@dataclass(frozen=True)
class _Call:
    """The tensors of one call; ``nz`` is what its cache mode says."""

    check: ArgumentChecks
    key: Tensor
    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    slot_mapping: Tensor
    nz: bool

    @property
    def block_size(self) -> int:
        """Tokens per block, read from the key cache with the axes that the mode expects."""
        return self.key_cache.shape[-2 if self.nz else 1]


def scatter_pa(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """Write tokens into both caches.

    Parameters
    ----------
    key, value : Tensor
        [T, kv heads, D] and [T, kv heads, Dv].
    key_cache, value_cache : Tensor
        Written. ``"Norm"``: [blocks, block size, kv heads, D]. ``"PA_NZ"``: [blocks, kv heads * D / C0,
        block size, C0], or the view [blocks, kv heads, D / C0, block size, C0] of it; C0 is 32 bytes.
    slot_mapping : Tensor
        int32 or int64 [T]. Negative slots are skipped; of equal slots the last one is written.
    compress_lens, compress_seq_offsets, seq_lens : Tensor, optional
        The compression scene, not simulated.
    cache_mode : str, optional
        ``"PA_NZ"`` is the default; ``"Norm"``, ``""`` and None are ND.

    Raises
    ------
    OperatorRejected
        Modes, shapes or dtypes that the operator refuses.
    NotSimulated
        The compression scene.
    UndefinedBehaviour
        A tensor with gaps.
    DeviceFault
        A slot beyond a cache, or fewer slots than tokens.
    """
    check = ArgumentChecks("npu_scatter_pa_kv_cache", default=ErrorCode.TILING)
    compression = {"compress_lens": compress_lens, "compress_seq_offsets": compress_seq_offsets, "seq_lens": seq_lens}
    for name, tensor in compression.items():
        if tensor is not None:
            raise check.not_simulated(name, "given", "None, no compression")
    if key.dim() == 4:
        raise check.not_simulated("key", "of rank 4, the compression scene", "[tokens, kv heads, dim]")
    if cache_mode not in ("PA_NZ", "Norm", "", None):
        raise check.rejected("cache_mode", repr(cache_mode), "'PA_NZ', 'Norm', '' or None")
    call = _Call(check, key, value, key_cache, value_cache, slot_mapping, nz=cache_mode == "PA_NZ")
    profile = active_profile()
    _check(call, profile)
    _write(call)


def scatter_pa_functional(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """Return caches with the tokens written, and leave the given ones alone: copies, then :func:`scatter_pa`."""
    caches = key_cache.contiguous().clone(), value_cache.contiguous().clone()
    scatter_pa(key, value, *caches, slot_mapping, **options)  # type: ignore[arg-type]
    return caches


def scatter_pa_meta() -> None:
    """Give the shapes of nothing: the operator returns nothing."""


def scatter_pa_functional_meta(key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors like the caches."""
    return key_cache.new_empty(key_cache.shape), value_cache.new_empty(value_cache.shape)


def _check(call: _Call, profile: CannProfile) -> None:
    check = call.check
    check.rank("key", call.key, 3, "[tokens, kv heads, dim]")
    check.rank("value", call.value, 3, "[tokens, kv heads, dim]")
    check.rank("slot_mapping", call.slot_mapping, 1, "[tokens]")
    for name, cache in (("key_cache", call.key_cache), ("value_cache", call.value_cache)):
        ranks, axes = ((4, 5), _NZ_AXES) if call.nz else ((4,), "[blocks, block size, kv heads, dim]")
        check.rank(name, cache, ranks, axes)
    _check_dtypes(call, profile)
    _check_sizes(call)
    if not call.nz:
        _check_norm(call)
    else:
        _check_nz(call)
        if profile.scatter_pa_nz_shapes == "checked":
            _check_nz_shapes(call)
    check.addressed_as_contiguous(
        key=call.key,
        value=call.value,
        key_cache=call.key_cache,
        value_cache=call.value_cache,
        slot_mapping=call.slot_mapping,
    )


def _check_dtypes(call: _Call, profile: CannProfile) -> None:
    check = call.check
    check.dtype("key", call.key, *profile.scatter_pa_dtypes)
    check.dtype("value", call.value, *profile.scatter_pa_dtypes)
    check.same_dtype("key_cache", call.key_cache, "key", call.key)
    check.same_dtype("value_cache", call.value_cache, "value", call.value)
    check.dtype("slot_mapping", call.slot_mapping, "int32", "int64")
    if call.value.dtype == call.key.dtype:
        return
    if profile.scatter_pa_mixed_dtypes == "rejected":
        check.same_dtype("value", call.value, "key", call.key)
    if dtype_name(call.key) != "int8":
        allowed = f"{dtype_name(call.key)}, the dtype of key, which is not int8"
        raise check.rejected("value", dtype_name(call.value), allowed, ErrorCode.PARAMETER)


def _check_sizes(call: _Call) -> None:
    check = call.check
    for name, tokens in (("key", call.key), ("value", call.value)):
        if 0 in tokens.shape:
            raise check.rejected(name, f"empty, {list(tokens.shape)}", "at least one token, head and element")
    check.shape("value", call.value, (*call.key.shape[:2], -1), meaning="the tokens and kv heads of key")
    if len(call.key_cache) != len(call.value_cache):
        given = f"of {len(call.value_cache)} blocks"
        raise check.rejected("value_cache", given, f"the {len(call.key_cache)} blocks of key_cache")
    slots = len(call.key_cache) * call.block_size
    if slots < len(call.key):
        raise check.rejected("key_cache", f"of {slots} slots", f"at least one for each of {len(call.key)} tokens")


def _check_norm(call: _Call) -> None:
    blocks, block_size = call.key_cache.shape[:2]
    for name, tokens, cache in (("key", call.key, call.key_cache), ("value", call.value, call.value_cache)):
        wanted = (blocks, block_size, *tokens.shape[1:])
        call.check.shape(f"{name}_cache", cache, wanted, meaning=f"the kv heads and dim of {name}, in cache_mode Norm")


def _check_nz(call: _Call) -> None:
    """Refuse heads that do not fill tiles, and blocks too large for a stride of 16 bit."""
    if not 0 < call.block_size <= _NZ_MAX_BLOCK_SIZE:
        raise call.check.rejected("key_cache", f"of block size {call.block_size}", f"1 to {_NZ_MAX_BLOCK_SIZE}")
    for name, tokens in (("key", call.key), ("value", call.value)):
        size = tokens.shape[2] * tokens.itemsize
        if size % TILE_BYTES:
            given = f"of head dim {tokens.shape[2]} in {dtype_name(tokens)}, {size} bytes"
            raise call.check.rejected(name, given, f"a multiple of {TILE_BYTES} bytes in cache_mode PA_NZ")


def _check_nz_shapes(call: _Call) -> None:
    for name, tokens, cache in (("key", call.key, call.key_cache), ("value", call.value, call.value_cache)):
        heads, dim = tokens.shape[1:]
        width = TILE_BYTES // tokens.itemsize
        middle = (heads * dim // width,) if cache.dim() == 4 else (heads, dim // width)
        wanted = (-1, *middle, call.block_size, width)
        call.check.shape(f"{name}_cache", cache, wanted, meaning=f"{_NZ_AXES}, in cache_mode PA_NZ")


def _write(call: _Call) -> None:
    """Write. SOURCE counts tokens by the key and does not compare with the slots."""
    count = len(call.key)
    if len(call.slot_mapping) < count:
        message = f"slot_mapping has {len(call.slot_mapping)} slots for {count} tokens"
        raise DeviceFault(f"{call.check.operator}: {message}, and what lies behind them is read")
    block_size = call.block_size if call.nz else None
    targets = [
        Target("key_cache", call.key, call.key_cache, layout_of(call.key, block_size)),
        Target("value_cache", call.value, call.value_cache, layout_of(call.value, block_size)),
    ]
    store(call.check.operator, "slot_mapping", call.slot_mapping[:count], targets)
