"""The arguments of ``npu_kv_rmsnorm_rope_cache`` in all versions, and their checks.

Sources: the operator's documentation (DOC), that of ``aclnnKvRmsNormRopeCacheV2`` and the golden beside it
(ACLNN), op-plugin's host code and the wheel's META (HOST), and CANN's ``kv_rms_norm_rope_cache`` kernels for A2 and
A3 (SOURCE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.profiles import CannProfile

ROPE_DIM = 64

# ScalarType numbers of the dtypes that a cache can have here; others name 8-bit floats, for Ascend 950.
_SCALAR_TYPES = {torch.int8: 1, torch.float16: 5, torch.bfloat16: 15}


@dataclass(frozen=True)
class CacheMode:
    """What a ``cache_mode`` means."""

    paged: bool
    """The cache is [blocks, block size, N, D]; otherwise [B, N, cache length, D]."""
    per_block: bool
    """``index`` has one entry per block of a sequence, not one per token."""
    fractal: bool
    """The bytes of a block lie as [N, D / c, block size, c], c elements being 32 bytes."""


CACHE_MODES = {
    "Norm": CacheMode(paged=False, per_block=False, fractal=False),
    "PA": CacheMode(paged=True, per_block=False, fractal=False),
    "PA_BNSD": CacheMode(paged=True, per_block=False, fractal=False),
    "PA_NZ": CacheMode(paged=True, per_block=False, fractal=True),
    "PA_BLK_BNSD": CacheMode(paged=True, per_block=True, fractal=False),
    "PA_BLK_NZ": CacheMode(paged=True, per_block=True, fractal=True),
}


@dataclass(frozen=True)
class Form:
    """How wide things are, with or without ``v``."""

    hidden: int
    """Last axis of kv."""
    normed: int
    """How much of it is normalised, from the front."""
    key: int
    """Last axis of ``k_cache``."""
    value: int
    """Last axis of ``ckv_cache``."""
    heads: tuple[int, ...]
    """What the second axis of kv may be."""


JOINT = Form(hidden=576, normed=512, key=ROPE_DIM, value=512, heads=(1,))
"""kv holds the latent and the rope part."""
SEPARATE = Form(hidden=192, normed=192, key=192, value=128, heads=(1, 2, 4, 8))
"""kv holds keys, whose first 64 elements are turned once they are normalised; ``v`` holds values."""


@dataclass(frozen=True)
class KvRequest:
    """One call. Names are those of the schemas; ``k_cache`` is the rope part, ``ckv_cache`` the latent one."""

    check: ArgumentChecks
    kv: Tensor
    gamma: Tensor
    cos: Tensor
    sin: Tensor
    index: Tensor
    k_cache: Tensor
    ckv_cache: Tensor
    k_rope_scale: Tensor | None
    c_kv_scale: Tensor | None
    k_rope_offset: Tensor | None
    c_kv_offset: Tensor | None
    v: Tensor | None
    epsilon: float
    cache_mode: str
    is_output_kv: bool
    k_cache_dtype: int | None = None
    ckv_cache_dtype: int | None = None

    @property
    def values(self) -> Tensor | None:
        """``v``, unless the host code ignores it: it has to be of rank 4 with 128 elements on the last axis."""
        given = self.v
        return given if given is not None and given.dim() == 4 and given.shape[3] == SEPARATE.value else None

    @property
    def form(self) -> Form:
        """What ``v`` makes of the other arguments."""
        return JOINT if self.values is None else SEPARATE

    @property
    def batch(self) -> int:
        """B of kv [B, N, S, D]."""
        return self.kv.shape[0]

    @property
    def heads(self) -> int:
        """N of kv [B, N, S, D]."""
        return self.kv.shape[1]

    @property
    def length(self) -> int:
        """S of kv [B, N, S, D]."""
        return self.kv.shape[2]

    @property
    def scaled(self) -> bool:
        """Whether a cache is quantised."""
        return self.k_rope_scale is not None or self.c_kv_scale is not None

    @property
    def slots_per_block(self) -> int:
        """Block size of a paged cache; cache length in mode Norm."""
        return self.k_cache.shape[1 if CACHE_MODES[self.cache_mode].paged else 2]


def check_host(request: KvRequest) -> None:
    """Raise what the host code raises: ranks of kv, gamma and cos.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    for argument, tensor, rank in (("kv", request.kv, 4), ("gamma", request.gamma, 1), ("cos", request.cos, 4)):
        request.check.rank(argument, tensor, rank, code=ErrorCode.WRAPPER)


def check(request: KvRequest, profile: CannProfile) -> None:
    """Refuse what the operator refuses, then what the simulator cannot do.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        8-bit float caches, or caches that are not contiguous.
    """
    check_host(request)
    if request.cache_mode not in CACHE_MODES:
        allowed = ", ".join(CACHE_MODES)
        raise request.check.rejected("cache_mode", repr(request.cache_mode), allowed)
    _check_inputs(request)
    _check_scales(request, profile)
    _check_caches(request, profile)
    _check_index(request)


