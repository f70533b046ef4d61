"""The arguments of sgl-kernel-npu's ``mla_preprocess``, and their checks.

Sources: sgl-kernel-npu's registration and README (SGL), its caller in sglang 0.5.23 (``mla_preprocess.py``), and the
documentation of ``torch_npu.atb.npu_mla_preprocess`` (ATB), the operator from which it comes. The kernel has its sizes
built in, and no source shows a check: another size or dtype is undefined behaviour, not a rejection.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.mla.stages import TILE_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from npudiff.device.simulator.profiles import CannProfile

NAME = "mla_preprocess"

INT8_CACHE = "int8_nzcache"

CACHE_MODES = {"krope_ctkv": False, INT8_CACHE: True, "nzcache": True}
"""Cache modes, and whether their blocks are in NZ order. The first is the default, the second has latents of int8."""

_MAX_TOKENS = 1024
_NZ_BLOCK_SIZE = 128
_BLOCK_SIZES = (*range(1, 129), 256)
_NZ_BYTES = 32
_NZ_COLUMNS = 16


@dataclass(frozen=True)
class PreprocessRequest:
    """One call, with the names of the schema but ``hidden_state``; kv_cache and kv_cache_rope are not read."""

    hidden_state: Tensor
    wdqkv: Tensor
    descale0: Tensor
    gamma1: Tensor
    beta1: Tensor
    wuq: Tensor
    descale1: Tensor
    gamma2: Tensor
    cos: Tensor
    sin: Tensor
    wuk: Tensor
    slotmapping: Tensor
    quant_scale0: Tensor
    quant_offset0: Tensor
    bias0: Tensor
    quant_scale1: Tensor
    quant_offset1: Tensor
    bias1: Tensor
    q_out0: Tensor
    kv_cache_out0: Tensor
    q_out1: Tensor
    kv_cache_out1: Tensor
    ctkv_scale: Tensor | None = None
    q_nope_scale: Tensor | None = None
    """What makes int8 of latents, by division, and of the heads of q_out0, by multiplication."""
    cache_mode: str = "krope_ctkv"
    quant_mode: str = "per_token_quant_symm"


@dataclass(frozen=True)
class PreprocessSizes:
    """The sizes of a call; five of them are built into the kernel."""

    hidden: int
    query_rank: int
    latent: int
    rope: int
    nope: int
    """Elements of a hidden state, of the query before it is projected up, of the latent, and of a head's parts with and
    without position."""
    heads: int
    """Query heads."""
    blocks: int
    block_size: int
    """Of the caches."""


_BUILT_IN = {"hidden": (7168, 6144), "query_rank": (1536,), "latent": (512,), "rope": (64,), "nope": (128,)}
"""SGL's host code reads the first from the tensor, and its test has both sizes of it."""


def normalise(hiddenState: Tensor, **arguments: Any) -> PreprocessRequest:  # noqa: ANN401, N803 - those of the schema
    """Name the arguments of a call; nothing is checked.

    gamma0 and beta0 are dropped: the kernel's first stage only quantises, so hidden states have to be normalised
    before (SGL).
    """
    given = {name: value for name, value in arguments.items() if name in _NAMES and value is not None}
    return PreprocessRequest(hiddenState, **given)


_NAMES = frozenset(field.name for field in fields(PreprocessRequest))
_SCALES_OF_INT8 = ("ctkv_scale", "q_nope_scale")


def check(request: PreprocessRequest, profile: CannProfile) -> PreprocessSizes:
    """Refuse what the operator refuses, then what the simulator cannot do; report what has no defined result.

    Raises
    ------
    OperatorRejected
        A mode that does not exist, more than 1024 tokens, or a block size that does not exist.
    NotSimulated
        Other ways of quantising.
    UndefinedBehaviour
        A shape or dtype that the kernel does not expect.
    """
    _check_modes(request)
    sizes = _measure(request)
    tokens = len(request.hidden_state)
    if not 1 <= tokens <= _MAX_TOKENS:
        raise _CHECK.rejected("hiddenState", f"of {tokens} tokens", f"1 to {_MAX_TOKENS}")
    int8 = request.cache_mode == INT8_CACHE
    _check_sizes(sizes, profile, fractal=CACHE_MODES[request.cache_mode], int8=int8)
    _check_tensors(request, sizes, tokens)
    _check_gaps(request)
    return sizes


