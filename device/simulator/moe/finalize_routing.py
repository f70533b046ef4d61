"""``npu_moe_finalize_routing``: bring rows back to their tokens, weighted, with a bias per expert and residuals.

Sources: its documentation (DOC), op-plugin's host code, the wheel's META rules and the expected values of op-plugin's
test (GOLDEN), as they hold for CANN with version 4 of the operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import CannProfile, active_profile

_CHECK = ArgumentChecks("npu_moe_finalize_routing", default=ErrorCode.PARAMETER)

# Which numbers the pairs have, and whether rows lie in [E, C, H] with -1 for those that were dropped.
_ROW_MAJOR = (2, 3)
_PADDED = (1, 3)


def finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """Return ``skip1 + skip2 + sum over j of scales[:, j] * (row_j + bias[expert_j])``.

    Parameters
    ----------
    expanded_permuted_rows : Tensor
        [rows, H], or [E, C, H] with ``drop_pad_mode`` 1 and 3; float16, bfloat16 or float32.
    skip1, skip2 : Tensor, optional
        [n, H] in the dtype of the rows; skip2 only with skip1.
    bias : Tensor, optional
        [E, H] in the dtype of the rows.
    scales : Tensor, optional
        [n, k] weights in the dtype of the rows, or float32.
    expanded_src_to_dst_row : Tensor
        int32 [n * k]: the row of each pair. ``drop_pad_mode`` 0 and 1: of pair ``j * n + token``; 2 and 3: of pair
        ``token * k + j``. With 1 and 3 a row of [E, C, H] as if it were [E * C, H], or -1.
    export_for_source_row : Tensor, optional
        int32 [n, k]: experts, whose bias is added.
    drop_pad_mode : int, optional
        0 to 3.
    k : int, optional
        Experts per token, where there are no scales.

    Returns
    -------
    Tensor
        [n, H] in the dtype of the rows.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    DeviceFault
        A row or an expert does not exist.
    """
    mode, experts_per_token = drop_pad_mode or 0, _experts_per_token(scales, k)
    profile = active_profile()
    rows = expanded_permuted_rows
    if profile.moe_finalize_version == "before_4" and k not in (None, 1):
        raise _CHECK.rejected("k", k, "1, before version 4 of the operator", ErrorCode.WRAPPER)
    _check_rows(rows, expanded_src_to_dst_row, mode, experts_per_token)
    tokens = len(expanded_src_to_dst_row) // experts_per_token
    _check_others(rows, tokens, experts_per_token, profile, skip1=skip1, skip2=skip2, bias=bias, scales=scales)
    _check_experts(export_for_source_row, bias, (tokens, experts_per_token))
    flat = rows.reshape(-1, rows.shape[-1])
    _CHECK.indices("expanded_src_to_dst_row", expanded_src_to_dst_row, len(flat), "rows", -1 if mode in _PADDED else 0)
    total = _skipped(flat, skip1, skip2, tokens)
    of_expert = _by_token(expanded_src_to_dst_row, tokens, experts_per_token, mode)
    for j in range(experts_per_token):
        values = _gathered(flat, of_expert[:, j], profile)
        if bias is not None and export_for_source_row is not None:
            values = values + bias[export_for_source_row[:, j].long()].float()
        total = total + (values if scales is None else scales[:, j : j + 1].float() * values)
    return total.to(rows.dtype)


def finalize_routing_meta(
    expanded_permuted_rows: Tensor, scales: Tensor | None, expanded_src_to_dst_row: Tensor, k: int | None
) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    tokens = len(expanded_src_to_dst_row) // _experts_per_token(scales, k)
    return expanded_permuted_rows.new_empty((tokens, expanded_permuted_rows.shape[-1]))


def _experts_per_token(scales: Tensor | None, k: int | None) -> int:
    if scales is None:
        return 1 if k is None else k
    _CHECK.rank("scales", scales, 2)
    return scales.shape[1]


def _by_token(pairs: Tensor, tokens: int, experts_per_token: int, mode: int) -> Tensor:
    """Return the rows of each token's experts, int64 [n, k]."""
    if mode in _ROW_MAJOR:
        return pairs.long().view(tokens, experts_per_token)
    return pairs.long().view(experts_per_token, tokens).t()


