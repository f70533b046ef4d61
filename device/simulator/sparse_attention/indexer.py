"""``npu_lightning_indexer`` and ``npu_quant_lightning_indexer``: the keys that a query should attend to.

The score of a key is the sum over heads of ``weight * relu(query . key)``. Each row of the output has the positions of
the best visible keys, best first, and -1 behind the last. Sources: the documentation of both in op-plugin; the host
checks and kernels for A2 and A3 in vllm-ascend (``csrc/attention/lightning_indexer`` and ``lightning_indexer_quant``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.sparse_attention.rounding import half_away
from npudiff.device.simulator.sparse_attention.sequences import NO_BAND, Batch

_CHECK = ArgumentChecks("npu_lightning_indexer", default=ErrorCode.TILING)
_QUANT_CHECK = ArgumentChecks("npu_quant_lightning_indexer", default=ErrorCode.TILING)

_MAX_HEADS = 64
_DIM = 128
_MAX_COUNT = 8192
_MAX_QUANT_COUNT = 2048
_COUNT_STEP = 1024
_HEAD_GROUP = 16
_MAX_SCORES = 2**23
_PER_TOKEN_HEAD = 0
_PRODUCT_UNIT = 2.0**-10


@dataclass(frozen=True)
class IndexerRequest:
    """The arguments of ``npu_lightning_indexer``, by the names of its schema."""

    query: Tensor
    key: Tensor
    weights: Tensor
    actual_seq_lengths_query: Tensor | None = None
    actual_seq_lengths_key: Tensor | None = None
    block_table: Tensor | None = None
    layout_query: str = "BSND"
    layout_key: str = "BSND"
    sparse_count: int = 2048
    sparse_mode: int = 3
    pre_tokens: int = NO_BAND
    next_tokens: int = NO_BAND
    return_value: bool = False

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _CHECK

    @property
    def batch(self) -> Batch:
        """Where the sequences are."""
        lengths = self.actual_seq_lengths_query, self.actual_seq_lengths_key
        layouts = self.layout_query, self.layout_key
        return Batch(self.check, self.query, self.key, *layouts, *lengths, self.block_table, "key")


@dataclass(frozen=True, kw_only=True)
class QuantIndexerRequest(IndexerRequest):
    """The arguments of ``npu_quant_lightning_indexer``, by the names of its schema."""

    query_dequant_scale: Tensor
    key_dequant_scale: Tensor
    query_quant_mode: int
    key_quant_mode: int
    query_dtype: int | None = None
    key_dtype: int | None = None

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator."""
        return _QUANT_CHECK


