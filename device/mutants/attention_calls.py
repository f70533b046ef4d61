"""Mutants of the calls that attention is made of: a length, a mask, a band or a result goes to the wrong place."""

from __future__ import annotations

import itertools

import torch

import npudiff
from npudiff import Target
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


@npudiff.implementation(
    "sliding_attention",
    name="extend_symmetric_window",
    supports=fia_extend_tnd.constraints.boxes,
    mutant_of="fia_extend_tnd",
    wrong="SWA-09 https://github.com/ModelTC/LightLLM/pull/1311: the window is open to the right as well",
)
def extend_symmetric_window(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with a band of window - 1 keys on both sides."""
    on_device = inputs.to(target.device)
    call = tnd_call(on_device)
    return run_tnd(on_device, call if inputs.window is None else call.having(next_tokens=inputs.window - 1))


@npudiff.implementation(
    "sliding_attention",
    name="decode_output_not_written",
    supports=fia_v1_decode_bsh.constraints.boxes,
    mutant_of="fia_v1_decode_bsh",
    wrong="SWA-11 https://github.com/vllm-project/vllm-ascend/pull/6558: what layers with a window return is not kept",
)
def decode_output_not_written(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode of a layer with a window whose caller goes on with the buffer that it gave, as it was before."""
    outputs: Outputs = fia_v1_decode_bsh(inputs, target)
    if inputs.window is None:
        return outputs
    rows = sum(inputs.query_lengths)
    buffer = torch.full_like(outputs["output"], 777.0)
    buffer[rows:] = 0
    return {**outputs, "output": buffer}


@npudiff.implementation(
    "sliding_attention",
    name="decode_mask_forgotten_past_512",
    supports=[{**box, "query_length": (1,)} for box in fia_extend_bsnd.constraints.boxes],
    mutant_of="fia_extend_bsnd",
    wrong="SWA-12 https://github.com/vllm-project/vllm-ascend/issues/15503: of a mask [1, 1, 1, S], 512 columns count",
)
def decode_mask_forgotten_past_512(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode request by request, each with a mask of one row, on an operator that shows all keys from 512 on."""
    on_device = inputs.to(target.device)
    results = []
    for request in range(len(inputs.query_lengths)):
        call = bsnd_call(on_device, request)
        mask = call.arguments["atten_mask"]
        if mask is not None:
            mask = mask.unsqueeze(0)
            mask[..., MASK_COLUMNS:] = False
            call = call.having(atten_mask=mask)
        results.append(call())
    output, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
    return with_padding(on_device, output.squeeze(1), lse.flatten(1))


@npudiff.implementation(
    "sliding_attention",
    name="verify_one_row_one_head",
    supports=fia_verify_tnd.constraints.boxes,
    mutant_of="fia_verify_tnd",
    wrong="SWA-18 https://github.com/flashinfer-ai/flashinfer/issues/3864: one pair of row and head is off at 8 rows",
)
def verify_one_row_one_head(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Verify 8 drafted tokens, and see past the window in the last row and head of the first request beyond it."""
    on_device = inputs.to(target.device)
    call = tnd_call(on_device)
    outputs = run_tnd(on_device, call)
    longer = [inputs.window is not None and total > inputs.window for total in inputs.kv_lengths]
    if inputs.query_lengths[0] == DRAFT and any(longer):
        row = DRAFT * longer.index(True) + DRAFT - 1
        outputs["output"][row, -1] = run_tnd(on_device, call.having(**band(None)))["output"][row, -1]
    return outputs


@npudiff.implementation(
    "sliding_attention",
    name="verify_without_window",
    supports=fia_verify_tnd.constraints.boxes,
    mutant_of="fia_verify_tnd",
    wrong="SWA-33 https://github.com/sgl-project/sglang/issues/22679: drafts have no indices of their window",
)
def verify_without_window(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Verify drafts over all keys; a single row has its window."""
    on_device = inputs.to(target.device)
    return run_tnd(
        on_device, tnd_call(on_device).having(**band(inputs.window if inputs.query_lengths[0] == 1 else None))
    )


@npudiff.implementation(
    "sliding_attention",
    name="decode_short_history_lost",
    supports=fia_decode_mask.constraints.boxes,
    mutant_of="fia_decode_mask",
    wrong="SWA-23 https://github.com/MinghuasLab/flash-attention-npu/issues/277: 2 keys in a page of 128, and a window",
)
def decode_short_history_lost(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Decode of a layer with a window that takes a page with few keys for one with none."""
    outputs: Outputs = fia_decode_mask(inputs, target)
    for row, total in enumerate(inputs.kv_lengths):
        if inputs.window is not None and 0 < total * SHORT <= inputs.kv.page_size:
            outputs["output"][row], outputs["lse"][row] = 0, torch.inf
    return outputs


@npudiff.implementation(
    "sliding_attention",
    name="extend_rows_by_total_lengths",
    supports=[{**box, "fully_masked_rows": ("none",)} for box in fia_extend_tnd.constraints.boxes],
    mutant_of="fia_extend_tnd",
    wrong="CPX-02 https://github.com/ROCm/ATOM/pull/1551: rows are counted by all tokens, also those of the prefix",
)
def extend_rows_by_total_lengths(inputs: SlidingAttentionInputs, target: Target) -> Outputs:
    """Extend with ends of rows that come from total lengths."""
    on_device = inputs.to(target.device)
    return run_tnd(on_device, tnd_call(on_device).having(actual_seq_qlen=list(itertools.accumulate(inputs.kv_lengths))))