def _check_inputs(request: KvRequest) -> None:
    check, form = request.check, request.form
    check.dtype("kv", request.kv, "float16", "bfloat16")
    batch, heads, length = request.batch, request.heads, request.length
    shapes = [(batch, allowed, length, form.hidden) for allowed in form.heads]
    check.shape("kv", request.kv, *shapes, meaning=f"[B, N, S, {form.hidden}]")
    check.shape("gamma", request.gamma, (form.normed,), meaning=f"[{form.normed}]")
    tables, meaning = [(batch, 1, length, ROPE_DIM)], f"[B, 1, S, {ROPE_DIM}]"
    if request.values is not None:
        check.shape("v", request.values, (batch, heads, length, form.value), meaning=f"[B, N, S, {form.value}]")
        check.same_dtype("v", request.values, "kv", request.kv)
        # ACLNN: one position for a whole sequence, too.
        tables, meaning = [*tables, (batch, 1, 1, ROPE_DIM)], f"{meaning} or [B, 1, 1, {ROPE_DIM}]"
    for argument, tensor in (("cos", request.cos), ("sin", request.sin)):
        check.shape(argument, tensor, *tables, meaning=meaning)
    # SOURCE reads all of them as the dtype of kv.
    for argument, tensor in (("gamma", request.gamma), ("cos", request.cos), ("sin", request.sin)):
        check.same_dtype(argument, tensor, "kv", request.kv)


def _check_scales(request: KvRequest, profile: CannProfile) -> None:
    if request.values is not None:
        _check_separate_scales(request)
        return
    for argument, offset in (("k_rope_offset", request.k_rope_offset), ("c_kv_offset", request.c_kv_offset)):
        if offset is not None:
            given = f"of shape {list(offset.shape)}"
            raise request.check.rejected(argument, given, "None: offsets are not supported")
    scales = (("k_rope_scale", request.k_rope_scale, JOINT.key), ("c_kv_scale", request.c_kv_scale, JOINT.value))
    for argument, scale, dim in scales:
        if scale is not None:
            request.check.dtype(argument, scale, "float32")
            request.check.shape(argument, scale, (dim,), meaning=f"[{dim}]")
            if request.cache_mode == "Norm" and profile.kv_rmsnorm_scales_in_norm_mode == "rejected":
                raise request.check.rejected(argument, "given in cache_mode 'Norm'", "None", ErrorCode.TILING)
    missing = [argument for argument, scale, _ in scales if scale is None]
    if len(missing) == 1 and profile.kv_rmsnorm_scales == "both":
        raise request.check.rejected(missing[0], "None", "a scale for both caches, or for neither")


def _check_separate_scales(request: KvRequest) -> None:
    # ACLNN: in every mode, for each cache by itself, and with offsets.
    for name, scale, offset, dim in (
        ("k_rope", request.k_rope_scale, request.k_rope_offset, SEPARATE.key),
        ("c_kv", request.c_kv_scale, request.c_kv_offset, SEPARATE.value),
    ):
        if offset is not None and scale is None:
            raise request.check.rejected(
                f"{name}_offset", f"of shape {list(offset.shape)}", f"None without {name}_scale"
            )
        for argument, given in ((f"{name}_scale", scale), (f"{name}_offset", offset)):
            if given is not None:
                request.check.dtype(argument, given, "float32")
                shapes = ((request.heads, dim), (dim,), (1,))
                request.check.shape(argument, given, *shapes, meaning=f"[N, {dim}], [{dim}] or [1]")


def _check_caches(request: KvRequest, profile: CannProfile) -> None:
    caches = (
        ("k_cache", request.k_cache, request.form.key, request.k_rope_scale, request.k_cache_dtype),
        ("ckv_cache", request.ckv_cache, request.form.value, request.c_kv_scale, request.ckv_cache_dtype),
    )
    for argument, cache, dim, scale, scalar_type in caches:
        request.check.rank(argument, cache, 4)
        _check_cache_shape(request, argument, cache, dim)
        request.check.dtype(argument, cache, "int8" if scale is not None else dtype_name(request.kv))
        if scalar_type not in (None, _SCALAR_TYPES[cache.dtype]):
            simulated = f"None or {_SCALAR_TYPES[cache.dtype]}, the dtype that the cache has"
            raise request.check.not_simulated(f"{argument}_dtype", scalar_type, simulated)
        request.check.simulated_contiguous("contiguous caches", **{argument: cache})
    if CACHE_MODES[request.cache_mode].paged:
        blocks, needed = len(request.k_cache), -(-request.length // request.slots_per_block) * request.batch
        if profile.kv_rmsnorm_block_count == "documented" and blocks < needed:
            allowed = f"at least {needed}, ceil(S / block size) * B"
            raise request.check.rejected("k_cache", f"of {blocks} blocks", allowed, ErrorCode.TILING)
    elif request.slots_per_block < request.length:
        given = f"of cache length {request.slots_per_block}"
        raise request.check.rejected("k_cache", given, f"at least S = {request.length}", ErrorCode.TILING)


def _check_cache_shape(request: KvRequest, argument: str, cache: Tensor, dim: int) -> None:
    # Both caches have the tokens' axes of the first; only the last axis differs.
    first, second, third = request.k_cache.shape[:3]
    heads = request.heads
    if CACHE_MODES[request.cache_mode].paged:
        shape, meaning = (first, second, heads, dim), f"[blocks, block size, {heads}, {dim}]"
        empty = second == 0
    else:
        shape, meaning = (request.batch, heads, third, dim), f"[B, {heads}, cache length, {dim}]"
        empty = False
    request.check.shape(argument, cache, shape, meaning=meaning)
    if empty:
        raise request.check.rejected(argument, "of block size 0", "at least 1")


def _check_index(request: KvRequest) -> None:
    request.check.dtype("index", request.index, "int64")
    mode, batch, length = CACHE_MODES[request.cache_mode], request.batch, request.length
    if not mode.paged:
        shape: tuple[int, ...] = (batch, length)
        meaning = "[B, S]"
    elif mode.per_block:
        shape, meaning = (batch * -(-length // request.slots_per_block),), "[B * ceil(S / block size)]"
    else:
        shape, meaning = (batch * length,), "[B * S]"
    request.check.shape("index", request.index, shape, meaning=meaning)