def _skipped(flat: Tensor, skip1: Tensor | None, skip2: Tensor | None, tokens: int) -> Tensor:
    """Return what the sum starts with, float32 [n, H]."""
    if skip1 is None:
        return torch.zeros(tokens, flat.shape[1])
    return skip1.float() if skip2 is None else skip1.float() + skip2.float()


def _gathered(flat: Tensor, rows: Tensor, profile: CannProfile) -> Tensor:
    """Return rows by number, float32; -1 gives what the profile says."""
    dropped = rows < 0
    if not dropped.any():
        return flat[rows].float()
    values = flat[rows.clamp(min=0)].float()
    return values if profile.moe_finalize_dropped_row == "first_row" else values.masked_fill(dropped.unsqueeze(1), 0.0)


def _check_rows(rows: Tensor, pairs: Tensor, mode: int, experts_per_token: int) -> None:
    _CHECK.choice("drop_pad_mode", mode, (0, 1, 2, 3), ErrorCode.WRAPPER)
    _CHECK.dtype("expanded_permuted_rows", rows, *FLOATS)
    _CHECK.rank("expanded_permuted_rows", rows, (3,) if mode in _PADDED else (2,))
    _CHECK.dtype("expanded_src_to_dst_row", pairs, "int32")
    _CHECK.rank("expanded_src_to_dst_row", pairs, 1)
    if experts_per_token < 1:
        raise _CHECK.rejected("k", experts_per_token, "1 or more")
    if len(pairs) % experts_per_token:
        allowed = f"a multiple of k, which is {experts_per_token}"
        raise _CHECK.rejected("expanded_src_to_dst_row", f"of length {len(pairs)}", allowed)


def _check_others(
    rows: Tensor, tokens: int, experts_per_token: int, profile: CannProfile, **given: Tensor | None
) -> None:
    skip1, skip2, bias, scales = (given[name] for name in ("skip1", "skip2", "bias", "scales"))
    if profile.moe_finalize_version == "before_4":
        if skip1 is None:
            raise _CHECK.rejected("skip1", None, "a tensor, before version 4 of the operator", ErrorCode.WRAPPER)
    elif skip1 is None and skip2 is not None:
        raise _CHECK.rejected("skip2", "a tensor", "None, without skip1")
    for argument, tensor in (("skip1", skip1), ("skip2", skip2)):
        if tensor is not None:
            _CHECK.dtype(argument, tensor, dtype_name(rows))
            _CHECK.shape(argument, tensor, (tokens, rows.shape[-1]), meaning="[n, H]")
    if scales is not None:
        _CHECK.dtype("scales", scales, *sorted({dtype_name(rows), "float32"}))
        _CHECK.shape("scales", scales, (tokens, experts_per_token), meaning="[n, k]")
    if bias is not None:
        _CHECK.dtype("bias", bias, dtype_name(rows))
        _CHECK.rank("bias", bias, 2)
        _CHECK.shape("bias", bias, (len(bias), rows.shape[-1]), meaning="[E, H]")


def _check_experts(experts: Tensor | None, bias: Tensor | None, shape: tuple[int, int]) -> None:
    if experts is None:
        if bias is not None:
            raise _CHECK.rejected("export_for_source_row", None, "a tensor [n, k], with bias")
        return
    _CHECK.dtype("export_for_source_row", experts, "int32")
    _CHECK.shape("export_for_source_row", experts, shape, meaning="[n, k]")
    if bias is not None:
        _CHECK.indices("export_for_source_row", experts, len(bias), "experts with a bias")