def lightning_indexer_meta(request: IndexerRequest) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of ``npu_lightning_indexer``."""
    shape = _output_shape(request)
    indices = request.query.new_empty(shape, dtype=torch.int32)
    return indices, request.query.new_empty(shape if request.return_value else (0,))


def quant_lightning_indexer_meta(request: QuantIndexerRequest) -> Tensor:
    """Allocate the output of ``npu_quant_lightning_indexer``."""
    return request.query.new_empty(_output_shape(request), dtype=torch.int32)


def _output_shape(request: IndexerRequest) -> tuple[int, ...]:
    batch = request.batch
    batch.check_host()
    if request.sparse_count <= 0:
        raise request.check.rejected("sparse_count", request.sparse_count, "1 or more", ErrorCode.WRAPPER)
    return (*batch.row_shape, request.key.shape[1 if request.layout_key == "TND" else 2], request.sparse_count)


def lightning_indexer(request: IndexerRequest) -> tuple[Tensor, Tensor]:
    """Return the positions of the best keys of each query, and their scores if asked for.

    Parameters
    ----------
    request : IndexerRequest
        query [B, S1, N, 128] or [T1, N, 128] and key, both float16 or bfloat16, N up to 64; weights [..., N] in their
        dtype or float32; sparse_count 1 to 2048, or a multiple of 1024 up to 8192.

    Returns
    -------
    sparse_indices : Tensor
        int32 [..., 1, sparse_count]: best first, then -1; -1 in rows without keys and behind a sequence of [B, S1].
        Behind the last sequence of [T1] nothing is written.
    sparse_values : Tensor
        The scores in the dtype of query, -inf for -1; shape [0] unless asked for.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above, or those of layouts and lengths are not.
    DeviceFault
        A length or a block id points outside.
    """
    shape = _output_shape(request)
    _check(request)

    def score(queries: Tensor, rows: slice, addresses: Tensor) -> Tensor:
        weights = request.weights.reshape(-1, request.weights.shape[-1])[rows].float()
        keys = request.key.reshape(-1, _DIM)[addresses].float()
        return _sum_over_heads(torch.matmul(queries.transpose(0, 1), keys.T).relu_().mul_(weights.T.unsqueeze(-1)))

    return _ranked(request, shape, score)


def quant_lightning_indexer(request: QuantIndexerRequest) -> Tensor:
    """Return the positions of the best keys of each query.

    Parameters
    ----------
    request : QuantIndexerRequest
        As for ``npu_lightning_indexer``, with query and key of int8; weights and query_dequant_scale float16 [..., N];
        key_dequant_scale float16, the shape of key without its last axis; sparse_count 1 to 2048.

    Returns
    -------
    Tensor
        int32 [..., 1, sparse_count], as that of ``npu_lightning_indexer``.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above, or those of layouts and lengths are not.
    NotSimulated
        hifloat8 or an 8-bit float, which Ascend 950 has.
    DeviceFault
        A length or a block id points outside.
    """
    shape = _output_shape(request)
    _check_quantised(request)
    half = active_profile().quant_indexer_products == "float16"
    factors = request.weights.reshape(-1, request.weights.shape[-1]).float()
    factors = factors * request.query_dequant_scale.reshape(factors.shape).float()
    factors = factors.half().float() if half else factors

    def score(queries: Tensor, rows: slice, addresses: Tensor) -> Tensor:
        # Sums of 128 products of int8 are exact in float32.
        keys = request.key.reshape(-1, _DIM)[addresses].float()
        products = torch.matmul(queries.transpose(0, 1), keys.T).relu_().mul_(_PRODUCT_UNIT)
        products = products.half().float() if half else products
        scales = request.key_dequant_scale.reshape(-1)[addresses].float()
        return _sum_over_heads(products.mul_(factors[rows].T.unsqueeze(-1))).mul_(scales)

    return _ranked(request, shape, score)[0]


_Score = Callable[[Tensor, slice, Tensor], Tensor]
"""From float32 queries [rows, N, D], their place among all rows and the addresses of keys to [rows, keys]."""


def _sum_over_heads(terms: Tensor) -> Tensor:
    """Sum float32 [N, rows, keys] over heads as the kernel does: by groups of 16, then by halves."""
    total = terms[:_HEAD_GROUP]
    for start in range(_HEAD_GROUP, len(terms), _HEAD_GROUP):
        part = terms[start : start + _HEAD_GROUP]
        total[: len(part)] += part
    while len(total) > 1:
        kept = (len(total) + 1) // 2
        total[: len(total) - kept] += total[kept:]
        total = total[:kept]
    return total[0]


def _ranked(request: IndexerRequest, shape: tuple[int, ...], score: _Score) -> tuple[Tensor, Tensor]:
    """Return int32 positions of all rows and, where they are asked for, scores in the dtype of the query."""
    batch, count, dtype = request.batch, request.sparse_count, request.query.dtype
    flat = (math.prod(shape[:-2]), count)
    packed = batch.packed
    indices = unwritten(flat, torch.int32) if packed else torch.full(flat, -1, dtype=torch.int32)
    kept = flat if request.return_value else (0,)
    values = unwritten(kept, dtype) if packed else torch.full(kept, -torch.inf).to(dtype)
    heads = request.query.shape[-2]
    queries = request.query.reshape(-1, heads, request.query.shape[-1])
    for sequence in batch.sequences():
        visible = sequence.visible(request.sparse_mode)
        # Keys that no row sees are not read.
        keys = int(visible.max()) if len(visible) else 0
        addresses = batch.addresses(sequence, torch.arange(keys))
        step = max(1, _MAX_SCORES // max(1, heads * keys))
        for start in range(0, len(visible), step):
            seen = visible[start : start + step]
            rows = slice(sequence.rows.start + start, sequence.rows.start + start + len(seen))
            scores = score(queries[rows].float(), rows, addresses)
            indices[rows], best = _best(scores, seen, count)
            if request.return_value:
                values[rows] = half_away(best, dtype)
    return indices.view(shape), values.view(shape) if request.return_value else values


def _best(scores: Tensor, visible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return int32 positions and scores [rows, count] of the best of the first ``visible`` keys of each row."""
    keys = scores.shape[1]
    positions = torch.arange(keys)
    if active_profile().indexer_ties == "higher_position_first":
        positions = positions.flip(0)
    # A visible key stands before hidden ones even if its score is -inf.
    ranked = scores[:, positions].clamp(min=torch.finfo(torch.float32).min)
    ranked = ranked.masked_fill(positions >= visible.unsqueeze(1), -torch.inf)
    order = positions[ranked.sort(dim=1, descending=True, stable=True).indices[:, :count]]
    beyond = torch.arange(order.shape[1]) >= visible.unsqueeze(1)
    best = scores.gather(1, order).masked_fill(beyond, -torch.inf)
    missing = (0, count - order.shape[1])
    pad = torch.nn.functional.pad
    return pad(order.masked_fill(beyond, -1).int(), missing, value=-1), pad(best, missing, value=-torch.inf)


