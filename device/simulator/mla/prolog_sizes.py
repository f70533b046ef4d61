"""The sizes of a call of ``npu_mla_prolog``: how shapes belong together, and which sizes there are.

The axes are those of the documentation: He is the hidden size, Hcq the rank of the query, N its heads, D and Dr a
head's dims without and with position, Hckv the latent's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.rotary.requirements import require_rank, require_shape

if TYPE_CHECKING:
    from collections.abc import Collection

    from npudiff.device.simulator.mla.prolog_request import PrologRequest
    from npudiff.device.simulator.profiles import CannProfile

_MAX_BATCH = 65536
_MAX_LENGTH = 16
_MAX_TOKENS = 1048576
_FRACTAL_COLUMNS = 16


@dataclass(frozen=True)
class PrologSizes:
    """He, Hcq, N, D, Dr and Hckv, and the blocks of the caches."""

    hidden: int
    query_rank: int
    heads: int
    nope: int
    rope: int
    latent: int
    blocks: int
    block_size: int


@dataclass(frozen=True)
class _Limits:
    """The sizes that a version has."""

    hidden: Collection[int]
    query_rank: Collection[int]
    nope: Collection[int]
    block_size: Collection[int]


_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
_ROPE = (64,)
_LATENT = (512,)

# DOC of versions 1 and 2; of version 3; newer sources of version 3.
_V1_LIMITS = _Limits((7168,), (1536,), (128,), (16, 128))
_V3_LIMITS = _Limits((6144, 7168, 7680), (1536,), (128,), (16, 128))
_V3_NEWER_LIMITS = _Limits(
    (1024, 2048, 3072, 4096, 5120, 6144, 7168, 7680, 8192), (1536, 2048), (128, 192), range(16, 1025, 16)
)


def check_sizes(request: PrologRequest, profile: CannProfile, *, fractal: bool) -> PrologSizes:
    """Refuse shapes that do not belong together, and sizes that the operator does not have.

    Parameters
    ----------
    request : PrologRequest
        Ranks of token_x, weight_uk and rope_sin have been checked.
    profile : CannProfile
        Decides which sizes there are.
    fractal : bool
        Whether the caches are in NZ order.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    for argument in ("weight_dq", "kv_cache", "kr_cache"):
        require_rank(request.operator, argument, getattr(request, argument), 2 if argument == "weight_dq" else 4)
    heads, nope, latent = request.weight_uk.shape
    blocks, block_size = request.kv_cache.shape[:2]
    sizes = PrologSizes(
        hidden=request.token_x.shape[-1],
        query_rank=request.weight_dq.shape[1],
        heads=heads,
        nope=nope,
        rope=request.rope_sin.shape[-1],
        latent=latent,
        blocks=blocks,
        block_size=block_size,
    )
    _check_shapes(request, sizes)
    _check_tokens(request)
    if profile.mla_sizes == "free":
        _check_divisibility(request, sizes, fractal=fractal)
    else:
        _check_limits(request, sizes, profile)
    return sizes


def _check_shapes(request: PrologRequest, sizes: PrologSizes) -> None:
    tokens = "T" if len(request.tokens) == 1 else "B, S"
    up, down = sizes.heads * (sizes.nope + sizes.rope), sizes.latent + sizes.rope
    angles = ((*request.tokens, sizes.rope), f"[{tokens}, Dr]")
    shapes = {
        "weight_dq": ((sizes.hidden, sizes.query_rank), "[He, Hcq]"),
        "weight_uq_qr": ((sizes.query_rank, up), "[Hcq, N * (D + Dr)]"),
        "weight_dkv_kr": ((sizes.hidden, down), "[He, Hckv + Dr]"),
        "rmsnorm_gamma_cq": ((sizes.query_rank,), "[Hcq]"),
        "rmsnorm_gamma_ckv": ((sizes.latent,), "[Hckv]"),
        "rope_sin": angles,
        "rope_cos": angles,
        "kv_cache": ((sizes.blocks, sizes.block_size, 1, sizes.latent), "[blocks, block size, 1, Hckv]"),
        "kr_cache": ((sizes.blocks, sizes.block_size, 1, sizes.rope), "[blocks, block size, 1, Dr]"),
    }
    for argument, (shape, meaning) in shapes.items():
        require_shape(request.operator, argument, getattr(request, argument), shape, meaning)


def _check_tokens(request: PrologRequest) -> None:
    limits = {1: (("T", _MAX_TOKENS),), 2: (("B", _MAX_BATCH), ("S", _MAX_LENGTH))}[len(request.tokens)]
    for (axis, limit), size in zip(limits, request.tokens, strict=True):
        if size > limit:
            raise request.rejected("token_x", f"of {axis} = {size}", f"at most {limit}")


def _check_limits(request: PrologRequest, sizes: PrologSizes, profile: CannProfile) -> None:
    of_v3 = _V3_NEWER_LIMITS if profile.mla_sizes == "newer" else _V3_LIMITS
    limits = of_v3 if request.is_v3 else _V1_LIMITS
    for argument, axis, size, allowed in (
        ("token_x", "He", sizes.hidden, limits.hidden),
        ("weight_dq", "Hcq", sizes.query_rank, limits.query_rank),
        ("weight_uk", "N", sizes.heads, _HEADS),
        ("weight_uk", "D", sizes.nope, limits.nope),
        ("weight_uk", "Hckv", sizes.latent, _LATENT),
        ("rope_sin", "Dr", sizes.rope, _ROPE),
        ("kv_cache", "block size", sizes.block_size, limits.block_size),
    ):
        if size not in allowed:
            raise request.rejected(argument, f"of {axis} = {size}", _listed(allowed))


def _listed(sizes: Collection[int]) -> str:
    if isinstance(sizes, range):
        return f"{sizes.start} to {sizes.stop - 1} in steps of {sizes.step}"
    return " or ".join(map(str, sizes))


def _check_divisibility(request: PrologRequest, sizes: PrologSizes, *, fractal: bool) -> None:
    """Refuse what no size of an operator of this kind could be: nothing, odd pairs, tiles that are not full."""
    for argument, axis, size in (
        ("token_x", "He", sizes.hidden),
        ("weight_dq", "Hcq", sizes.query_rank),
        ("weight_uk", "N", sizes.heads),
        ("weight_uk", "D", sizes.nope),
        ("weight_uk", "Hckv", sizes.latent),
        ("rope_sin", "Dr", sizes.rope),
        ("kv_cache", "block size", sizes.block_size),
    ):
        if size < 1:
            raise request.rejected(argument, f"of {axis} = {size}", "at least 1", ErrorCode.PARAMETER)
    if sizes.rope % 2:
        raise request.rejected("rope_sin", f"of Dr = {sizes.rope}", "an even number", ErrorCode.PARAMETER)
    for argument, axis, size in (("weight_uk", "Hckv", sizes.latent), ("rope_sin", "Dr", sizes.rope)):
        if fractal and size % _FRACTAL_COLUMNS:
            allowed = f"a multiple of {_FRACTAL_COLUMNS} with cache_mode PA_NZ"
            raise request.rejected(argument, f"of {axis} = {size}", allowed, ErrorCode.PARAMETER)
