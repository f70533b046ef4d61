"""Allocation of slots in sglang: ``hardware_backend/npu/allocator_npu.py`` and ``mem_cache/allocator/paged.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.allocator_npu import NPUPagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator import alloc_extend_naive

from npudiff import Target, implementation
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.page_allocation import PageAllocationInputs

Outputs = dict[str, torch.Tensor]

_PAGES: Box = {"page_size": (16, 32, 64, 128, 256)}
"""Pages that ``--page-size`` gives attention of this backend; one token per page has another allocator."""


def _allocator(inputs: PageAllocationInputs) -> NPUPagedTokenToKVPoolAllocator:
    """Build the allocator of a pool in which these pages are free, in their order."""
    configured()
    free = inputs.free_pages
    size = (int(free.max()) if len(free) else 1) * inputs.page_size
    made = NPUPagedTokenToKVPoolAllocator(size, inputs.page_size, torch.bfloat16, DEVICE, None, False)
    made.free_pages = free
    return made


def _outputs(inputs: PageAllocationInputs, slots: torch.Tensor, left: int) -> Outputs:
    taken = torch.tensor([len(inputs.free_pages) - left], dtype=torch.int64)
    return {"slots": slots, "pages_taken": taken}


@implementation("page_allocation", name="alloc_extend", supports=_PAGES, on_device=True)
def alloc_extend(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """NPUPagedTokenToKVPoolAllocator.alloc_extend: a Triton kernel where fewer than 200 pages are new."""
    allocator = _allocator(inputs)
    prefix, lengths = inputs.prefix_lengths, inputs.lengths
    count = int((lengths - prefix).sum())
    slots = allocator.alloc_extend(prefix, prefix.cpu(), lengths, lengths.cpu(), inputs.last_slots, count)
    return _outputs(inputs, slots, len(allocator.free_pages))


@implementation("page_allocation", name="alloc_extend_naive", supports=_PAGES, on_device=True)
def extend_naive(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """alloc_extend_naive, in plain torch."""
    configured()
    size, prefix, lengths = inputs.page_size, inputs.prefix_lengths, inputs.lengths
    slots = torch.empty(int((lengths - prefix).sum()), dtype=torch.int32, device=DEVICE)
    alloc_extend_naive(prefix, lengths, inputs.last_slots, inputs.free_pages, slots, size, DEVICE)
    return {"slots": slots}


@implementation("page_allocation", name="alloc_decode", supports={**_PAGES, "new_tokens": (1,)}, on_device=True)
def alloc_decode(inputs: PageAllocationInputs, target: Target) -> Outputs:
    """NPUPagedTokenToKVPoolAllocator.alloc_decode."""
    allocator = _allocator(inputs)
    slots = allocator.alloc_decode(inputs.lengths, inputs.lengths.cpu(), inputs.last_slots)
    return _outputs(inputs, slots, len(allocator.free_pages))
