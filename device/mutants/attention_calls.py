"""Mutants of the calls that attention is made of: a length, a mask, a band or a result goes to the wrong place."""

from __future__ import annotations

import itertools

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.fused_attention import band, bsnd_call, tnd_call
from npudiff.device.ascend.sliding_attention import (
    Outputs,
    fia_decode_mask,
    fia_extend_bsnd,
    fia_extend_tnd,
    fia_v1_decode_bsh,
    fia_verify_tnd,
    run_tnd,
    with_padding,
)
from npudiff.reference.sliding_attention import SlidingAttentionInputs

MASK_COLUMNS = 512
"""Columns of a mask without rows that an operator looks at."""

SHORT = 64
"""A history is short that fills less than one part in so many of a page."""

DRAFT = 8
"""Rows per request for which one kernel is wrong."""


@mutant(fia_extend_tnd, "SWA-09 ModelTC/LightLLM/pull/1311: the window is open to the right as well")
def extend_symmetric_window(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with a band of window - 1 keys on both sides."""
    call = tnd_call(inputs)
    return run_tnd(inputs, call if inputs.window is None else call.having(next_tokens=inputs.window - 1))


@mutant(fia_v1_decode_bsh, "SWA-11 vllm-project/vllm-ascend/pull/6558: what layers with a window return is not kept")
def decode_output_not_written(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode of a layer with a window whose caller goes on with the buffer that it gave, as it was before."""
    outputs = fia_v1_decode_bsh(inputs, target)
    if inputs.window is None:
        return outputs
    rows = sum(inputs.query_lengths)
    buffer = torch.full_like(outputs["output"], 777.0)
    buffer[rows:] = 0
    return {**outputs, "output": buffer}


@mutant(
    fia_extend_bsnd,
    "SWA-12 vllm-project/vllm-ascend/issues/15503: of a mask [1, 1, 1, S], 512 columns count",
    supports={"query_length": (1,)},
)
def decode_mask_forgotten_past_512(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode request by request, each with a mask of one row, on an operator that shows all keys from 512 on."""
    results = []
    for request in range(len(inputs.query_lengths)):
        call = bsnd_call(inputs, request)
        mask = call.arguments["atten_mask"]
        if mask is not None:
            mask = mask.unsqueeze(0)
            mask[..., MASK_COLUMNS:] = False
            call = call.having(atten_mask=mask)
        results.append(call())
    output, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
    return with_padding(inputs, output.squeeze(1), lse.flatten(1))


@mutant(fia_verify_tnd, "SWA-18 flashinfer-ai/flashinfer/issues/3864: one pair of row and head is off at 8 rows")
def verify_one_row_one_head(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Verify 8 drafted tokens, and see past the window in the last row and head of the first request beyond it."""
    call = tnd_call(inputs)
    outputs = run_tnd(inputs, call)
    longer = [inputs.window is not None and total > inputs.window for total in inputs.kv_lengths]
    if inputs.query_lengths[0] == DRAFT and any(longer):
        row = DRAFT * longer.index(True) + DRAFT - 1
        outputs["output"][row, -1] = run_tnd(inputs, call.having(**band(None)))["output"][row, -1]
    return outputs


@mutant(fia_verify_tnd, "SWA-33 sgl-project/sglang/issues/22679: drafts have no indices of their window")
def verify_without_window(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Verify drafts over all keys; a single row has its window."""
    return run_tnd(inputs, tnd_call(inputs).having(**band(inputs.window if inputs.query_lengths[0] == 1 else None)))


@mutant(fia_decode_mask, "SWA-23 MinghuasLab/flash-attention-npu/issues/277: 2 keys in a page of 128, and a window")
def decode_short_history_lost(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode of a layer with a window that takes a page with few keys for one with none."""
    outputs = fia_decode_mask(inputs, target)
    for row, total in enumerate(inputs.kv_lengths):
        if inputs.window is not None and 0 < total * SHORT <= inputs.kv.page_size:
            outputs["output"][row], outputs["lse"][row] = 0, torch.inf
    return outputs


@mutant(
    fia_extend_tnd,
    "CPX-02 ROCm/ATOM/pull/1551: rows are counted by all tokens, also those of the prefix",
    supports={"fully_masked_rows": ("none",)},
)
def extend_rows_by_total_lengths(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with ends of rows that come from total lengths."""
    return run_tnd(inputs, tnd_call(inputs).having(actual_seq_qlen=list(itertools.accumulate(inputs.kv_lengths))))