_CHECK = ArgumentChecks(NAME, default=ErrorCode.TILING)


def _check_modes(request: PreprocessRequest) -> None:
    if request.cache_mode not in CACHE_MODES:
        raise _CHECK.rejected("cache_mode", repr(request.cache_mode), ", ".join(CACHE_MODES))
    if request.quant_mode == "per_token_quant_symm":
        given = "'per_token_quant_symm', the default"
        raise _CHECK.not_simulated("quant_mode", given, "per_tensor_quant_asymm")
    if request.quant_mode != "per_tensor_quant_asymm":
        allowed = "per_token_quant_symm, per_tensor_quant_asymm"
        raise _CHECK.rejected("quant_mode", repr(request.quant_mode), allowed)


def _measure(request: PreprocessRequest) -> PreprocessSizes:
    """Read the sizes of the tensors that say them, whose ranks must be right for it."""
    ranks = {"hidden_state": 2, "gamma1": 1, "gamma2": 1, "cos": 2, "wuk": 3, "kv_cache_out0": 4, "kv_cache_out1": 4}
    for argument, rank in ranks.items():
        tensor = getattr(request, argument)
        if tensor.dim() != rank:
            raise _unexpected(argument, f"of rank {tensor.dim()}", f"rank {rank}")
    cache, latent = request.kv_cache_out0, len(request.gamma2)
    # vllm-ascend declares caches in NZ order with the axes of ND ones; the bytes are what counts.
    in_tiles = CACHE_MODES[request.cache_mode] and cache.shape[-1] != latent
    return PreprocessSizes(
        hidden=request.hidden_state.shape[1],
        query_rank=len(request.gamma1),
        latent=latent,
        rope=request.cos.shape[1],
        nope=request.wuk.shape[1],
        heads=request.wuk.shape[0],
        blocks=cache.shape[0],
        block_size=cache.shape[2 if in_tiles else 1],
    )


def _check_sizes(sizes: PreprocessSizes, profile: CannProfile, *, fractal: bool, int8: bool) -> None:
    if profile.mla_sizes != "free":
        for name, allowed_sizes in _BUILT_IN.items():
            if getattr(sizes, name) not in allowed_sizes:
                built_in = " or ".join(map(str, allowed_sizes))
                message = f"{name.replace('_', ' ')} is {getattr(sizes, name)}, and the kernel has {built_in} built in"
                raise UndefinedBehaviour(f"{NAME}: {message}")
        allowed = (_NZ_BLOCK_SIZE,) if fractal else _BLOCK_SIZES
        if sizes.block_size not in allowed:
            meaning = (
                f"{_NZ_BLOCK_SIZE} with cache_mode {INT8_CACHE if int8 else 'nzcache'}"
                if fractal
                else "up to 128, or 256"
            )
            raise _CHECK.rejected("kv_cache_out0", f"of block size {sizes.block_size}", meaning)
        return
    units = {"hidden": TILE_COLUMNS, "query_rank": TILE_COLUMNS, "rope": 2, "latent": 1, "nope": 1, "heads": 1}
    units |= {"rope": _NZ_COLUMNS, "latent": 2 * _NZ_COLUMNS if int8 else _NZ_COLUMNS} if fractal else {}
    for name, unit in units.items():
        size = getattr(sizes, name)
        if size < 1 or size % unit:
            raise UndefinedBehaviour(f"{NAME}: {name.replace('_', ' ')} is {size}, not a multiple of {unit}")


