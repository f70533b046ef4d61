"""``npu_top_k_top_p``: logits of tokens that are too unlikely become minus infinity.

Sources: op-plugin's documentation and test, the wheel's META rule, and CANN's ``apply_top_k_top_p_with_sorted``
(ops-nn: checks of ``aclnnApplyTopKTopP``, kernel).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("npu_top_k_top_p", default=ErrorCode.PARAMETER)

_DOCUMENTED_K = 1024


def top_k_top_p(logits: Tensor, p: Tensor | None, k: Tensor | None) -> Tensor:
    """Keep the k largest logits of a row, and of these the most likely ones, until their probabilities exceed p.

    Parameters
    ----------
    logits : Tensor
        [B, V], float16, bfloat16 or float32.
    p : Tensor, optional
        [B], dtype of logits, 0 to 1.
    k : Tensor, optional
        [B], int32. One of both is given.

    Returns
    -------
    Tensor
        As logits. Tokens as likely as the k-th are all kept; of tokens that are equally likely at the limit of p those
        with the lower index go first. The most likely token always stays.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above, or neither p nor k is given.
    UndefinedBehaviour
        An element of k is out of range, if the profile says so.
    """
    _check(logits, p, k)
    if not logits.numel() or logits.shape[1] == 1:
        return logits.clone()
    values, indices = logits.sort(dim=-1, stable=True)
    if k is not None:
        values = values.masked_fill(values < values.gather(1, _places(k, logits.shape[1])), -math.inf)
    if p is not None:
        values = values.masked_fill(_unlikely(values, p), -math.inf)
    return torch.empty_like(values).scatter_(1, indices, values)


def top_k_top_p_meta(logits: Tensor) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return logits.new_empty(logits.shape)


def _places(k: Tensor, vocabulary: int) -> Tensor:
    """Return where the k-th largest of each sorted row is, [B, 1]."""
    out_of_range = (k <= 0) | (k > vocabulary)
    if active_profile().top_k_out_of_range == "undefined" and bool((out_of_range | (k > _DOCUMENTED_K)).any()):
        allowed = f"1 to {min(_DOCUMENTED_K, vocabulary)}"
        raise UndefinedBehaviour(f"{_CHECK.operator}: k is {k.tolist()}, and the documentation has {allowed}")
    return (vocabulary - k.long()).masked_fill(out_of_range, 0).unsqueeze(1)


def _unlikely(values: Tensor, p: Tensor) -> Tensor:
    """Return which of ascending logits are below the limit of p; the last one never is."""
    wide = values.float()
    weights = (wide - wide[:, -1:]).exp()
    probabilities = weights * weights.sum(-1, keepdim=True).reciprocal()
    limit = 1.0 - p.float() if active_profile().top_p_complement == "float32" else (1 - p).float()
    unlikely = probabilities.cumsum(-1) <= limit.unsqueeze(1)
    unlikely[:, -1] = False
    return unlikely


def _check(logits: Tensor, p: Tensor | None, k: Tensor | None) -> None:
    if p is None and k is None:
        words = "The inputs, p and k, should not be nullptr at the same time."
        raise _CHECK.rejected("p", None, "a tensor, where k is None", words=words)
    _CHECK.dtype("logits", logits, *FLOATS)
    _CHECK.rank("logits", logits, 2)
    if p is not None:
        _CHECK.same_dtype("p", p, "logits", logits)
    if k is not None:
        _CHECK.dtype("k", k, "int32")
    for argument, tensor in (("p", p), ("k", k)):
        if tensor is not None:
            _CHECK.shape(argument, tensor, logits.shape[:1], meaning="the rows of logits")
