"""The arguments of attention over chosen keys, and their checks.

Sources: the documentation of both operators in op-plugin, its host code, torch_npu's META, and the tiling checks in
vllm-ascend's ``csrc/attention``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import CannProfile
from npudiff.device.simulator.sparse_attention.sequences import NO_BAND, Batch

LATENT, ROPE = 512, 64
"""Numbers of a key without and with position."""

_PACKED_KEY = LATENT + 2 * ROPE + 16
_CHECK = ArgumentChecks("npu_sparse_flash_attention", default=ErrorCode.TILING)
_SGL_CHECK = ArgumentChecks("sgl_sparse_flash_attention", default=ErrorCode.TILING)
_KV_QUANT_CHECK = ArgumentChecks("npu_kv_quant_sparse_flash_attention", default=ErrorCode.TILING)
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
_CHECKED_HEADS = (*range(1, 65), 128)
_ABSORBED = 2
_PER_TILE = 2
_COMBINED = 1


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The arguments of both operators, by the names of their schemas."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    sparse_indices: Tensor
    scale_value: float
    block_table: Tensor | None = None
    actual_seq_lengths_query: Tensor | None = None
    actual_seq_lengths_kv: Tensor | None = None
    sparse_block_size: int = 1
    layout_query: str = "BSND"
    layout_kv: str = "BSND"
    sparse_mode: int = 3
    pre_tokens: int = NO_BAND
    next_tokens: int = NO_BAND
    attention_mode: int = 0

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        raise NotImplementedError

    @property
    def batch(self) -> Batch:
        """Where the sequences are."""
        lengths = self.actual_seq_lengths_query, self.actual_seq_lengths_kv
        layouts = self.layout_query, self.layout_kv
        return Batch(self.check, self.query, self.key, *layouts, *lengths, self.block_table, "kv")


@dataclass(frozen=True, kw_only=True)
class AttentionRequest(Selection):
    """The arguments of ``npu_sparse_flash_attention``."""

    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    return_softmax_lse: bool = False
    sinks: Tensor | None = None
    lse_in_pages: ClassVar[bool] = False

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _CHECK

    @property
    def key_heads(self) -> int:
        """The number of key heads; with pages and [T1, ...] torch_npu takes the block size for it."""
        return self.key.shape[self.query.dim() - 2]


@dataclass(frozen=True, kw_only=True)
class SglAttentionRequest(AttentionRequest):
    """The arguments of sgl-kernel-npu's ``sgl_sparse_flash_attention``.

    It is the same kernel; its host code makes tensors contiguous, and gives maxima and sums with pages too.
    """

    attention_mode: int = 2
    lse_in_pages: ClassVar[bool] = True

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _SGL_CHECK

    @property
    def key_heads(self) -> int:
        """The number of key heads, in any layout."""
        return self.key.shape[-2]

    def contiguous(self) -> SglAttentionRequest:
        """Return the request with the copies that the host code makes."""
        arguments: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        copies = {name: value.contiguous() for name, value in arguments.items() if isinstance(value, Tensor)}
        return SglAttentionRequest(**(arguments | copies))


@dataclass(frozen=True, kw_only=True)
class KvQuantRequest(Selection):
    """The arguments of ``npu_kv_quant_sparse_flash_attention``."""

    key_quant_mode: int
    value_quant_mode: int
    key_dequant_scale: Tensor | None = None
    value_dequant_scale: Tensor | None = None
    quant_scale_repo_mode: int = 1
    tile_size: int = 128
    rope_head_dim: int = 64
    key_dtype: int | None = None
    value_dtype: int | None = None

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _KV_QUANT_CHECK


def given(tensor: Tensor | None) -> Tensor:
    """Return an optional tensor that a check has required."""
    if tensor is None:
        raise TypeError("a tensor that was checked is missing")
    return tensor


def check_host(request: Selection) -> None:
    """Raise what the host code and torch_npu's META raise.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    request.batch.check_host()
    if request.value is None:
        raise request.check.rejected("value", None, "a tensor", ErrorCode.WRAPPER)
    for argument in ("value", "sparse_indices"):
        request.check.not_empty(argument, getattr(request, argument), ErrorCode.WRAPPER)


