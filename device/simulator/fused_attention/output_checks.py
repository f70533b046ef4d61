"""The checks of int8 outputs and of shifts, which both belong to the plain layouts and one head dim.

Sources: DOC of both versions (int8 quantisation, pse_shift), CANN's feature checks for A2 and A3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.layouts import spans

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest

_LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND")
_DIM_STEP = 32


def check_shift(request: FusedAttentionRequest, shift: Tensor, geometry: Geometry) -> None:
    """Refuse a shift of another layout, form, dtype or shape than the scores have.

    Raises
    ------
    OperatorRejected
        Naming ``pse_shift``.
    """
    _check_form(request, "pse_shift", geometry)
    dtype = torch.float16 if request.query.dtype == torch.int8 else request.query.dtype
    if shift.dtype != dtype:
        allowed = f"{dtype}, with a query of {request.query.dtype}"
        raise request.check.rejected("pse_shift", shift.dtype, allowed, ErrorCode.PARAMETER)
    rows, keys = geometry.query_rows, geometry.key_rows
    shape = tuple(shift.shape)
    fits = len(shape) == 4 and shape[0] in (1, geometry.batch) and shape[1] == request.heads
    if not fits or shape[2] < rows or shape[3] < keys:
        allowed = f"[1 or {geometry.batch}, {request.heads}, at least {rows}, at least {keys}]"
        raise request.check.rejected("pse_shift", f"of shape {list(shape)}", allowed)


def check_int8_output(request: FusedAttentionRequest, geometry: Geometry) -> None:
    """Refuse numbers that make no int8 of a call's output, and calls whose output has no int8.

    Raises
    ------
    OperatorRejected
        Naming the scale, the offset or what excludes them.
    """
    names, scale, offset = request.names, request.out_scale, request.out_offset
    if scale is None:
        if offset is not None:
            raise request.check.rejected(names.out_scale, "None", f"given together with {names.out_offset}")
        return
    _check_form(request, names.out_scale, geometry)
    if request.integer_cache and (not geometry.single or request.key.dtype == torch.int32 or request.key.dim() == 5):
        allowed = "None, with int4, an int8 cache in NZ order, or several queries over int8"
        raise request.check.rejected(names.out_scale, "given", allowed)
    floats = (torch.float32, torch.bfloat16) if request.query.dtype == torch.bfloat16 else (torch.float32,)
    if scale.dtype not in floats:
        allowed = " or ".join(map(str, floats))
        raise request.check.rejected(names.out_scale, scale.dtype, allowed, ErrorCode.PARAMETER)
    channels = request.heads * geometry.value_dim
    if scale.numel() not in (1, channels):
        given = f"of shape {list(scale.shape)}"
        raise request.check.rejected(names.out_scale, given, f"1 element, or {channels}: heads * dim")
    if scale.numel() > 1 and request.return_lse:
        raise request.check.rejected(names.return_lse, "True with numbers per channel", "False")
    if (scale.numel() > 1 or not geometry.single) and geometry.value_dim % _DIM_STEP:
        given = f"of head dim {geometry.value_dim} with {names.out_scale}"
        raise request.check.rejected("value", given, f"a multiple of {_DIM_STEP}")
    if offset is not None and (offset.dtype, offset.shape) != (scale.dtype, scale.shape):
        given = f"{offset.dtype} {list(offset.shape)}"
        raise request.check.rejected(names.out_offset, given, f"{scale.dtype} {list(scale.shape)}, as the scale")
    if not geometry.decode:
        _check_rows(request, geometry)


def _check_form(request: FusedAttentionRequest, name: str, geometry: Geometry) -> None:
    if request.query_rope is not None:
        raise request.check.rejected(name, "given", "None with query_rope")
    if request.layout not in _LAYOUTS:
        raise request.check.rejected(name, f"given with layout {request.layout}", ", ".join(_LAYOUTS))
    if geometry.head_dim != geometry.value_dim:
        given = f"given with head dim {geometry.head_dim} and value {geometry.value_dim}"
        raise request.check.rejected(name, given, "None where query and value differ in head dim")


def _check_rows(request: FusedAttentionRequest, geometry: Geometry) -> None:
    """Refuse negative bands, and with an offset rows that the band leaves out: they would not be the offset."""
    mode, before, after = request.sparse_mode, request.pre_tokens, request.next_tokens
    if mode == 4 and (before < 0 or after < 0):
        given = f"{before} with next_tokens {after} and an int8 output"
        raise request.check.rejected("pre_tokens", given, "0 or more, both")
    if request.out_offset is None:
        return
    for span in spans(request, geometry):
        surplus = span.query_length - span.key_length
        if mode == 0 and request.mask is not None:
            left_out = surplus - before > 0 or after < 0
        elif mode == 3:
            left_out = surplus > 0
        else:
            left_out = mode == 4 and after - surplus < 0
        if left_out:
            where = f"sequence {span.batch} of {span.query_length} queries and {span.key_length} keys"
            allowed = f"None where sparse_mode {mode} leaves rows out, as in {where}"
            raise request.check.rejected(request.names.out_offset, "given", allowed)
