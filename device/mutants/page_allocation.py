"""Wrong slots for new tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.page_allocation import Outputs, decode, extend, room_in_last_page
from npudiff.reference.page_allocation import PageAllocationInputs

_DECODE = {"new_tokens": (1,), "page_size": range(2, 2**16 + 1)}


@npudiff.implementation(
    "page_allocation",
    name="extend_skips_partial_page",
    mutant_of="alloc_extend",
    wrong="PKV-14 https://github.com/sgl-project/sglang/issues/13065: the free tail of the last page is ignored",
)
def extend_skips_partial_page(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Extend that begins a new page although the last one has room."""
    on_device = inputs.to(target.device)
    return extend(on_device, torch.zeros_like(on_device.lengths))


@npudiff.implementation(
    "page_allocation",
    name="extend_crosses_page",
    mutant_of="alloc_extend",
    wrong="PKV-14 https://github.com/sgl-project/sglang/issues/13065: the page border is crossed without a new page",
)
def extend_crosses_page(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Extend that goes on behind the last page of a request, into another's."""
    on_device = inputs.to(target.device)
    counts = on_device.lengths - on_device.prefix_lengths
    room = room_in_last_page(on_device)
    return extend(on_device, torch.where(room > 0, counts, room))


@npudiff.implementation(
    "page_allocation",
    name="decode_new_page_late",
    supports=_DECODE,
    mutant_of="alloc_decode",
    wrong="PKV-11 https://github.com/pegainfer-project/pegainfer/issues/291: the page border is off by one",
)
def decode_new_page_late(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode that takes a new page for the last token of a page instead of the first."""
    on_device = inputs.to(target.device)
    return decode(on_device, on_device.lengths % on_device.page_size == 0)


@npudiff.implementation(
    "page_allocation",
    name="decode_last_slot_shared",
    supports=_DECODE,
    mutant_of="alloc_decode",
    wrong="PKV-15 https://github.com/sgl-project/sglang/pull/39040: the last slot is looked up one token early",
)
def decode_last_slot_shared(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode whose new token shares the slot of the last one."""
    on_device = inputs.to(target.device)
    right = decode(on_device, on_device.lengths % on_device.page_size == 1)
    shared = torch.where(on_device.lengths % on_device.page_size == 1, right["slots"], right["slots"] - 1)
    return {**right, "slots": shared}


CAPTURED = 8
"""Captured batches are multiples of it."""


@npudiff.implementation(
    "page_allocation",
    name="padded_requests_take_pages",
    supports=_DECODE,
    mutant_of="alloc_decode",
    wrong="GRF-04 https://github.com/vllm-project/vllm-ascend/pull/7460: the number of requests is that of the padded "
    "batch",
)
def padded_requests_take_pages(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Decode that takes the requests which fill a captured batch for real: their first token begins a page."""
    on_device = inputs.to(target.device)
    real = len(on_device.lengths)
    lengths = torch.nn.functional.pad(on_device.lengths, (0, -real % CAPTURED), value=1)
    last = torch.nn.functional.pad(on_device.last_slots, (0, -real % CAPTURED), value=-1)
    padded = replace(on_device, lengths=lengths, last_slots=last)
    outputs = decode(padded, lengths % on_device.page_size == 1)
    return {**outputs, "slots": outputs["slots"][:real]}
