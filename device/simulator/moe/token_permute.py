"""``npu_moe_token_permute`` and ``npu_moe_token_unpermute``: rows into the order of their experts, and back.

Sources: the documentation of both, op-plugin's test of both, the wheel's META rules, and vllm-ascend's copy of the
kernel ``moe_token_unpermute.h`` (SOURCE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

_PERMUTE = ArgumentChecks("npu_moe_token_permute", default=ErrorCode.PARAMETER)
_UNPERMUTE = ArgumentChecks("npu_moe_token_unpermute", default=ErrorCode.PARAMETER)

_MAX_K = 512
_MAX_NUMBER = 2**24 - 1


def token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Sort the pairs of tokens and experts by expert, stably, and copy the tokens' rows.

    Parameters
    ----------
    tokens : Tensor
        [n, H], float16, bfloat16 or float32.
    indices : Tensor
        int32 or int64 [n, k] or [n]: the experts of each token, k up to 512.
    num_out_tokens : int, optional
        How many rows are given back: all if None or 0, that many if positive, that many less if negative.
    padded_mode : bool
        False.

    Returns
    -------
    permuted_tokens : Tensor
        [rows, H] in the dtype of tokens.
    sorted_indices : Tensor
        int32 [n * k]: where pair ``token * k + j`` went, in the order before rows were cut off.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    """
    _check_permute(tokens, indices, padded_mode=padded_mode)
    pairs = indices.numel()
    k = indices.shape[1] if indices.dim() == 2 else 1
    order = indices.reshape(-1).sort(stable=True).indices
    sorted_indices = torch.empty(pairs, dtype=torch.int32)
    sorted_indices[order] = torch.arange(pairs, dtype=torch.int32)
    return tokens[order[: _rows(num_out_tokens, pairs)] // max(k, 1)], sorted_indices


def token_permute_meta(tokens: Tensor, indices: Tensor, num_out_tokens: int | None) -> tuple[Tensor, Tensor]:
    """Allocate the outputs, after META's checks."""
    _PERMUTE.rank("tokens", tokens, 2, code=ErrorCode.WRAPPER)
    _PERMUTE.rank("indices", indices, (1, 2), code=ErrorCode.WRAPPER)
    rows = _rows(num_out_tokens, indices.numel())
    return tokens.new_empty((rows, tokens.shape[1])), tokens.new_empty((indices.numel(),), dtype=torch.int32)


def token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    """Return ``sum over j of probs[token, j] * permuted_tokens[sorted_indices[token * k + j]]``.

    Parameters
    ----------
    permuted_tokens : Tensor
        [rows, H], float16, bfloat16 or float32.
    sorted_indices : Tensor
        int32 [n * k]. A row beyond the last is left out of the sum.
    probs : Tensor, optional
        [n, k], float16, bfloat16 or float32, k up to 512; without it k is 1 and rows come back as they are.
    padded_mode : bool
        False.
    restore_shape : sequence of int, optional
        Without effect unless padded_mode.

    Returns
    -------
    Tensor
        [n, H] in the dtype of permuted_tokens, summed in float32 in the order of j and rounded once.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    DeviceFault
        A row before the first: SOURCE looks at the upper end only.
    """
    del restore_shape
    k = _check_unpermute(permuted_tokens, sorted_indices, probs, padded_mode=padded_mode)
    count = len(permuted_tokens)
    negative = sorted_indices.clamp(max=max(count - 1, 0))
    _UNPERMUTE.indices("sorted_indices", negative, max(count, 1), "rows")
    rows = sorted_indices.long().view(-1, k)
    present = rows < count
    total = torch.zeros(len(rows), permuted_tokens.shape[1])
    if not count:
        return total.to(permuted_tokens.dtype)
    for j in range(k):
        values = permuted_tokens[rows[:, j].clamp(max=count - 1)].float()
        if probs is not None:
            values = values * probs[:, j : j + 1].float()
        total = total + values.masked_fill(~present[:, j : j + 1], 0.0)
    return total.to(permuted_tokens.dtype)


def token_unpermute_meta(permuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor | None) -> Tensor:
    """Allocate the output, after META's checks."""
    if probs is not None:
        _UNPERMUTE.rank("probs", probs, 2, code=ErrorCode.WRAPPER)
    _UNPERMUTE.rank("permuted_tokens", permuted_tokens, 2, code=ErrorCode.WRAPPER)
    _UNPERMUTE.rank("sorted_indices", sorted_indices, 1, code=ErrorCode.WRAPPER)
    k = 1 if probs is None else probs.shape[1]
    return permuted_tokens.new_empty((len(sorted_indices) // k, permuted_tokens.shape[-1]))


def _rows(num_out_tokens: int | None, pairs: int) -> int:
    """Return how many rows are given back."""
    wanted = num_out_tokens or 0
    return min(wanted, pairs) if wanted > 0 else max(pairs + wanted, 0)


def _check_permute(tokens: Tensor, indices: Tensor, *, padded_mode: bool) -> None:
    _refuse_padded_mode(_PERMUTE, padded_mode=padded_mode)
    _PERMUTE.rank("tokens", tokens, 2)
    _PERMUTE.dtype("tokens", tokens, *FLOATS)
    _PERMUTE.rank("indices", indices, (1, 2))
    _PERMUTE.dtype("indices", indices, "int32", "int64")
    _PERMUTE.shape("indices", indices, (len(tokens), *indices.shape[1:]), meaning="[n, k] or [n], the rows of tokens")
    if indices.dim() == 2:
        _PERMUTE.between("indices", indices.shape[1], 1, _MAX_K, ErrorCode.TILING)
    if indices.numel() > _MAX_NUMBER:
        given = f"of {indices.numel()} elements"
        raise _PERMUTE.rejected("indices", given, f"at most {_MAX_NUMBER}", ErrorCode.TILING)


def _check_unpermute(tokens: Tensor, indices: Tensor, probs: Tensor | None, *, padded_mode: bool) -> int:
    """Refuse what the operator refuses, and return k."""
    _refuse_padded_mode(_UNPERMUTE, padded_mode=padded_mode)
    _UNPERMUTE.rank("permuted_tokens", tokens, 2)
    _UNPERMUTE.dtype("permuted_tokens", tokens, *FLOATS)
    _UNPERMUTE.rank("sorted_indices", indices, 1)
    _UNPERMUTE.dtype("sorted_indices", indices, "int32")
    if probs is None:
        return 1
    _UNPERMUTE.rank("probs", probs, 2)
    _UNPERMUTE.dtype("probs", probs, *FLOATS)
    k = probs.shape[1]
    if not 1 <= k <= _MAX_K:
        raise _UNPERMUTE.rejected("probs", f"of {k} columns", f"1 to {_MAX_K}", ErrorCode.TILING)
    if probs.numel() != len(indices):
        allowed = f"{list(probs.shape)} of probs make {probs.numel()}"
        raise _UNPERMUTE.rejected("sorted_indices", f"of length {len(indices)}", allowed)
    return k


def _refuse_padded_mode(check: ArgumentChecks, *, padded_mode: bool) -> None:
    if padded_mode:
        raise check.rejected("padded_mode", padded_mode, "False")
