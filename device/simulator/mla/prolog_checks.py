"""The checks of ``npu_mla_prolog`` in all versions.

DOC is the operators' documentation in torch_npu 2.13.0; NEWER is what the repositories of op-plugin and CANN say since
then, with more sizes and cache modes for version 3. The axes are those of DOC: He is the hidden size, Hcq the rank of
the query, N its heads, D and Dr a head's dims without and with position, Hckv the latent's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.argument_checks import dtype_name
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.mla.prolog_request import PrologRequest, PrologSizes
from npudiff.device.simulator.mla.scenes import Scene, check_dtypes, check_scales, scene_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from npudiff.device.simulator.profiles import CannProfile


def check_host(request: PrologRequest) -> None:
    """Raise what the host code and META raise: ranks of token_x, weight_uk and rope_sin.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    token_x, rope_sin = request.token_x, request.rope_sin
    if token_x.dim() not in (2, 3):
        given = f"of rank {token_x.dim()}"
        raise request.check.rejected("token_x", given, "rank 2, [T, He], or 3, [B, S, He]", ErrorCode.WRAPPER)
    request.check.rank("weight_uk", request.weight_uk, 3, code=ErrorCode.WRAPPER)
    if request.is_v3 and rope_sin.dim() != token_x.dim():
        allowed = f"the rank of token_x, {token_x.dim()}"
        raise request.check.rejected("rope_sin", f"of rank {rope_sin.dim()}", allowed, ErrorCode.WRAPPER)
    if rope_sin.dim() not in (2, 3):
        raise request.check.rejected("rope_sin", f"of rank {rope_sin.dim()}", "rank 2 or 3", ErrorCode.WRAPPER)


_MAX_BATCH = 65536
_MAX_LENGTH = 16
_MAX_TOKENS = 1048576
_FRACTAL_BYTES = 32


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


