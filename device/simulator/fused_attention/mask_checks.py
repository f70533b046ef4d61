"""The checks of sparse modes, masks and inner_precise.

Sources: CANN's mask checker and the tables of DOC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.layouts import spans
from npudiff.device.simulator.fused_attention.request import V1_NAMES
from npudiff.device.simulator.fused_attention.sparse_modes import COMPRESSED_MODES, TREE_MODE

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

_TEMPLATE = 2048


def check_sparse_mode(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse modes that do not exist, or not for this layout, these head dims or without a mask.

    Nothing is refused in the one-query branch, which does not look at the mode.

    Raises
    ------
    OperatorRejected
        Naming ``sparse_mode``, ``atten_mask``, ``pre_tokens`` or ``next_tokens``.
    """
    if geometry.decode:
        return
    mode, packed = request.sparse_mode, request.packed
    if mode == TREE_MODE:
        _check_tree_mode(request, geometry)
    elif not 0 <= mode <= 4:
        raise request.check.rejected("sparse_mode", mode, "0 to 4, or 9")
    if packed and mode in (1, 2):
        raise request.check.rejected("sparse_mode", f"{mode} in {request.layout}", "0 without a mask, 3 or 4")
    if packed and mode == 0 and request.mask is not None:
        raise request.check.rejected("atten_mask", f"given with sparse_mode 0 in {request.layout}", "None")
    unequal_dims_pass = packed and profile.tnd_unequal_head_dims_in_mode_4 == "accepted"
    if geometry.head_dim != geometry.value_dim and mode in (1, 4) and not unequal_dims_pass:
        given = f"{mode} with head dim {geometry.head_dim} and value {geometry.value_dim}"
        raise request.check.rejected("sparse_mode", given, "0, 2 or 3 where query and value differ in head dim")
    if mode != 0 and request.mask is None:
        raise request.check.rejected("atten_mask", f"None with sparse_mode {mode}", "a mask for every mode but 0")
    if mode == 4 or (mode == 0 and request.mask is not None):
        _check_band(request)
    if packed and mode in (3, 4):
        _check_packed_band(request, geometry, profile)


def _check_band(request: FusedAttentionRequest) -> None:
    if request.pre_tokens + request.next_tokens < 0:
        given = f"{request.pre_tokens} with next_tokens {request.next_tokens}"
        raise request.check.rejected("pre_tokens", given, "at least -next_tokens")


def _check_tree_mode(request: FusedAttentionRequest, geometry: Geometry) -> None:
    """Refuse a tree over plain 16-bit keys, in the first version, and with more queries than keys.

    CANN's feature check exempts sequences without keys, which pad a graph.
    """
    if (request.query_rope is None and not request.integer_cache) or request.names is V1_NAMES:
        allowed = "0 to 4; the tree mode has query_rope or an int8 cache, in the second version"
        raise request.check.rejected("sparse_mode", f"{TREE_MODE}", allowed)
    for span in spans(request, geometry):
        if 0 < span.key_length < span.query_length:
            given = f"sequence {span.batch} with {span.query_length} queries and {span.key_length} keys"
            raise request.check.rejected(request.names.query_lengths, given, "at most keys, with sparse_mode 9")


