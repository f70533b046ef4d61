"""What ``npu_mla_prolog`` refuses in its unquantised form, and what is not simulated.

DOC is the operators' documentation in torch_npu 2.13.0; NEWER is what the repositories of op-plugin and CANN say since
then, with more sizes and cache modes for version 3; META is the wheel's shape rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.mla.prolog_request import V1, PrologRequest, check_host
from npudiff.device.simulator.mla.prolog_sizes import PrologSizes, check_sizes
from npudiff.device.simulator.rotary.requirements import dtype_name, require_dtype, require_rank, require_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from npudiff.device.simulator.profiles import CannProfile

CACHE_MODES = {"PA_BSND": False, "PA_NZ": True}
"""Cache modes that are simulated, and whether their blocks are in NZ order."""

# NEWER has these for version 3.
_OTHER_CACHE_MODES = ("PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")

_BFLOAT16 = 15
_DTYPE_ARGUMENTS = ("token_x_dtype", "weight_dq_dtype", "weight_uq_qr_dtype", "weight_dkv_kr_dtype", "kv_cache_dtype")

# DOC: reserved, or without effect unless the cache is quantised per tile.
_WITHOUT_EFFECT = ("actual_seq_len", "tile_size")

_FRACTAL_WEIGHTS = ("weight_dq", "weight_uq_qr", "weight_dkv_kr")

# DOC of version 1: these must be None where weight_uq_qr is bfloat16.
_SCALES_OF_INT8_WEIGHTS = ("dequant_scale_w_uq_qr", "quant_scale_ckv", "quant_scale_ckr", "smooth_scales_cq")


@dataclass(frozen=True)
class _Mode:
    """Values of a mode beside 0: those for quantised calls, and those that only Ascend 950 has."""

    quantised: tuple[int, ...]
    of_950: tuple[int, ...] = ()


# DOC has the values of A2 and A3. META has weight_quant_mode 4 too, and does not say what it is.
_MODES: Mapping[str, _Mode] = {
    "weight_quant_mode": _Mode((1, 2, 4), (3, 5)),
    "kv_cache_quant_mode": _Mode((1, 2, 3)),
    "query_quant_mode": _Mode((1,)),
    "ckvkr_repo_mode": _Mode((1,)),
    "quant_scale_repo_mode": _Mode((1,)),
}


def check(request: PrologRequest, profile: CannProfile) -> PrologSizes:
    """Refuse what the operator refuses, then what the simulator cannot do.

    Returns
    -------
    PrologSizes
        The sizes of a call that may run.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        Quantisation, cache modes of newer versions, caches that are not contiguous.
    """
    check_host(request)
    _check_cache_mode(request)
    _check_modes(request)
    _check_dtypes(request)
    _check_scales(request)
    _check_formats(request, profile)
    sizes = check_sizes(request, profile, fractal=CACHE_MODES[request.cache_mode])
    _check_index(request)
    for argument, cache in (("kv_cache", request.kv_cache), ("kr_cache", request.kr_cache)):
        if not cache.is_contiguous():
            given = f"not contiguous, strides {cache.stride()}"
            raise request.not_simulated(argument, given, "contiguous caches")
    return sizes


def _check_cache_mode(request: PrologRequest) -> None:
    mode = request.cache_mode
    if request.is_v3 and mode in _OTHER_CACHE_MODES:
        raise request.not_simulated("cache_mode", repr(mode), ", ".join(CACHE_MODES))
    if mode not in CACHE_MODES:
        raise request.rejected("cache_mode", repr(mode), ", ".join(CACHE_MODES), ErrorCode.PARAMETER)


def _check_modes(request: PrologRequest) -> None:
    extras = dict(request.extras)
    for argument, mode in _MODES.items():
        given = extras.get(argument, 0)
        if given in mode.quantised:
            raise request.not_simulated(argument, given, "0, without quantisation")
        if given in mode.of_950:
            raise request.rejected(argument, f"{given}, which is for Ascend 950", "0, 1 or 2", ErrorCode.WRAPPER)
        if given != 0:
            allowed = f"0, {', '.join(map(str, mode.quantised))}"
            raise request.rejected(argument, given, allowed, ErrorCode.PARAMETER)


def _check_dtypes(request: PrologRequest) -> None:
    """Refuse all that is not bfloat16; int8 where DOC has it is quantisation."""
    quantised = ("weight_uq_qr",) if request.operator == V1 else ("token_x", *_FRACTAL_WEIGHTS)
    for argument in quantised:
        if getattr(request, argument).dtype == torch.int8:
            raise request.not_simulated(argument, "int8", "bfloat16, without quantisation")
    for argument in (
        "token_x",
        *_FRACTAL_WEIGHTS,
        "weight_uk",
        "rmsnorm_gamma_cq",
        "rmsnorm_gamma_ckv",
        "rope_sin",
        "rope_cos",
        "kv_cache",
        "kr_cache",
    ):
        require_dtype(request.operator, argument, getattr(request, argument), ("bfloat16",))
    for argument in _DTYPE_ARGUMENTS:
        given = dict(request.extras).get(argument, _BFLOAT16)
        if given != _BFLOAT16:
            raise request.not_simulated(argument, given, f"None or {_BFLOAT16}, bfloat16")


def _check_scales(request: PrologRequest) -> None:
    """Refuse scales, which belong to quantisation."""
    for argument, given in request.extras:
        if argument in (*_WITHOUT_EFFECT, *_MODES, *_DTYPE_ARGUMENTS):
            continue
        description = f"of shape {list(given.shape)}"
        if request.operator == V1 and argument in _SCALES_OF_INT8_WEIGHTS:
            raise request.rejected(argument, description, "None with bfloat16 weights", ErrorCode.PARAMETER)
        raise request.not_simulated(argument, description, "None, without quantisation")


def _check_formats(request: PrologRequest, profile: CannProfile) -> None:
    if profile.mla_prolog_weight_format == "any":
        return
    for argument in _FRACTAL_WEIGHTS:
        found = format_of(getattr(request, argument))
        if found is not Format.FRACTAL_NZ:
            given = f"in format {found.name}"
            raise request.rejected(argument, given, "FRACTAL_NZ: npu_format_cast(weight, 29)", ErrorCode.PARAMETER)


def _check_index(request: PrologRequest) -> None:
    index = request.cache_index
    if index is None:
        allowed = f"a tensor, with cache_mode {request.cache_mode}"
        raise request.rejected("cache_index", "None", allowed, ErrorCode.PARAMETER)
    if dtype_name(index) != "int64":
        raise request.rejected("cache_index", dtype_name(index), "int64", ErrorCode.PARAMETER)
    require_rank(request.operator, "cache_index", index, len(request.tokens))
    require_shape(request.operator, "cache_index", index, request.tokens, "the tokens of token_x")
