"""The checks of layouts by the form of a call: with a rotated part of query and key, and without.

With one (multi-head latent attention), the head dim of query, key and value says the form: 512 is the absorbed form,
whose keys are the latent cache, and 128 the expanded one. Sources: DOC of both versions (MLA), CANN's feature checks
and rope checker for A2 and A3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.request import V1_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

_ROPE_DIM = 64
_TILE_BYTES = 32
_ABSORBED_DIM = 512
_EXPANDED_DIM = 128
_ABSORBED_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
_ABSORBED_MODES = (0, 3, 4, 9)
_MAX_NBSD_QUERIES = 16
_ABSORBED_LAYOUTS = ("BSH", "BSND", "BNSD", "TND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD")
_OTHER_LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND", "NTD", "BSH_BNSD", "BSND_BNSD", "NTD_TND")

# Layouts that take few head dims without a rotated part: (query and key, value). The profile says those of TND.
_NARROW_DIMS = frozenset({(64, 64), (128, 128), (192, 128)})
_NARROW_LAYOUTS = ("NTD", "NTD_TND", "BSH_BNSD", "BSND_BNSD")


def check_layout(request: FusedAttentionRequest) -> None:
    """Refuse layouts that the form of a call does not have, and half of a rotated pair; head dims are not looked at.

    Raises
    ------
    OperatorRejected
        Naming ``input_layout``, ``query_rope`` or ``key_rope``.
    """
    query_rope, key_rope = request.query_rope, request.key_rope
    if query_rope is None and key_rope is not None:
        raise request.check.rejected("query_rope", "None", "given together with key_rope")
    if query_rope is not None and key_rope is None:
        raise request.check.rejected("key_rope", "None", "given together with query_rope")
    known = _OTHER_LAYOUTS if query_rope is None else (*_OTHER_LAYOUTS, *_ABSORBED_LAYOUTS)
    queries = None if request.packed else request.query.shape[request.axes.index("S")]
    if request.layout == "BNSD_BSND" and queries == 1:
        raise request.check.rejected("input_layout", "'BNSD_BSND' with one query", "several queries, or BNSD")
    if request.layout.endswith("_NBSD") and queries is not None and queries > _MAX_NBSD_QUERIES:
        allowed = f"1 to {_MAX_NBSD_QUERIES} queries"
        raise request.check.rejected("input_layout", f"{request.layout!r} with {queries} queries", allowed)
    if request.layout not in known:
        # NSD is a layout of other cards: neither DOC nor the checks for A2 and A3 have it.
        given = f"{request.layout!r} {'without' if query_rope is None else 'with'} query_rope"
        raise request.check.rejected("input_layout", given, ", ".join(known))


def check_narrow_dims(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse head dims that a layout does not take without a rotated part.

    Raises
    ------
    OperatorRejected
        Naming ``query``.
    """
    if request.layout == "TND":
        taken = profile.tnd_head_dims
    elif request.layout in _NARROW_LAYOUTS:
        taken = profile.tnd_head_dims & _NARROW_DIMS
    else:
        return
    dims = (geometry.head_dim, geometry.value_dim)
    if dims not in taken:
        allowed = ", ".join(f"{qk} with value {v}" for qk, v in sorted(taken))
        given = f"of head dim {dims[0]} with value {dims[1]} in {request.layout}"
        raise request.check.rejected("query", given, allowed)


def check_rope(
    request: FusedAttentionRequest, query_rope: Tensor, key_rope: Tensor, geometry: Geometry, profile: CannProfile
) -> None:
    """Refuse head dims, layouts, head counts, shapes and dtypes that no form with a rotated part has.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    if request.layout[:3] != "BSH" and query_rope.shape[-1] != _ROPE_DIM:
        raise request.check.rejected("query_rope", f"of head dim {query_rope.shape[-1]}", f"{_ROPE_DIM}")
    if geometry.head_dim not in (_ABSORBED_DIM, _EXPANDED_DIM):
        allowed = f"{_ABSORBED_DIM} or {_EXPANDED_DIM}, with query_rope"
        raise request.check.rejected("query", f"of head dim {geometry.head_dim}", allowed)
    if geometry.value_dim != geometry.head_dim:
        allowed = f"the query's head dim {geometry.head_dim}, with query_rope"
        raise request.check.rejected("value", f"of head dim {geometry.value_dim}", allowed)
    if geometry.head_dim == _ABSORBED_DIM:
        _check_absorbed(request, profile)
    elif request.layout not in _OTHER_LAYOUTS:
        given = f"{request.layout!r} with head dim {_EXPANDED_DIM} and query_rope"
        raise request.check.rejected("input_layout", given, ", ".join(_OTHER_LAYOUTS))
    for name, rope, like, heads in (
        ("query_rope", query_rope, request.query, request.heads),
        ("key_rope", key_rope, request.key, request.kv_heads),
    ):
        dtype = torch.bfloat16 if like.dtype == torch.int8 else like.dtype
        if rope.dtype != dtype:
            allowed = f"{dtype}, with {name.removesuffix('_rope')} of {like.dtype}"
            raise request.check.rejected(name, rope.dtype, allowed, ErrorCode.PARAMETER)
        paged = request.block_table is not None and like is request.key
        hidden = like.dim() == 3 if paged else "H" in request.axes
        shape = [*like.shape[:-1], heads * _ROPE_DIM if hidden else _ROPE_DIM]
        if like.dim() == 5:
            columns = _TILE_BYTES // rope.itemsize
            shape = [*like.shape[:2], _ROPE_DIM // columns, like.shape[3], columns]
        meaning = f"as {name.removesuffix('_rope')}, with head dim {_ROPE_DIM}"
        request.check.shape(name, rope, shape, meaning=meaning)


def _check_absorbed(request: FusedAttentionRequest, profile: CannProfile) -> None:
    where = f"with head dim {_ABSORBED_DIM} and query_rope"
    if request.layout not in _ABSORBED_LAYOUTS:
        allowed = ", ".join(_ABSORBED_LAYOUTS)
        raise request.check.rejected("input_layout", f"{request.layout!r} {where}", allowed)
    if request.heads not in _ABSORBED_HEADS:
        allowed = ", ".join(map(str, _ABSORBED_HEADS))
        raise request.check.rejected(request.names.heads, f"{request.heads} {where}", allowed)
    if request.kv_heads != 1:
        raise request.check.rejected("num_key_value_heads", f"{request.kv_heads} {where}", "1")
    if request.sparse_mode not in _ABSORBED_MODES:
        allowed = ", ".join(map(str, _ABSORBED_MODES))
        raise request.check.rejected("sparse_mode", f"{request.sparse_mode} {where}", allowed)
    if request.return_lse and request.names is V1_NAMES and profile.absorbed_lse == "rejected_in_v1":
        raise request.check.rejected(request.names.return_lse, f"True {where}", "False")