def _check_packed_band(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Check what DOC asks of every TND sequence; one without keys has nothing to see and is exempt."""
    for span in spans(request, geometry):
        if span.key_length == 0:
            continue
        where = f"sequence {span.batch} with {span.query_length} queries and {span.key_length} keys"
        if request.sparse_mode == 4:
            if request.pre_tokens < -span.query_length:
                raise request.check.rejected("pre_tokens", f"{request.pre_tokens} for {where}", "at least -queries")
            if request.next_tokens < -span.key_length:
                raise request.check.rejected("next_tokens", f"{request.next_tokens} for {where}", "at least -keys")
            continue
        spare = {"any": None, "at_most_keys": 0, "fewer_than_keys": 1}[profile.tnd_mode_3_queries]
        if spare is not None and span.key_length - span.query_length < spare:
            allowed = profile.tnd_mode_3_queries.replace("_", " ")
            raise request.check.rejected(request.names.query_lengths, where, f"{allowed}, in TND with sparse_mode 3")


def check_mask(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse masks of a wrong dtype or shape for the branch and mode; contents are not looked at.

    Raises
    ------
    OperatorRejected
        Naming ``atten_mask``.
    """
    mask = request.mask
    if mask is None:
        return
    if mask.dtype not in (torch.bool, torch.int8, torch.uint8):
        raise request.check.rejected("atten_mask", mask.dtype, "bool, int8 or uint8", ErrorCode.PARAMETER)
    if geometry.decode:
        _check_decode_mask(request, mask, geometry, profile)
    elif request.sparse_mode in COMPRESSED_MODES:
        shape = tuple(mask.shape)
        if shape[-2:] != (_TEMPLATE, _TEMPLATE) or len(shape) > 4 or any(size != 1 for size in shape[:-2]):
            allowed = "[2048, 2048], [1, 2048, 2048] or [1, 1, 2048, 2048]"
            raise request.check.rejected(
                "atten_mask", f"of shape {list(shape)} with sparse_mode {request.sparse_mode}", allowed
            )
    elif request.sparse_mode == TREE_MODE:
        _check_tree(request, mask, geometry)
    else:
        _check_full_mask(request, mask, geometry)


def _check_tree(request: FusedAttentionRequest, mask: Tensor, geometry: Geometry) -> None:
    """Check a tree: [B, S1, S1], or the flat squares of all sequences one after the other where they are packed."""
    shape = [geometry.batch, geometry.query_rows, geometry.query_rows]
    if request.packed:
        shape = [sum(span.query_length**2 for span in spans(request, geometry))]
    if list(mask.shape) != shape:
        given = f"of shape {list(mask.shape)} with sparse_mode {TREE_MODE}"
        raise request.check.rejected("atten_mask", given, f"{shape}, the squares of the query lengths")


def _check_decode_mask(request: FusedAttentionRequest, mask: Tensor, geometry: Geometry, profile: CannProfile) -> None:
    """Check the mask of the one-query branch: [B, S2], [B, 1, S2] or [B, 1, 1, S2], with B or 1 in front.

    A 2048 x 2048 template is not one of them; sglang #25455 met the error "atten_mask layout is BS2".
    """
    batch, keys = geometry.batch, geometry.key_rows
    shape = tuple(mask.shape)
    fits = (
        len(shape) in profile.decode_mask_ranks
        and shape[0] in (1, batch)
        and all(size == 1 for size in shape[1:-1])
        and shape[-1] >= keys
    )
    if not fits:
        forms = {2: "[B, S]", 3: "[B, 1, S]", 4: "[B, 1, 1, S]"}
        allowed = " or ".join(forms[rank] for rank in profile.decode_mask_ranks)
        sizes = f"B 1 or {batch} and S at least {keys}"
        raise request.check.rejected("atten_mask", f"of shape {list(shape)} for one query", f"{allowed}, {sizes}")


def _check_full_mask(request: FusedAttentionRequest, mask: Tensor, geometry: Geometry) -> None:
    """Check the mask of modes 0 and 1: [S1, S2], [B, S1, S2] or [B, 1, S1, S2], with B or 1 in front."""
    shape = tuple(mask.shape)
    plain = geometry.head_dim == geometry.value_dim and request.query_rope is None
    fits = (
        (len(shape) == 2 and plain)
        or (len(shape) == 3 and shape[0] in (1, geometry.batch))
        or (len(shape) == 4 and shape[0] in (1, geometry.batch) and shape[1] == 1)
    )
    if not fits or shape[-2] < geometry.query_rows or shape[-1] < geometry.key_rows:
        allowed = "[S1, S2] (equal head dims, no query_rope), [B, S1, S2] or [B, 1, S1, S2], "
        sizes = f"B 1 or {geometry.batch}, S1 at least {geometry.query_rows} and S2 at least {geometry.key_rows}"
        raise request.check.rejected("atten_mask", f"of shape {list(shape)}", allowed + sizes)


def check_inner_precise(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse values that do not exist, or not for one query or TND; otherwise only bit 1 has an effect here.

    Raises
    ------
    OperatorRejected
        Naming ``inner_precise``.
    """
    given = request.inner_precise
    if request.names.queries == "several":
        return  # the host code has chosen it
    if geometry.decode or (geometry.single and request.query_rope is not None):
        allowed = profile.inner_precise_at_query_length_one
        where = "one query"
    elif request.packed and request.query_rope is None:
        # ACLNN: only float16 without head groups may choose the fast mode.
        fast = request.query.dtype == torch.float16 and request.heads == request.kv_heads
        allowed = (0, 1) if fast else (0,)
        where = f"this dtype and head count in {request.layout}"
    else:
        allowed, where = (0, 1, 2, 3), "several queries"
    if given not in allowed:
        raise request.check.rejected("inner_precise", given, f"{', '.join(map(str, allowed))} for {where}")
