"""``npu_prompt_flash_attention`` and ``npu_incre_flash_attention``: the two branches of fused attention by themselves.

The first has several queries per sequence, or one that is treated like several, the second exactly one. Both return
attention alone. Source: their host code in op-plugin (``FlashAttentionKernelNpuOpApi.cpp``) and documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.request import ArgumentNames, FusedAttentionRequest, normalise
from npudiff.device.simulator.fused_attention.shapes import check_wrapper

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_NAMES = ArgumentNames(
    heads="num_heads",
    scale="scale_value",
    query_lengths="actual_seq_lengths",
    key_lengths="actual_seq_lengths_kv",
    return_lse="",
    out_scale="quant_scale2",
    out_offset="quant_offset2",
    full_quant=("deq_scale1", "quant_scale1", "deq_scale2"),
    queries="several",
    halves=True,
)

INCREMENTAL_NAMES = ArgumentNames(
    heads="num_heads",
    scale="scale_value",
    query_lengths="",
    key_lengths="actual_seq_lengths",
    return_lse="",
    out_scale="quant_scale2",
    out_offset="quant_offset2",
    full_quant=("dequant_scale1", "quant_scale1", "dequant_scale2"),
    queries="one",
)

_LAYOUTS = {"several": ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND"), "one": ("BSH", "BSND", "BNSD")}
_EXACT = 10
_LAST_MODE = 4


def normalise_prompt(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> FusedAttentionRequest:  # noqa: ANN401 - those of the schema
    """Translate the arguments of ``npu_prompt_flash_attention``; nothing is checked.

    Sparse modes 10 to 14 are 0 to 4 with ``inner_precise`` 0, and the others have 1, as the host code says.
    """
    mode = arguments.get("sparse_mode", 0)
    exact = _EXACT <= mode <= _EXACT + _LAST_MODE
    translated = {
        "next_tokens": 0,
        **arguments,
        "sparse_mode": mode - _EXACT if exact else mode,
        "inner_precise": 0 if exact else 1,
    }
    return normalise("npu_prompt_flash_attention", PROMPT_NAMES, query, value, key, **translated)


def normalise_incremental(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> FusedAttentionRequest:  # noqa: ANN401 - those of the schema
    """Translate the arguments of ``npu_incre_flash_attention``; nothing is checked."""
    return normalise(
        "npu_incre_flash_attention", INCREMENTAL_NAMES, query, value, key, **{"inner_precise": 1, **arguments}
    )


def check_branch(request: FusedAttentionRequest) -> None:
    """Refuse layouts, modes and numbers of queries that only the other branch has, or neither.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    """
    if not request.layout:
        words = "input_layout is empty"
        raise request.check.rejected("input_layout", "''", "a layout", ErrorCode.WRAPPER, words)
    check_wrapper(request)
    request.check.choice("input_layout", request.layout, _LAYOUTS[request.names.queries])
    request.check.between("sparse_mode", request.sparse_mode, 0, _LAST_MODE)
    if request.names.queries == "one" and request.query.shape[request.axes.index("S")] != 1:
        given = f"of shape {list(request.query.shape)} in {request.layout}"
        raise request.check.rejected("query", given, "one query per sequence")
