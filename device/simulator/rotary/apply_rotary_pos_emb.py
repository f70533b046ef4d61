"""``npu_apply_rotary_pos_emb``: turn query and key where they lie.

The schema declares no alias, yet both tensors are written and returned. Sources: the wheel's documentation
(DOC), op-plugin's ``ApplyRotaryPosEmbNpuOpApi.cpp`` (HOST), and CANN's ``apply_rotary_pos_emb`` kernels for
A2 and A3, ``apply_rotary_pos_emb_small.h`` and ``..._compute_ab_cast.h`` (SOURCE).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import rotate_half, to_bfloat16_half_away, turn

_CHECK = ArgumentChecks("npu_apply_rotary_pos_emb", default=ErrorCode.PARAMETER)
_HEAD_DIMS = (64, 128)


def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """Turn query and key in place, in half order.

    Parameters
    ----------
    query, key : Tensor
        [B, S, heads, D], or [T, heads, D] with layout TND; D is 64 or 128. float16, bfloat16 or float32.
    cos, sin : Tensor
        [B, S, 1, R] or [T, 1, R] in the dtype of query; R is 64 or 128 and at most D. Elements of a head
        from R on stay as they are.
    layout : str
        ``BSND`` or ``TND``. A name that the host code does not know counts as BSND there, and here.
    rotary_mode : str
        ``half``.

    Returns
    -------
    query, key : Tensor
        The tensors that were given.

    Raises
    ------
    OperatorRejected
        Layout, mode, dtype, rank or shape is not one of the above, or a tensor is empty.
    """
    _check(query, key, cos, sin, layout, rotary_mode)
    profile = active_profile()
    for tensor in (query, key):
        _turn_in_place(tensor, cos, sin, profile)
    return query, key


def apply_rotary_pos_emb_meta(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate two tensors: torch_npu's META does not show the alias either, and checks nothing."""
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _turn_in_place(tensor: Tensor, cos: Tensor, sin: Tensor, profile: CannProfile) -> None:
    # SOURCE: float16 stays float16, so both products round; bfloat16 is widened and rounds once.
    arithmetic = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
    turning = tensor[..., : cos.shape[-1]]
    values = turning.to(arithmetic)
    turned = turn(values, rotate_half(values), cos.to(arithmetic), sin.to(arithmetic))
    if tensor.dtype == torch.bfloat16 and profile.apply_rotary_bfloat16 == "half_away_from_zero":
        turned = to_bfloat16_half_away(turned)
    turning.copy_(turned)


def _check(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str, rotary_mode: str) -> None:
    if rotary_mode not in ("half", "quarter", "interleave"):
        raise _CHECK.rejected("rotary_mode", repr(rotary_mode), "'half'", ErrorCode.WRAPPER)
    if rotary_mode != "half":
        given = f"{rotary_mode!r}, which is for Ascend 950"
        raise _CHECK.rejected("rotary_mode", given, "'half'")
    if layout in ("SBND", "BNSD"):
        given = f"{layout!r}, which is for Ascend 950"
        raise _CHECK.rejected("layout", given, "'BSND' or 'TND'")
    _CHECK.dtype("query", query, *FLOATS)
    for argument, tensor in (("query", query), ("key", key), ("cos", cos), ("sin", sin)):
        _CHECK.rank(argument, tensor, 3 if layout == "TND" else 4)
        _CHECK.same_dtype(argument, tensor, "query", query)
        _CHECK.not_empty(argument, tensor)
    _check_shapes(query, key, cos, sin)


def _check_shapes(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> None:
    tokens, dim, rotary_dim = tuple(query.shape[:-2]), query.shape[-1], cos.shape[-1]
    if dim not in _HEAD_DIMS:
        raise _CHECK.rejected("query", f"of head dim {dim}", "head dim 64 or 128")
    _CHECK.shape("key", key, (*tokens, key.shape[-2], dim), meaning="the tokens and head dim of query")
    if rotary_dim not in _HEAD_DIMS or rotary_dim > dim:
        allowed = f"64 or 128, at most the head dim {dim}"
        raise _CHECK.rejected("cos", f"of last dim {rotary_dim}", allowed)
    _CHECK.shape("cos", cos, (*tokens, 1, rotary_dim), meaning="the tokens of query and one head")
    _CHECK.shape("sin", sin, cos.shape, meaning="as cos")
