"""Calls of the fused attention operators: the arguments that a backend passes, as data that can be looked at.

Sources of the call paths: sglang 0.5.23, ``hardware_backend/npu/attention/ascend_backend.py``, with the lines given at
each function. Where the backend itself relies on something that the operator does not promise, the adapter does what
is documented, and says so.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from npudiff.device.ascend.swa_mask import window_mask
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

NO_LIMIT = 2**31 - 1
"""``pre_tokens`` or ``next_tokens`` that limit nothing."""

COMPRESSED_MASK_SIZE = 2048
"""Side of the mask that sparse modes 2, 3 and 4 ask for, whatever the lengths are."""


@dataclass(frozen=True)
class FusedCall:
    """One call of a fused attention operator."""

    operator: str
    """Name in ``torch.ops.npu``."""
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    """Positional arguments, on the device."""
    arguments: Mapping[str, Any]
    """Keyword arguments."""

    def having(self, **changes: Any) -> FusedCall:  # noqa: ANN401 - operator arguments of many types
        """Return the same call with some keyword arguments changed."""
        return replace(self, arguments={**self.arguments, **changes})

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return attention output and LSE in the layout of the call."""
        operator = getattr(torch.ops.npu, self.operator)
        output, lse = operator(self.query, self.key, self.value, **self.arguments)
        return output, lse


def compressed_mask(device: str, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """Build the 2048 x 2048 mask of sparse modes 2, 3 and 4: ones above the diagonal are hidden.

    Each call has its own: an operator that wrote into one that is kept would spoil the cases after.
    """
    return _upper_triangle(device, dtype).clone()


@functools.cache
def _upper_triangle(device: str, dtype: torch.dtype) -> torch.Tensor:
    """It is the largest tensor of a small call; a copy costs a fifteenth of building it."""
    return torch.ones(COMPRESSED_MASK_SIZE, COMPRESSED_MASK_SIZE, dtype=dtype, device=device).triu(1)


def cache_views(pool: PagedKV) -> tuple[torch.Tensor, torch.Tensor]:
    """View a pool as the operator wants it: ``[pages, page_size, kv_heads * dim]``, or NZ pages as they are."""
    if pool.layout == "PA_NZ":
        return pool.key, pool.value
    return pool.key.flatten(2), pool.value.flatten(2)


def real_rows(inputs: SlidingAttentionInputs) -> torch.Tensor:
    """Query rows without the padding, which TND calls must not contain (their last length is the row count)."""
    return inputs.query[: sum(inputs.query_lengths)]


def band(window: int | None) -> dict[str, int]:
    """Sparse mode and its limits: a band of ``window`` keys that ends at the query's own, or plain causality."""
    if window is None:
        return {"sparse_mode": 3, "pre_tokens": NO_LIMIT, "next_tokens": NO_LIMIT}
    return {"sparse_mode": 4, "pre_tokens": window - 1, "next_tokens": 0}


def tnd_call(inputs: SlidingAttentionInputs) -> FusedCall:
    """FIA v2 with ragged rows (ascend_backend.py 1736-1797 for extend, 2552-2580 for multi-token decode).

    Query lengths are cumulative; KV lengths are per request, because the cache is paged.
    """
    key, value = cache_views(inputs.kv)
    arguments = {
        "input_layout": "TND",
        "actual_seq_qlen": list(itertools.accumulate(inputs.query_lengths)),
        "actual_seq_kvlen": list(inputs.kv_lengths),
        "atten_mask": compressed_mask(str(inputs.query.device)),
        "block_table": inputs.kv.block_table,
        "block_size": inputs.kv.page_size,
        "num_query_heads": inputs.query.shape[1],
        "num_key_value_heads": inputs.kv.kv_heads,
        "softmax_scale": inputs.scale,
        "learnable_sink": inputs.sinks,
        "return_softmax_lse": True,
        **band(inputs.window),
    }
    return FusedCall("npu_fused_infer_attention_score_v2", real_rows(inputs), key, value, arguments)


def graph_decode_call(inputs: SlidingAttentionInputs) -> FusedCall:
    """FIA v2 TND with one row per request, as captured for graph decode (2846-2911).

    The backend passes ``next_tokens`` without limit, since nothing lies after the newest key, and an int8 mask. Whether
    the band holds at query length 1 in this layout is not documented; the simulator's profiles say what they assume.
    """
    mask = compressed_mask(str(inputs.query.device), torch.int8)
    return tnd_call(inputs).having(next_tokens=NO_LIMIT, atten_mask=mask)


def bsnd_call(inputs: SlidingAttentionInputs, request: int) -> FusedCall:
    """FIA v2 for the rows of one request (1798-1845).

    At query length 1 the operator ignores the band and the sparse mode, so the window is passed as a mask there; the
    backend passes the band regardless.
    """
    start = sum(inputs.query_lengths[:request])
    length, total = inputs.query_lengths[request], inputs.kv_lengths[request]
    key, value = cache_views(inputs.kv)
    table = inputs.kv.block_table[request : request + 1]
    arguments = {
        "input_layout": "BSND",
        "actual_seq_qlen": [length],
        "actual_seq_kvlen": [total],
        "atten_mask": compressed_mask(str(inputs.query.device)).unsqueeze(0),
        "block_table": table,
        "block_size": inputs.kv.page_size,
        "num_query_heads": inputs.query.shape[1],
        "num_key_value_heads": inputs.kv.kv_heads,
        "softmax_scale": inputs.scale,
        "return_softmax_lse": True,
        **band(inputs.window),
    }
    query = inputs.query[start : start + length].unsqueeze(0)
    call = FusedCall("npu_fused_infer_attention_score_v2", query, key, value, arguments)
    return call.having(**decode_mask(inputs, [request])) if length == 1 else call


def decode_mask(inputs: SlidingAttentionInputs, requests: list[int]) -> dict[str, Any]:
    """Mask arguments of a decode: the mask alone makes the window, whatever the sparse mode says (3168-3218)."""
    if inputs.window is None:
        return {"atten_mask": None, "sparse_mode": 0}
    lengths = torch.tensor([inputs.kv_lengths[i] for i in requests], dtype=torch.int32, device=inputs.query.device)
    capacity = inputs.kv.block_table.shape[1] * inputs.kv.page_size
    return {"atten_mask": window_mask(lengths, capacity, inputs.window)}


def decode_call(inputs: SlidingAttentionInputs) -> FusedCall:
    """FIA v2 BSND with one row per request and a mask for the window: eager decode (3168-3218)."""
    batch = len(inputs.query_lengths)
    key, value = cache_views(inputs.kv)
    arguments = {
        "input_layout": "BSND",
        "actual_seq_qlen": [1] * batch,
        "actual_seq_kvlen": list(inputs.kv_lengths),
        "block_table": inputs.kv.block_table,
        "block_size": inputs.kv.page_size,
        "num_query_heads": inputs.query.shape[1],
        "num_key_value_heads": inputs.kv.kv_heads,
        "softmax_scale": inputs.scale,
        "return_softmax_lse": True,
        **band(inputs.window),
        **decode_mask(inputs, list(range(batch))),
    }
    return FusedCall("npu_fused_infer_attention_score_v2", real_rows(inputs).unsqueeze(1), key, value, arguments)