def check_sizes(request: PrologRequest, scene: Scene, profile: CannProfile, *, fractal: bool) -> PrologSizes:
    """Refuse shapes that do not belong together, and sizes that the operator does not have.

    Parameters
    ----------
    request : PrologRequest
        Ranks of token_x, weight_uk and rope_sin have been checked.
    scene : Scene
        What is quantised.
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
        request.check.rank(
            argument, getattr(request, argument), 2 if argument == "weight_dq" else 4, code=ErrorCode.PARAMETER
        )
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
    _check_shapes(request, scene, sizes)
    _check_tokens(request)
    if profile.mla_sizes == "free":
        _check_divisibility(request, sizes, fractal=fractal)
    else:
        _check_limits(request, sizes, profile)
    return sizes


def _check_shapes(request: PrologRequest, scene: Scene, sizes: PrologSizes) -> None:
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
        "kv_cache": (
            (sizes.blocks, sizes.block_size, 1, scene.row_bytes(request)),
            "[blocks, block size, 1, Hckv]" if scene.cache != "tile" else "[blocks, block size, 1, Dtile]",
        ),
        "kr_cache": ((sizes.blocks, sizes.block_size, 1, sizes.rope), "[blocks, block size, 1, Dr]"),
    }
    for argument, (shape, meaning) in shapes.items():
        request.check.shape(argument, getattr(request, argument), shape, meaning=meaning, code=ErrorCode.PARAMETER)


def _check_tokens(request: PrologRequest) -> None:
    limits = {1: (("T", _MAX_TOKENS),), 2: (("B", _MAX_BATCH), ("S", _MAX_LENGTH))}[len(request.tokens)]
    for (axis, limit), size in zip(limits, request.tokens, strict=True):
        if size > limit:
            raise request.check.rejected("token_x", f"of {axis} = {size}", f"at most {limit}")


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
            raise request.check.rejected(argument, f"of {axis} = {size}", _listed(allowed))


def _listed(sizes: Collection[int]) -> str:
    if isinstance(sizes, range):
        return f"{sizes.start} to {sizes.stop - 1} in steps of {sizes.step}"
    return " or ".join(map(str, sizes))


def _check_divisibility(request: PrologRequest, sizes: PrologSizes, *, fractal: bool) -> None:
    """Refuse sizes that no such operator can have: empty axes, half a pair, tiles that are not full."""
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
            raise request.check.rejected(argument, f"of {axis} = {size}", "at least 1", ErrorCode.PARAMETER)
    if sizes.rope % 2:
        raise request.check.rejected("rope_sin", f"of Dr = {sizes.rope}", "an even number", ErrorCode.PARAMETER)
    for argument, axis, size, cache in (
        ("weight_uk", "Hckv", sizes.latent, request.kv_cache),
        ("rope_sin", "Dr", sizes.rope, request.kr_cache),
    ):
        columns = _FRACTAL_BYTES // cache.element_size()
        if fractal and size % columns:
            allowed = f"a multiple of {columns} with cache_mode PA_NZ"
            raise request.check.rejected(argument, f"of {axis} = {size}", allowed, ErrorCode.PARAMETER)


CACHE_MODES = {"PA_BSND": False, "PA_NZ": True}
"""Cache modes that are simulated, and whether their blocks are in NZ order."""

# NEWER has these for version 3.
_OTHER_CACHE_MODES = ("PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")

_BFLOAT16 = 15
_DTYPE_ARGUMENTS = ("token_x_dtype", "weight_dq_dtype", "weight_uq_qr_dtype", "weight_dkv_kr_dtype", "kv_cache_dtype")
_FRACTAL_WEIGHTS = ("weight_dq", "weight_uq_qr", "weight_dkv_kr")


def check(request: PrologRequest, profile: CannProfile) -> tuple[PrologSizes, Scene]:
    """Refuse what the operator refuses, then what the simulator cannot do.

    Returns
    -------
    PrologSizes
        The sizes of a call that may run.
    Scene
        What it quantises.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        Cache modes of newer versions, dtypes by number, caches that are not contiguous.
    """
    check_host(request)
    _check_cache_mode(request)
    scene = scene_of(request)
    check_dtypes(request, scene)
    for argument in _DTYPE_ARGUMENTS:
        given = dict(request.extras).get(argument, _BFLOAT16)
        if given != _BFLOAT16:
            raise request.check.not_simulated(argument, given, f"None or {_BFLOAT16}, bfloat16")
    _check_formats(request, profile)
    sizes = check_sizes(request, scene, profile, fractal=CACHE_MODES[request.cache_mode])
    check_scales(request, scene, sizes)
    _check_index(request)
    for argument, cache in (("kv_cache", request.kv_cache), ("kr_cache", request.kr_cache)):
        request.check.simulated_contiguous("contiguous caches", **{argument: cache})
    return sizes, scene


def _check_cache_mode(request: PrologRequest) -> None:
    mode = request.cache_mode
    if request.is_v3 and mode in _OTHER_CACHE_MODES:
        raise request.check.not_simulated("cache_mode", repr(mode), ", ".join(CACHE_MODES))
    if mode not in CACHE_MODES:
        raise request.check.rejected("cache_mode", repr(mode), ", ".join(CACHE_MODES), ErrorCode.PARAMETER)


def _check_formats(request: PrologRequest, profile: CannProfile) -> None:
    if profile.mla_prolog_weight_format == "any":
        return
    for argument in _FRACTAL_WEIGHTS:
        found = format_of(getattr(request, argument))
        if found is not Format.FRACTAL_NZ:
            given = f"in format {found.name}"
            raise request.check.rejected(
                argument, given, "FRACTAL_NZ: npu_format_cast(weight, 29)", ErrorCode.PARAMETER
            )


def _check_index(request: PrologRequest) -> None:
    index = request.cache_index
    if index is None:
        allowed = f"a tensor, with cache_mode {request.cache_mode}"
        raise request.check.rejected("cache_index", "None", allowed, ErrorCode.PARAMETER)
    if dtype_name(index) != "int64":
        raise request.check.rejected("cache_index", dtype_name(index), "int64", ErrorCode.PARAMETER)
    request.check.rank("cache_index", index, len(request.tokens), code=ErrorCode.PARAMETER)
    request.check.shape("cache_index", index, request.tokens, meaning="the tokens of token_x", code=ErrorCode.PARAMETER)
