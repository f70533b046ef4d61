"""The arguments of ``npu_sparse_attention_score``, and their checks.

Sources: the registration, host code and tiling of vllm-ascend (``csrc/attention/sparse_attention_score``). The host
code checks what is refused here; the kernels for A2 and A3 have their sizes built in, and nothing checks those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour

TILE = 128
"""Keys of a block, numbers of a head, and the most query heads of a key head: the sizes that the kernels have."""

MAX_BLOCKS = 16
"""The most blocks of a query that the kernels have room for."""

_CHECK = ArgumentChecks("npu_sparse_attention_score", default=ErrorCode.WRAPPER)
_QUANTISED = "float8_e4m3fn"
_MIXED_PRECISION = 4


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """The arguments, by the names of the schema; ``kv_input_layout`` is not looked at."""

    query: Tensor
    key: Tensor
    value: Tensor
    select_idx: Tensor
    block_table: Tensor
    select_num_idx: Tensor | None
    q_dequant_scale: Tensor | None
    k_dequant_scale: Tensor | None
    v_dequant_scale: Tensor | None
    actual_seq_lengths: Tensor | None
    actual_seq_lengths_kv: Tensor | None
    q_input_layout: str
    num_key_value_heads: int
    scale_value: float
    block_size: int
    top_k: int
    inner_precise: int

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _CHECK

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype of the output."""
        return torch.float16 if dtype_name(self.query) == _QUANTISED else self.query.dtype


def check(request: ScoreRequest) -> None:
    """Refuse what the host code refuses, then what the kernels do not have.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        8-bit floats, which Ascend 950 has.
    UndefinedBehaviour
        Sizes that the kernels for A2 and A3 do not have.
    """
    check_host(request)
    check = request.check
    if dtype_name(request.query) == _QUANTISED:
        raise check.not_simulated("query", _QUANTISED, "float16 and bfloat16; 8-bit floats are for Ascend 950")
    check.dtype("query", request.query, "float16", "bfloat16")
    for argument in ("key", "value"):
        check.same_dtype(argument, getattr(request, argument), "query", request.query)
    for argument in ("actual_seq_lengths", "actual_seq_lengths_kv"):
        check.dtype(argument, getattr(request, argument), "int32")
    group = request.query.shape[1] // request.key.shape[2]
    sizes = {
        f"a block of {request.block_size} keys": request.block_size != TILE,
        f"heads of {request.query.shape[2]}": request.query.shape[2] != TILE,
        f"{group} query heads of a key head": group > TILE,
        f"{request.select_idx.shape[2]} blocks of a query": request.select_idx.shape[2] > MAX_BLOCKS,
    }
    for found, beyond in sizes.items():
        if beyond:
            built_in = f"{TILE} keys, heads of {TILE}, up to {TILE} query heads, up to {MAX_BLOCKS} blocks"
            raise UndefinedBehaviour(f"{check.operator}: {found}; the kernels are made for {built_in}, unchecked")


def check_host(request: ScoreRequest) -> None:
    """Raise what the host code raises, with its words.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    words = "npu_sparse_attention_score only supports query TND layout"
    request.check.choice("q_input_layout", request.q_input_layout, ("TND",), words=words)
    if dtype_name(request.query) == _QUANTISED:
        _check_quantised(request)
    _check_ranks(request)
    _check_sizes(request)
    if request.select_num_idx is not None:
        _require("select_num_idx", request.select_num_idx, 2, "select_num_idx must be [KVHead, maxQSeqlen].")
        _require_int32("select_num_idx", request.select_num_idx)
    for argument in ("actual_seq_lengths", "actual_seq_lengths_kv"):
        if getattr(request, argument) is None:
            raise _refusal(argument, None, "a tensor", f"{argument} must be provided.")


def _check_quantised(request: ScoreRequest) -> None:
    for argument in ("key", "value"):
        given = dtype_name(getattr(request, argument))
        if given != _QUANTISED:
            raise _refusal(argument, given, _QUANTISED, f"{argument} dtype must be {_QUANTISED}")
    for argument in ("q_dequant_scale", "k_dequant_scale", "v_dequant_scale"):
        scale = getattr(request, argument)
        if scale is None:
            raise _refusal(argument, None, "float32 [...]", f"{argument} must be provided for {_QUANTISED} input.")
        if scale.dtype != torch.float32:
            raise _refusal(argument, dtype_name(scale), "float32", f"{argument} dtype must be float32.")
        _require(argument, scale, 4, f"{argument} must be a 4D tensor.")
    words = f"inner_precise must be 4 (LOW_HIGH_MIXED) for {_QUANTISED}"
    request.check.choice("inner_precise", request.inner_precise, (_MIXED_PRECISION,), words=words)


def _check_ranks(request: ScoreRequest) -> None:
    ranks = {
        "query": (3, "query only supports TND layout [T,N,D]"),
        "key": (4, "key only supports blocked KV layout [blockNum,blockSize,KVHead,D]"),
        "value": (4, "value only supports blocked KV layout [blockNum,blockSize,KVHead,D]"),
        "select_idx": (3, "select_idx must be [KVHead, maxQSeqlen, TopK]"),
        "block_table": (2, "block_table must be [batch, maxBlocksPerBatch]"),
    }
    for argument, (rank, words) in ranks.items():
        tensor = getattr(request, argument)
        _require(argument, tensor, rank, f"{words}, but got dim {tensor.dim()}")
        if argument in ("query", "key", "value"):
            request.check.not_empty(argument, tensor)
        else:
            _require_int32(argument, tensor)


def _check_sizes(request: ScoreRequest) -> None:
    query, caches, heads = request.query, (request.key, request.value), request.num_key_value_heads
    rules = (
        ("num_key_value_heads", heads > 0, "num_key_value_heads must be positive."),
        (
            "num_key_value_heads",
            all(cache.shape[2] == heads for cache in caches),
            "num_key_value_heads must match key/value KVHead dim.",
        ),
        ("select_idx", request.select_idx.shape[0] == heads, "select_idx dim0 must equal num_key_value_heads."),
        (
            "block_size",
            all(cache.shape[1] == request.block_size for cache in caches),
            "key/value blockSize dim must match block_size.",
        ),
        (
            "num_key_value_heads",
            heads > 0 and query.shape[1] % heads == 0,
            "query heads must be divisible by num_key_value_heads.",
        ),
        ("query", all(cache.shape[3] == query.shape[2] for cache in caches), "query/key/value D dim must be equal."),
        ("top_k", request.top_k > 0, "top_k must be positive."),
    )
    for argument, holds, words in rules:
        if not holds:
            given = getattr(request, argument)
            shape = f"of shape {list(given.shape)}" if isinstance(given, Tensor) else given
            raise _refusal(argument, shape, "sizes that agree", words)


def _require(argument: str, tensor: Tensor, rank: int, words: str) -> None:
    if tensor.dim() != rank:
        raise _refusal(argument, f"of rank {tensor.dim()}", f"rank {rank}", words)


def _require_int32(argument: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int32:
        raise _refusal(argument, dtype_name(tensor), "int32", f"{argument} dtype must be int32.")


def _refusal(argument: str, given: object, allowed: str, words: str) -> RuntimeError:
    return _CHECK.rejected(argument, given, allowed, words=words)
