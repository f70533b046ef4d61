"""Wrong slots for new tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.page_allocation import Outputs, alloc_decode, alloc_extend, decode, extend, room_in_last_page
from npudiff.reference.page_allocation import PageAllocationInputs

_DECODE = {"new_tokens": (1,), "page_size": range(2, 2**16 + 1)}


@mutant(alloc_extend, "PKV-14 sgl-project/sglang/issues/13065: the free tail of the last page is ignored")
def extend_skips_partial_page(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Extend that begins a new page although the last one has room."""
    return extend(inputs, torch.zeros_like(inputs.lengths))


@mutant(alloc_extend, "PKV-14 sgl-project/sglang/issues/13065: the page border is crossed without a new page")
def extend_crosses_page(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Extend that goes on behind the last page of a request, into another's."""
    counts = inputs.lengths - inputs.prefix_lengths
    room = room_in_last_page(inputs)
    return extend(inputs, torch.where(room > 0, counts, room))


@mutant(alloc_decode, "PKV-11 pegainfer-project/pegainfer/issues/291: the page border is off by one")
def decode_new_page_late(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode that takes a new page for the last token of a page instead of the first."""
    return decode(inputs, inputs.lengths % inputs.page_size == 0)


@mutant(alloc_decode, "PKV-15 sgl-project/sglang/pull/39040: the last slot is looked up one token early")
def decode_last_slot_shared(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode whose new token shares the slot of the last one."""
    right = decode(inputs, inputs.lengths % inputs.page_size == 1)
    shared = torch.where(inputs.lengths % inputs.page_size == 1, right["slots"], right["slots"] - 1)
    return {**right, "slots": shared}


CAPTURED = 8
"""Captured batches are multiples of it."""


@mutant(alloc_decode, "GRF-04 vllm-project/vllm-ascend/pull/7460: the number of requests is that of the padded batch")
def padded_requests_take_pages(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode that takes the requests which fill a captured batch for real: their first token begins a page."""
    real = len(inputs.lengths)
    lengths = torch.nn.functional.pad(inputs.lengths, (0, -real % CAPTURED), value=1)
    last = torch.nn.functional.pad(inputs.last_slots, (0, -real % CAPTURED), value=-1)
    padded = replace(inputs, lengths=lengths, last_slots=last)
    outputs = decode(padded, lengths % inputs.page_size == 1)
    return {**outputs, "slots": outputs["slots"][:real]}