def _check_tensors(request: PreprocessRequest, sizes: PreprocessSizes, tokens: int) -> None:
    down, up = sizes.latent + sizes.rope + sizes.query_rank, sizes.heads * (sizes.nope + sizes.rope)
    dtype = "float16" if request.hidden_state.dtype == torch.float16 else "bfloat16"
    descale = "int64" if dtype == "float16" else "float32"  # words of the matrix unit, which float16 has scales in
    stored = "int8" if request.cache_mode == INT8_CACHE else dtype
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "hidden_state": (dtype, (tokens, sizes.hidden)),
        "wdqkv": ("int8", (1, sizes.hidden // TILE_COLUMNS, down, TILE_COLUMNS)),
        "descale0": (descale, (down,)),
        "bias0": ("int32", (down,)),
        "gamma1": (dtype, (sizes.query_rank,)),
        "wuq": ("int8", (1, sizes.query_rank // TILE_COLUMNS, up, TILE_COLUMNS)),
        "descale1": (descale, (up,)),
        "bias1": ("int32", (up,)),
        "gamma2": (dtype, (sizes.latent,)),
        "cos": (dtype, (tokens, sizes.rope)),
        "sin": (dtype, (tokens, sizes.rope)),
        "wuk": (dtype, (sizes.heads, sizes.nope, sizes.latent)),
        "slotmapping": ("int32", (tokens,)),
        "q_out0": (stored, (tokens, sizes.heads, sizes.latent)),
        "q_out1": (dtype, (tokens, sizes.heads, sizes.rope)),
    }
    for number in "01":
        expected |= {f"quant_scale{number}": (dtype, (1,)), f"quant_offset{number}": ("int8", (1,))}
    if request.cache_mode == INT8_CACHE:
        expected |= {"ctkv_scale": (dtype, (1,)), "q_nope_scale": (dtype, (sizes.heads,))}
    for argument, (wanted, shape) in expected.items():
        _expect(argument, getattr(request, argument), wanted, [shape])
    for argument, wanted, dim in (("kv_cache_out0", stored, sizes.latent), ("kv_cache_out1", dtype, sizes.rope)):
        shapes = [(sizes.blocks, sizes.block_size, 1, dim)]
        if CACHE_MODES[request.cache_mode]:
            width = _NZ_BYTES if wanted == "int8" else _NZ_COLUMNS
            shapes = [(sizes.blocks, dim // width, sizes.block_size, width), *shapes]
        _expect(argument, getattr(request, argument), wanted, shapes)
    # sglang gives zeros of the hidden size where a model has no bias; the kernel reads what it needs.
    beta = request.beta1
    if dtype_name(beta) != dtype or beta.dim() != 1 or len(beta) < sizes.query_rank:
        given = f"{dtype_name(beta)} {list(beta.shape)}"
        raise _unexpected("beta1", given, f"{dtype} [{sizes.query_rank}], or longer")


def _expect(argument: str, tensor: Tensor | None, dtype: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if tensor is None:
        raise _unexpected(argument, "not given", dtype)
    if dtype_name(tensor) != dtype or tuple(tensor.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise _unexpected(argument, f"{dtype_name(tensor)} {list(tensor.shape)}", f"{dtype} {wanted}")


def _unexpected(argument: str, given: str, wanted: str) -> UndefinedBehaviour:
    name = "hiddenState" if argument == "hidden_state" else argument
    return UndefinedBehaviour(f"{NAME}: {name} is {given}; the kernel reads it as {wanted}, whatever it is")


def _check_gaps(request: PreprocessRequest) -> None:
    caches = ("kv_cache_out0", "kv_cache_out1")
    # SGL: gaps between blocks work in some modes.
    _CHECK.simulated_contiguous("contiguous caches", **{name: getattr(request, name) for name in caches})
    others = (_NAMES - {"cache_mode", "quant_mode", *_SCALES_OF_INT8, *caches}) - {"hidden_state"}
    _CHECK.addressed_as_contiguous(
        hiddenState=request.hidden_state, **{name: getattr(request, name) for name in others}
    )
