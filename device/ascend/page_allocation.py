"""How sglang's Ascend backend gives new tokens their slots: `alloc_extend` and `alloc_decode` of its allocator."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.page_allocation import PageAllocationInputs

Outputs = dict[str, torch.Tensor]


@implementation("page_allocation", on_device=True)
def alloc_extend(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """Three phases in one pass: the rest of the last page, whole new pages, the tail page."""
    return extend(inputs, room_in_last_page(inputs))


@implementation(
    "page_allocation", supports={"new_tokens": (1,), "page_size": range(2, 2**16 + 1)}, on_device=True, graph=True
)
def alloc_decode(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """A new page where the length is one past a page, else the slot after the last."""
    return decode(inputs, inputs.lengths % inputs.page_size == 1)


def room_in_last_page(inputs: PageAllocationInputs) -> torch.Tensor:
    """Tokens of each request that still fit into its last page, int64 ``[batch]``."""
    size = inputs.page_size
    return torch.minimum(inputs.lengths, -(-inputs.prefix_lengths // size) * size) - inputs.prefix_lengths


def extend(inputs: PageAllocationInputs, room: torch.Tensor) -> Outputs:
    """Slots of all new tokens, of which the first ``room`` of each request go into its last page."""
    size, counts = inputs.page_size, inputs.lengths - inputs.prefix_lengths
    pages = -(-(counts - room) // size)
    first_page = torch.cumsum(pages, 0) - pages
    request = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    index = torch.arange(len(request), device=counts.device) - (torch.cumsum(counts, 0) - counts)[request]
    beyond = (index - room[request]).clamp(min=0)
    free = torch.cat([inputs.free_pages, inputs.free_pages.new_zeros(1)])  # there may be none, and none needed
    page = free[(first_page[request] + beyond // size).clamp(max=len(free) - 1)]
    slots = torch.where(index < room[request], inputs.last_slots[request] + 1 + index, page * size + beyond % size)
    return {"slots": slots.to(torch.int32), "pages_taken": pages.sum().reshape(1)}


def decode(inputs: PageAllocationInputs, needs_page: torch.Tensor) -> Outputs:
    """Slots of one new token per request, of which some need a page."""
    free = torch.cat([inputs.free_pages, inputs.free_pages.new_zeros(1)])
    which = (torch.cumsum(needs_page, 0) - 1).clamp(min=0, max=len(free) - 1)
    slots = torch.where(needs_page, free[which] * inputs.page_size, inputs.last_slots + 1)
    return {"slots": slots.to(torch.int32), "pages_taken": needs_page.sum().reshape(1)}
