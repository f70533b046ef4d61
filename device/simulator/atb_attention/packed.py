"""Attention of ATB over keys and values in one piece: sequences that attend to themselves, with and without a mask."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.atb_attention.arithmetic import Softmax, attend
from npudiff.device.simulator.atb_attention.checks import DTYPES, by_head, check_output, key_heads, lengths_of
from npudiff.device.simulator.atb_attention.masks import check_template
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

_MASKED = ArgumentChecks("_npu_flash_attention", default=ErrorCode.TILING)
_CAUSAL = ArgumentChecks("_npu_flash_attention_v3", default=ErrorCode.TILING)
_UNPAD = ArgumentChecks("_npu_flash_attention_unpad", default=ErrorCode.TILING)
_UNPAD_V2 = ArgumentChecks("_npu_flash_attention_unpad_v2", default=ErrorCode.TILING)

_MAX_HEAD_DIM = 576
_MAX_UNEQUAL_HEAD_DIM = 1024
_COMPRESSED_MASK = 3
_DEFAULT_KERNEL, _FAST_EXPONENTIAL = 0, 2


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """Let each sequence attend to itself, under a mask.

    Parameters
    ----------
    query : Tensor
        [T, heads, D] or [T, heads * D], float16 or bfloat16, the sequences one after the other.
    key, value : Tensor
        [T, kv heads, D] and [T, kv heads, Dv], or with two axes as query.
    mask : Tensor
        [S, S] or [batch, S, S] in the query's dtype, S as the longest sequence or more, added to the scaled scores.
    seq_len : Tensor
        int32 [batch], on the host or the device: tokens of each sequence.
    scale_value : float
        Multiplies the scores.
    num_heads, num_kv_heads : int
        Heads; 0 key heads are as many as query heads.
    out : Tensor
        Written: [T, heads, Dv] or [T, heads * Dv]. Tokens behind the last sequence keep what they have.

    Raises
    ------
    OperatorRejected
        Shapes, dtypes or sizes that ATB refuses.
    DeviceFault
        Fewer tokens than ``seq_len`` says.
    NotSimulated
        Masks of four axes, and lengths of queries and keys apart.
    """
    lengths = _check(_MASKED, query, key, value, seq_len, num_heads, num_kv_heads, out)
    longest = max(lengths, default=0)
    _MASKED.same_dtype("mask", mask, "query", query)
    if mask.dim() == 4:
        raise _MASKED.not_simulated("mask", f"of rank 4, {list(mask.shape)}", "[S, S] and [batch, S, S]")
    _MASKED.rank("mask", mask, (2, 3), "[S, S] or [batch, S, S]")
    if min(mask.shape[-2:]) < longest or (mask.dim() == 3 and len(mask) < len(lengths)):
        raise _MASKED.rejected("mask", f"of shape {list(mask.shape)}", f"{longest} rows and keys, for each sequence")
    biases = [(mask[batch] if mask.dim() == 3 else mask)[:size, :size] for batch, size in enumerate(lengths)]
    _attend_each(query, key, value, lengths, scale_value, (num_heads, num_kv_heads), out, biases=biases)


def flash_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    mask_type: int | None,
    out: Tensor,
) -> None:
    """Let each sequence attend to itself causally.

    Parameters
    ----------
    mask : Tensor
        [128, 128], the template of :func:`check_template`.
    mask_type : int or None
        3.
    query, key, value, seq_len, scale_value, num_heads, num_kv_heads, out
        As in :func:`flash_attention`.

    Raises
    ------
    OperatorRejected, DeviceFault, NotSimulated
        As there.
    UndefinedBehaviour
        A mask of another content.
    """
    words = f"mask_type only supports MASK_TYPE_NORM_COMPRESS, but got: {mask_type}"
    _CAUSAL.choice("mask_type", mask_type, (None, _COMPRESSED_MASK), ErrorCode.WRAPPER, words)
    lengths = _check(_CAUSAL, query, key, value, seq_len, num_heads, num_kv_heads, out)
    check_template(_CAUSAL, mask, query)
    _attend_each(query, key, value, lengths, scale_value, (num_heads, num_kv_heads), out, causal=True)


def flash_attention_unpad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """Let each sequence attend to all of itself; arguments and errors are those of :func:`flash_attention`."""
    lengths = _check(_UNPAD, query, key, value, seq_len, num_heads, num_kv_heads, out)
    _attend_each(query, key, value, lengths, scale_value, (num_heads, num_kv_heads), out)


def flash_attention_unpad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    kernel_type: int | None,
    out: Tensor,
) -> None:
    """Let each sequence attend to all of itself, with a kernel of the caller's choice.

    Parameters
    ----------
    kernel_type : int or None
        0, or 2 on other chips.
    query, key, value, seq_len, scale_value, num_heads, num_kv_heads, out
        As in :func:`flash_attention`.

    Raises
    ------
    OperatorRejected, DeviceFault
        As there, and for other kernels.
    NotSimulated
        Kernel 2, which has an exponential of less precision, and what is named there.
    """
    allowed = "kernel_type only supports KERNELTYPE_DEFAULT(0) and KERNELTYPE_EXP_M8V2(2)"
    kinds = (None, _DEFAULT_KERNEL, _FAST_EXPONENTIAL)
    _UNPAD_V2.choice("kernel_type", kernel_type, kinds, ErrorCode.WRAPPER, f"{allowed}, but got: {kernel_type}")
    if kernel_type == _FAST_EXPONENTIAL:
        raise _UNPAD_V2.not_simulated("kernel_type", kernel_type, f"{_DEFAULT_KERNEL}")
    lengths = _check(_UNPAD_V2, query, key, value, seq_len, num_heads, num_kv_heads, out)
    _attend_each(query, key, value, lengths, scale_value, (num_heads, num_kv_heads), out)


def _check(
    check: ArgumentChecks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> list[int]:
    """Check what all of these have, and return the lengths."""
    kv_heads = key_heads(check, num_heads, num_kv_heads)
    check.dtype("query", query, *DTYPES)
    check.rank("query", query, (2, 3), "[tokens, heads * dim] or [tokens, heads, dim]")
    for name, tensor in (("key", key), ("value", value)):
        check.same_dtype(name, tensor, "query", query)
        check.rank(name, tensor, query.dim(), "as query")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check.not_empty(name, tensor)
    queries, keys, values = (
        by_head(check, name, tensor, heads, 3)
        for name, tensor, heads in (("query", query, num_heads), ("key", key, kv_heads), ("value", value, kv_heads))
    )
    dim = queries.shape[2]
    check.shape("query", queries, (-1, num_heads, -1), meaning="[tokens, num_heads, dim]")
    check.shape("key", keys, (-1, kv_heads, dim), meaning="[tokens, num_kv_heads, dim of query]")
    check.shape("value", values, (len(keys), kv_heads, -1), meaning="the tokens and heads of key")
    largest = _MAX_HEAD_DIM if dim == values.shape[2] else _MAX_UNEQUAL_HEAD_DIM
    for name, size in (("key", dim), ("value", values.shape[2])):
        if size > largest:
            raise check.rejected(name, f"of head dim {size}", f"up to {largest}")
    whole = (len(query), num_heads, values.shape[2])
    wanted = whole if query.dim() == 3 else (len(query), num_heads * values.shape[2])
    check_output(check, out, query, wanted, meaning="as query, with the head dim of value")
    if seq_len.dim() == 2:
        raise check.not_simulated(
            "seq_len", f"of shape {list(seq_len.shape)}", "[batch], one length for queries and keys"
        )
    lengths = lengths_of(check, "seq_len", seq_len)
    for name, tensor in (("query", query), ("key", key)):
        if sum(lengths) > len(tensor):
            raise DeviceFault(f"{check.operator}: seq_len has {sum(lengths)} tokens, and {name} {len(tensor)}")
    return lengths


def _attend_each(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scale: float,
    heads: tuple[int, int],
    out: Tensor,
    *,
    biases: list[Tensor] | None = None,
    causal: bool = False,
) -> None:
    query_heads, kv_heads = heads[0], heads[1] or heads[0]
    counts = (query_heads, kv_heads, kv_heads, query_heads)
    by_heads = [
        (tensor if tensor.dim() == 3 else tensor.view(len(tensor), count, -1)).transpose(0, 1)
        for tensor, count in zip((query, key, value, out), counts, strict=True)
    ]
    halves = query.dtype == torch.float16 and active_profile().atb_float16_scores == "float16"
    softmax = Softmax(scale, halves)
    for batch, (start, stop) in enumerate(pairwise((0, *accumulate(lengths)))):
        if start == stop:
            continue
        queries, keys, values, target = (tensor[:, start:stop] for tensor in by_heads)
        bias = None if biases is None else biases[batch]
        target.copy_(attend(queries, keys, values, softmax, bias=bias, causal=causal))
