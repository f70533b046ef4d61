"""The checks of arguments whose features are not simulated.

A combination that hardware refuses is a rejection here too, although the feature is missing: otherwise a caller whose
call is wrong would read that the simulator is too small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.antiquant import ANTIQUANT_NAMES
from npudiff.device.simulator.fused_attention.full_quant import LATENT_NAMES
from npudiff.device.simulator.fused_attention.shared_prefix import LENGTH, SIDES

if TYPE_CHECKING:
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest

_PADDING = ("query_padding_size", "kv_padding_size")
_PREFIX = (*SIDES, LENGTH)


def check_extras(request: FusedAttentionRequest) -> None:
    """Refuse illegal combinations of features that are not simulated, then the features themselves.

    Raises
    ------
    OperatorRejected
        DOC or CANN's checkers exclude the combination.
    NotSimulated
        The feature was asked for legally.
    """
    if request.query.dtype == torch.int8:
        _check_int8(request)
    given = {name for name, _ in request.extras}
    if request.integer_cache and request.sink is None:
        given -= ANTIQUANT_NAMES
    if request.query.dtype == torch.int8:
        given -= {*request.names.full_quant} if request.query_rope is None else LATENT_NAMES
    if _is_single_query(request):
        # DOC: left padding of the query has no meaning for one query.
        given.discard("query_padding_size")
    if not given:
        return
    _check_prefix_pair(request, given)
    if request.block_table is not None:
        _refuse_any(request, given, (*_PADDING, *_PREFIX), "None with block_table")
    if request.query_rope is not None:
        _refuse_any(request, given, tuple(sorted(given)), "None with query_rope")
    if request.packed:
        _refuse_any(request, given, (*_PADDING, *_PREFIX), f"None in layout {request.layout}")
    if request.query.dtype in (torch.float16, torch.bfloat16):
        _refuse_any(request, given, request.names.full_quant, "None for a 16-bit query")
    if request.sink is not None:
        quantised = [name for name in given if "quant" in name]
        _refuse_any(request, given, tuple(sorted(quantised)), "None with learnable_sink")
    name = min(given)
    raise request.check.not_simulated(name, "given", "16-bit queries without padding, and prefixes with 16-bit keys")


def _check_int8(request: FusedAttentionRequest) -> None:
    """Refuse int8 queries where DOC does; full quantisation with rope is another matter."""
    if request.query_rope is not None:
        return
    if request.block_table is not None:
        raise request.check.rejected("query", "int8 with block_table", "float16 or bfloat16", ErrorCode.PARAMETER)
    if _is_single_query(request):
        raise request.check.rejected("query", "int8 with one query", "float16 or bfloat16", ErrorCode.PARAMETER)
    if request.sink is not None:
        raise request.check.rejected("learnable_sink", "given with an int8 query", "a 16-bit query")


def _is_single_query(request: FusedAttentionRequest) -> bool:
    if request.packed or request.query_rope is not None:
        return False
    return request.query.shape[request.axes.index("S")] == 1


def _check_prefix_pair(request: FusedAttentionRequest, given: set[str]) -> None:
    present = [name for name in _PREFIX[:2] if name in given]
    if len(present) == 1:
        missing = _PREFIX[0] if present == [_PREFIX[1]] else _PREFIX[1]
        raise request.check.rejected(missing, "None", f"given together with {present[0]}")


def _refuse_any(request: FusedAttentionRequest, given: set[str], names: tuple[str, ...], allowed: str) -> None:
    for name in names:
        if name in given:
            raise request.check.rejected(name, "given", allowed)