def _check(request: IndexerRequest) -> None:
    check = request.check
    check.dtype("query", request.query, "float16", "bfloat16")
    check.same_dtype("key", request.key, "query", request.query)
    if request.weights.dtype != torch.float32:
        check.same_dtype("weights", request.weights, "query", request.query)
    _check_shapes(request)
    count = request.sparse_count
    if count > _MAX_COUNT or (count > _MAX_QUANT_COUNT and count % _COUNT_STEP):
        raise check.rejected("sparse_count", count, "1 to 2048, or a multiple of 1024 up to 8192")
    if request.return_value and request.batch.paged:
        raise check.rejected("return_value", True, "False with PA_BSND")


def _check_shapes(request: IndexerRequest) -> None:
    check, profile = request.check, active_profile()
    request.batch.check_layouts(request.sparse_mode, request.pre_tokens, request.next_tokens, profile)
    heads, dim = request.query.shape[-2:]
    check.between("query", heads, 1, _MAX_HEADS)
    for argument, given in (("query", dim), ("key", request.key.shape[-1])):
        check.choice(argument, given, (_DIM,))
    check.shape("weights", request.weights, tuple(request.query.shape[:-1]), meaning="[..., N]")
    if profile.non_contiguous == "rejected":
        check.contiguous(weights=request.weights, code=ErrorCode.PARAMETER)


def _check_quantised(request: QuantIndexerRequest) -> None:
    check = request.check
    for argument in ("query_dtype", "key_dtype"):
        if (number := getattr(request, argument)) is not None:
            raise check.not_simulated(argument, number, "None; others are for Ascend 950")
    for argument in ("query", "key"):
        check.dtype(argument, getattr(request, argument), "int8")
    for argument in ("weights", "query_dequant_scale", "key_dequant_scale"):
        check.dtype(argument, getattr(request, argument), "float16")
    for argument in ("query_quant_mode", "key_quant_mode"):
        check.choice(argument, getattr(request, argument), (_PER_TOKEN_HEAD,))
    _check_shapes(request)
    check.shape("query_dequant_scale", request.query_dequant_scale, tuple(request.query.shape[:-1]), meaning="[..., N]")
    check.shape("key_dequant_scale", request.key_dequant_scale, tuple(request.key.shape[:-1]), meaning="[..., 1]")
    check.between("sparse_count", request.sparse_count, 1, _MAX_QUANT_COUNT)