def check_attention(request: AttentionRequest, profile: CannProfile) -> None:
    """Refuse arguments that ``npu_sparse_flash_attention`` does not have.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        sinks.
    """
    check, query, key = request.check, request.query, request.key
    if request.sinks is not None:
        raise check.not_simulated("sinks", "given", "None; sinks are for Ascend 950")
    check.dtype("query", query, "float16", "bfloat16")
    check.same_dtype("key", key, "query", query)
    documented = profile.sparse_attention_heads == "documented"
    _check_selection(request, profile, _POWERS if documented else _CHECKED_HEADS, LATENT, largest_block=128)
    check.shape("key", key, (*key.shape[:-1], LATENT), meaning="[..., 1, 512]")
    parts = {
        "value": (request.value, key.shape),
        "query_rope": (request.query_rope, (*query.shape[:-1], ROPE)),
        "key_rope": (request.key_rope, (*key.shape[:-1], ROPE)),
    }
    for argument, (tensor, shape) in parts.items():
        if tensor is None:
            raise check.rejected(argument, None, "a tensor in attention_mode 2")
        check.same_dtype(argument, tensor, "query", query)
        check.shape(argument, tensor, tuple(shape), meaning="as its relative")
        strict = profile.non_contiguous == "rejected"
        if strict or (profile.strided_keys == "rejected" and argument != "query_rope"):
            check.contiguous(**{argument: tensor}, code=ErrorCode.PARAMETER)
    if request.return_softmax_lse and request.batch.paged and not request.lse_in_pages:
        raise check.rejected("return_softmax_lse", True, "False with PA_BSND")


def check_kv_quant(request: KvQuantRequest, profile: CannProfile) -> None:
    """Refuse arguments that ``npu_kv_quant_sparse_flash_attention`` does not have.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        A type of Ascend 950.
    """
    check, key = request.check, request.key
    for argument in ("key_dtype", "value_dtype"):
        if (number := getattr(request, argument)) is not None:
            raise check.not_simulated(argument, number, "None; others are for Ascend 950")
    for argument in ("key_dequant_scale", "value_dequant_scale"):
        if getattr(request, argument) is not None:
            raise check.rejected(argument, "given", "None: scales are in the keys")
    options = {
        "key_quant_mode": _PER_TILE,
        "value_quant_mode": _PER_TILE,
        "quant_scale_repo_mode": _COMBINED,
        "tile_size": 128,
        "rope_head_dim": ROPE,
    }
    for argument, value in options.items():
        check.choice(argument, getattr(request, argument), (value,))
    check.dtype("query", request.query, "float16", "bfloat16")
    check.dtype("key", key, "int8")
    check.dtype("value", given(request.value), "int8")
    _check_selection(request, profile, _POWERS, LATENT + ROPE, largest_block=16)
    check.shape("key", key, (*key.shape[:-1], _PACKED_KEY), meaning="[..., 1, 656]")
    check.shape("value", given(request.value), (*key.shape[:-1], -1), meaning="as key but for its last axis")


def _check_selection(
    request: Selection, profile: CannProfile, heads: tuple[int, ...], dim: int, *, largest_block: int
) -> None:
    check, batch, size = request.check, request.batch, request.sparse_block_size
    check.choice("attention_mode", request.attention_mode, (_ABSORBED,), words="attentionMode only support 2.")
    batch.check_layouts(request.sparse_mode, request.pre_tokens, request.next_tokens, profile)
    check.choice("query", request.query.shape[-2], heads)
    check.shape("query", request.query, (*request.query.shape[:-1], dim), meaning="[..., N, D]")
    check.dtype("sparse_indices", request.sparse_indices, "int32")
    check.shape("sparse_indices", request.sparse_indices, (*batch.row_shape, 1, -1), meaning="[..., 1, K]")
    check.choice("sparse_block_size", size, [power for power in _POWERS if power <= largest_block])
    if batch.paged and request.key.shape[1] % size:
        raise check.rejected("sparse_block_size", size, f"a divisor of the block size, {request.key.shape[1]}")
    if profile.non_contiguous == "rejected":
        check.contiguous(sparse_indices=request.sparse_indices, code=ErrorCode.PARAMETER)
