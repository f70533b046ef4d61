"""Output shapes, and what the torch_npu wrapper refuses before it asks aclnn.

Follows op-plugin's ``FusedInferAttentionScore*`` host code and the wheel's META rules
(``op_plugin/meta/_meta_registrations.py``), which agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.axes import LAYOUTS

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile


INT4_PER_INT32 = 8
"""Elements of 4 bits that travel in one int32, the first in the lowest bits."""


def check_wrapper(request: FusedAttentionRequest) -> None:
    """Raise what the wrapper raises: head count, layout name, ranks of query and value.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    if request.heads <= 0:
        raise request.check.rejected(request.names.heads, request.heads, "greater than 0", ErrorCode.WRAPPER)
    if request.kv_heads < 0:
        raise request.check.rejected("num_key_value_heads", request.kv_heads, "0 or more", ErrorCode.WRAPPER)
    if request.layout not in LAYOUTS:
        raise request.check.rejected("input_layout", repr(request.layout), ", ".join(LAYOUTS), ErrorCode.WRAPPER)
    axes = request.axes
    query, value = request.query, request.value
    if query.dim() != len(axes):
        allowed = f"rank {len(axes)} for layout {request.layout}"
        raise request.check.rejected("query", f"of rank {query.dim()}", allowed, ErrorCode.WRAPPER)
    if request.block_table is None and value.dim() != query.dim():
        allowed = f"the query's rank {query.dim()}, without block_table"
        raise request.check.rejected("value", f"of rank {value.dim()}", allowed, ErrorCode.WRAPPER)
    if request.block_table is not None and value.dim() not in (3, 4, 5):
        allowed = "rank 3, 4 or 5 for a paged cache"
        raise request.check.rejected("value", f"of rank {value.dim()}", allowed, ErrorCode.WRAPPER)


def query_sizes(request: FusedAttentionRequest) -> dict[str, int]:
    """Return the query's sizes by axis letter: B, S, T, N, D as the layout has them.

    BSH is split with the given number of heads; NSD counts as batch 1.
    """
    axes = request.axes
    sizes = dict(zip(axes, request.query.shape, strict=True))
    if "H" in sizes:
        sizes["N"] = request.heads
        sizes["D"] = sizes.pop("H") // request.heads
    if axes == "NSD":
        sizes["B"] = 1
    return sizes


def value_head_dim(request: FusedAttentionRequest) -> int:
    """Return the head dim of the values, of a cache or of a plain tensor."""
    value = request.value
    if request.block_table is not None:
        if value.dim() == 3:
            dim = value.shape[2] // request.kv_heads
        else:
            dim = value.shape[3] if value.dim() == 4 else value.shape[2] * value.shape[4]
    elif request.axes == "BSH":
        dim = value.shape[2] // request.kv_heads
    else:
        dim = value.shape[-1]
    return dim * INT4_PER_INT32 if value.dtype == torch.int32 else dim


def output_shapes(request: FusedAttentionRequest) -> tuple[list[int], list[int]]:
    """Return the shapes of the attention output and of the log-sum-exp, had it been asked for."""
    sizes = query_sizes(request)
    # META: an empty value or query leaves the query's head dim.
    dim = value_head_dim(request)
    sizes["D"] = dim if dim and sizes["D"] else sizes["D"]
    sizes["H"] = sizes["N"] * sizes["D"]
    output = [sizes[axis] for axis in LAYOUTS[request.layout].output]
    lse = [sizes["T"], sizes["N"], 1] if "T" in sizes else [sizes["B"], sizes["N"], sizes["S"], 1]
    return output, lse


def output_dtype(request: FusedAttentionRequest) -> torch.dtype:
    """Return the dtype of the attention output."""
    if request.out_scale is not None:
        return torch.int8
    if request.query.dtype == torch.int8:
        return torch.float16 if request.query_rope is None else request.query_rope.dtype
    return request.query.dtype


def empty_outputs(request: FusedAttentionRequest, profile: CannProfile) -> tuple[Tensor, Tensor]:
    """Allocate both outputs with the operator's shapes and dtypes, on the query's device."""
    output, lse = output_shapes(request)
    attention = request.query.new_empty(output, dtype=output_dtype(request))
    if request.return_lse:
        return attention, request.query.new_empty(lse, dtype=torch.float32)
    if profile.lse_placeholder == "one_zero":
        return attention, request.query.new_zeros([1], dtype=torch.float32)
    return attention, request.query.new_empty([0], dtype=torch.float32)
