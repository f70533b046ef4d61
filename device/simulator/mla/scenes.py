"""What a call of ``npu_mla_prolog`` quantises: which tensors are int8, which scales belong to it, how a cache row lies.

Version 3 says it in modes; versions 1 and 2 show it by dtypes. A scale that does not belong to a scene is refused, as
CANN's tiling does (``mla_prolog_tiling_check.cpp``); smooth_scales_cq alone is optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from npudiff.device.simulator.argument_checks import dtype_name
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from npudiff.device.simulator.mla.prolog_request import PrologRequest, PrologSizes

Cache = Literal["none", "tensor", "channel", "tile"]

TILE = 128
"""Elements of the latent that share a scale in the cache, by the documentation."""

_CACHES: tuple[Cache, ...] = ("none", "tensor", "channel", "tile")
_SCALES = (
    "dequant_scale_x",
    "dequant_scale_w_dq",
    "dequant_scale_w_uq_qr",
    "dequant_scale_w_dkv_kr",
    "quant_scale_ckv",
    "quant_scale_ckr",
    "smooth_scales_cq",
    "k_nope_clip_alpha",
)
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Scene:
    """What is quantised."""

    query: bool
    """weight_uq_qr is int8, and the query latent becomes int8 per token."""
    tokens: bool
    """token_x, weight_dq and weight_dkv_kr are int8."""
    cache: Cache
    """Not at all; with one scale, which makes the query int8 per token and head; per channel; per tile of a token."""

    @property
    def query_is_int8(self) -> bool:
        """Whether the query comes out as int8, with scales."""
        return self.cache == "tensor"

    def dtypes(self) -> Mapping[str, str]:
        """Return the dtype of each tensor that may be int8."""
        names = {
            "token_x": self.tokens,
            "weight_dq": self.tokens,
            "weight_uq_qr": self.query,
            "weight_dkv_kr": self.tokens,
            "kv_cache": self.cache != "none",
            "kr_cache": self.cache == "channel",
        }
        return {name: "int8" if quantised else "bfloat16" for name, quantised in names.items()}

    def scales(self, request: PrologRequest, sizes: PrologSizes) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the scales that a call has to give, or may: smooth_scales_cq."""
        up, down = sizes.heads * (sizes.nope + sizes.rope), sizes.latent + sizes.rope
        found: dict[str, tuple[int, ...]] = {}
        if self.tokens:
            found["dequant_scale_x"] = (request.token_x.shape[:-1].numel(), 1)
            found["dequant_scale_w_dq"] = (1, sizes.query_rank)
            found["dequant_scale_w_dkv_kr"] = (1, down)
        if self.query:
            found["dequant_scale_w_uq_qr"] = (1, up)
            found["smooth_scales_cq"] = (1, sizes.query_rank)
        if self.cache == "tensor":
            found["quant_scale_ckv"] = (1,) if request.is_v3 else (1, sizes.latent)
        elif self.cache == "channel":
            found |= {"quant_scale_ckv": (1, sizes.latent), "quant_scale_ckr": (1, sizes.rope)}
        elif self.cache == "tile":
            found["k_nope_clip_alpha"] = (1,)
        return found

    def row_bytes(self, request: PrologRequest) -> int:
        """Return how many elements a row of kv_cache has: the latent; per tile, rope key and scales behind it."""
        latent, rope = request.weight_uk.shape[2], request.rope_sin.shape[-1]
        if self.cache != "tile":
            return latent
        return latent + 2 * rope + _FLOAT_BYTES * (latent // request.tile_size)


def scene_of(request: PrologRequest) -> Scene:
    """Return what a call quantises.

    Raises
    ------
    OperatorRejected
        Modes that do not go together, or that Ascend 950 has.
    """
    if not request.is_v3:
        query = request.weight_uq_qr.dtype == torch.int8
        tokens = request.token_x.dtype == torch.int8 and request.takes_int8_tokens
        cache: Cache = "none" if request.kv_cache.dtype != torch.int8 else "tensor" if tokens else "channel"
        if cache != "none" and not (tokens or query):
            raise request.check.rejected("kv_cache", "int8", "bfloat16 with bfloat16 weights", ErrorCode.PARAMETER)
        return Scene(query or tokens, tokens, cache)
    weights = _mode(request, "weight_quant_mode", (0, 1, 2), of_950=(3, 4, 5))
    caches = {0: (0,), 1: (0, 2, 3), 2: (0, 1, 3)}[weights]
    mode = _mode(request, "kv_cache_quant_mode", caches, goes_with=f" with weight_quant_mode {weights}")
    cache = _CACHES[mode]
    _mode(request, "query_quant_mode", (int(cache == "tensor"),), goes_with=f" with kv_cache_quant_mode {mode}")
    for argument in ("ckvkr_repo_mode", "quant_scale_repo_mode"):
        _mode(request, argument, (int(cache == "tile"),), goes_with=f" with kv_cache_quant_mode {mode}")
    return Scene(weights > 0, weights > 1, cache)


def _mode(
    request: PrologRequest,
    argument: str,
    allowed: tuple[int, ...],
    *,
    of_950: tuple[int, ...] = (),
    goes_with: str = "",
) -> int:
    given = int(dict(request.extras).get(argument, 0))
    listed = " or ".join(map(str, allowed)) + goes_with
    if given in of_950:
        raise request.check.rejected(argument, f"{given}, which is for Ascend 950", listed, ErrorCode.WRAPPER)
    if given not in allowed:
        raise request.check.rejected(argument, given, listed, ErrorCode.PARAMETER)
    return given


def check_dtypes(request: PrologRequest, scene: Scene) -> None:
    """Refuse dtypes that do not belong to a scene.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    for argument, name in scene.dtypes().items():
        request.check.dtype(argument, getattr(request, argument), name)
    for argument in ("weight_uk", "rmsnorm_gamma_cq", "rmsnorm_gamma_ckv", "rope_sin", "rope_cos"):
        request.check.dtype(argument, getattr(request, argument), "bfloat16")


def check_scales(request: PrologRequest, scene: Scene, sizes: PrologSizes) -> None:
    """Refuse scales that are missing, that do not belong to a scene, or whose shape or dtype is another.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    wanted = scene.scales(request, sizes)
    for argument in _SCALES:
        given: Tensor | None = dict(request.extras).get(argument)
        if given is None:
            if argument in wanted and argument != "smooth_scales_cq":
                allowed = f"float32 {list(wanted[argument])}"
                raise request.check.rejected(argument, "None", allowed, ErrorCode.PARAMETER)
            continue
        if argument not in wanted:
            described = f"{dtype_name(given)} {list(given.shape)}"
            raise request.check.rejected(argument, described, "None with what is quantised", ErrorCode.PARAMETER)
        request.check.dtype(argument, given, "float32")
        request.check.shape(
            argument, given, wanted[argument], meaning="one number or one per column", code=ErrorCode.PARAMETER
        )
    if scene.cache == "tile":
        request.check.choice("tile_size", request.tile_size, _tiles(sizes), ErrorCode.PARAMETER)
        request.check.choice("cache_mode", request.cache_mode, ("PA_BSND",))


def _tiles(sizes: PrologSizes) -> tuple[int, ...]:
    """Return the sizes of a tile: that of the documentation, or of a latent that is smaller, its halves."""
    return (TILE,) if sizes.latent % TILE == 0 else (sizes.latent, sizes.latent // 2)
