"""``npu_sparse_flash_attention``, sgl-kernel-npu's, and ``npu_kv_quant_sparse_flash_attention``: over chosen keys.

Of each row of ``sparse_indices`` the entries in front of the first negative one count, at most as many as cover the
visible keys; one that points behind them contributes nothing. Values are the part of the keys without positions.
Sources: the documentation of both in op-plugin; the host checks and kernels for A2 and A3 in vllm-ascend
(``csrc/attention/sparse_flash_attention`` and ``kv_quant_sparse_flash_attention``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.errors import UndefinedBehaviour
from npudiff.device.simulator.fused_attention.rounding import narrow
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.sparse_attention import checks
from npudiff.device.simulator.sparse_attention.checks import (
    LATENT,
    ROPE,
    AttentionRequest,
    KvQuantRequest,
    Selection,
    SglAttentionRequest,
)
from npudiff.device.simulator.sparse_attention.sequences import Sequence
from npudiff.device.simulator.sparse_attention.softmax import LOWEST, TILE, Sums

_MAX_ROWS = 16

_Load = Callable[[Tensor], Tensor]
"""From addresses [n] to keys, float32 [n, 576]."""


def sparse_flash_attention_meta(request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs of ``npu_sparse_flash_attention``."""
    checks.check_host(request)
    query = request.query
    *leading, heads, _ = query.shape
    key_heads = request.key_heads
    shape = (*leading[:-1], key_heads, leading[-1], heads // key_heads)
    shape = shape if request.return_softmax_lse else (0,)
    maximum, total = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return query.new_empty(query.shape), maximum, total


def kv_quant_sparse_flash_attention_meta(request: KvQuantRequest) -> Tensor:
    """Allocate the output of ``npu_kv_quant_sparse_flash_attention``."""
    checks.check_host(request)
    return request.query.new_empty((*request.query.shape[:-1], request.query.shape[-1] - request.rope_head_dim))


def sparse_flash_attention(request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the chosen keys.

    Parameters
    ----------
    request : AttentionRequest
        query [B, S1, N, 512] or [T1, N, 512], query_rope [..., 64]; key [..., 1, 512], key_rope [..., 1, 64]; all
        float16 or bfloat16; value equal to key; sparse_indices int32 [..., 1, K], of blocks of sparse_block_size keys.

    Returns
    -------
    attention_out : Tensor
        Shape and dtype of query. Rows without keys are 0, rows behind a sequence too in [B, S1, ...]; behind the last
        sequence of [T1, ...] nothing is written.
    softmax_max, softmax_sum : Tensor
        float32 [B, 1, S1, N] or [1, T1, N], 0 in rows without keys; shape [0] unless asked for.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above, or those of layouts and lengths are not.
    NotSimulated
        sinks, which Ascend 950 has.
    DeviceFault
        A length or a block id points outside.
    UndefinedBehaviour
        Value is another tensor than key.
    """
    profile = active_profile()
    checks.check_host(request)
    checks.check_attention(request, profile)
    key = request.key.reshape(-1, LATENT)
    rope, value = (checks.given(one).reshape(len(key), -1) for one in (request.key_rope, request.value))
    query = torch.cat([request.query, checks.given(request.query_rope)], -1)

    def load(addresses: Tensor) -> Tensor:
        nope = key[addresses]
        if not torch.equal(nope.view(torch.int16), value[addresses].view(torch.int16)):
            raise UndefinedBehaviour(f"{request.check.operator}: value is not key; kernels read either for both")
        return torch.cat([nope, rope[addresses]], -1).float()

    exponents = profile.sparse_attention_rescale == "exponent"
    out, maximum, total = _attend(request, query, load, profile, exponents=exponents)
    if not request.return_softmax_lse:
        return out, maximum.new_empty(0), total.new_empty(0)
    # [B, S1, N] becomes [B, 1, S1, N], [T1, N] becomes [1, T1, N].
    return out, maximum.unsqueeze(-3), total.unsqueeze(-3)


def sgl_sparse_flash_attention(request: SglAttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the chosen keys, as ``sparse_flash_attention``; sgl-kernel-npu's host code copies what has gaps."""
    return sparse_flash_attention(request.contiguous())


def kv_quant_sparse_flash_attention(request: KvQuantRequest) -> Tensor:
    """Attend to the chosen keys, of int8 with a scale per 128 numbers.

    Parameters
    ----------
    request : KvQuantRequest
        query [..., N, 576], float16 or bfloat16, the turning 64 last; key int8 [..., 1, 656], the bytes of 512 int8, of
        64 numbers in the dtype of query, and of 4 float32 scales; the values are those 512.

    Returns
    -------
    Tensor
        [..., N, 512] in the dtype of query, as that of ``npu_sparse_flash_attention``.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above, or those of layouts and lengths are not.
    NotSimulated
        hifloat8 or an 8-bit float, which Ascend 950 has.
    DeviceFault
        A length or a block id points outside.
    """
    profile = active_profile()
    checks.check_host(request)
    checks.check_kv_quant(request, profile)
    key, dtype = request.key.reshape(-1, request.key.shape[-1]), request.query.dtype

    def load(addresses: Tensor) -> Tensor:
        latent, rope, scales = torch.tensor_split(key[addresses], (LATENT, LATENT + 2 * ROPE), -1)
        scale = scales.contiguous().view(torch.float32).repeat_interleave(request.tile_size, -1)
        return torch.cat([narrow(latent.float() * scale, dtype), rope.contiguous().view(dtype)], -1).float()

    return _attend(request, request.query, load, profile, exponents=False)[0]


def _attend(
    request: Selection, query: Tensor, load: _Load, profile: CannProfile, *, exponents: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention [..., N, 512] in the dtype of the query [..., N, 576], and maximum and sum [..., N]."""
    leading, heads = query.shape[:-2], query.shape[-2]
    queries, indices = query.reshape(-1, heads, LATENT + ROPE), request.sparse_indices.reshape(leading.numel(), -1)
    allocate = unwritten if request.batch.packed else torch.zeros
    out = allocate((len(queries), heads, LATENT), dtype=query.dtype)
    maximum, total = (allocate((len(queries), heads), dtype=torch.float32) for _ in range(2))
    for sequence in request.batch.sequences():
        limits = sequence.visible(request.sparse_mode)
        for start in range(0, len(limits), _MAX_ROWS):
            piece = limits[start : start + _MAX_ROWS]
            rows = slice(sequence.rows.start + start, sequence.rows.start + start + len(piece))
            chosen = _choose(request, indices[rows].long(), piece, profile)
            sums = Sums.start(len(piece), heads, LATENT, query.dtype, exponents=exponents)
            _sum(sums, queries[rows].float(), chosen, sequence, request, load)
            empty = chosen.empty.view(-1, 1)
            maximum[rows] = sums.maximum.squeeze(-1).masked_fill(empty, 0.0)
            total[rows] = sums.total.squeeze(-1).masked_fill(empty, 0.0)
            out[rows] = narrow(sums.attention().masked_fill(empty.unsqueeze(-1), 0.0), query.dtype)
    out = out.view(*leading, heads, LATENT)
    return out, maximum.view(*leading, heads), total.view(*leading, heads)


@dataclass(frozen=True)
class _Chosen:
    """The keys that rows of indices name, slot by slot."""

    tokens: Tensor
    """int64 [rows, slots]."""
    scanned: Tensor
    """bool [rows, slots]: slots that are looked at."""
    seen: Tensor
    """Those whose token is visible."""
    empty: Tensor
    """bool [rows]: rows that become 0."""


def _choose(request: Selection, blocks: Tensor, limits: Tensor, profile: CannProfile) -> _Chosen:
    """Read indices [rows, K] of rows that may see the first ``limits`` tokens."""
    size, limits = request.sparse_block_size, limits.unsqueeze(1)
    ended = (blocks < 0).cumsum(1) > 0
    if profile.sparse_attention_unpacked == "undefined" and (ended & (blocks >= 0)).any():
        raise UndefinedBehaviour(f"{request.check.operator}: sparse_indices has a valid entry behind a negative one")
    scanned = ~ended & (torch.arange(blocks.shape[1]) < (limits + size - 1) // size)
    tokens = (blocks.unsqueeze(-1) * size + torch.arange(size)).flatten(1)
    scanned = scanned.repeat_interleave(size, 1)
    seen = scanned & (tokens < limits)
    told = seen if profile.sparse_attention_hidden_row == "as_empty" else scanned
    return _Chosen(tokens, scanned, seen, ~told.any(1))


def _sum(sums: Sums, queries: Tensor, chosen: _Chosen, sequence: Sequence, request: Selection, load: _Load) -> None:
    """Add the tiles that any of the rows looks at."""
    for start in range(0, int(chosen.scanned.sum(1).max()), TILE):
        window = slice(start, start + TILE)
        scanned, seen = chosen.scanned[:, window], chosen.seen[:, window]
        keys = torch.zeros(*seen.shape, LATENT + ROPE)
        # Only what is seen is read.
        keys[seen] = load(request.batch.addresses(sequence, chosen.tokens[:, window][seen]))
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(request.scale_value)
        scores.masked_fill_(~seen.unsqueeze(1), LOWEST).masked_fill_(~scanned.unsqueeze(1), -torch.inf)
        sums.add(scores, keys[..., :LATENT])
