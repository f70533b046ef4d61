"""Wrong kernels of paged_cache; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "paged_cache"


def _flat(cache, layout, page_size, heads, dim, page, offset):
    """Addresses of tokens in a flattened cache, int64 [tokens, heads, dim]."""
    page, offset = page[:, None, None], offset[:, None, None]
    head, column = torch.arange(heads)[:, None], torch.arange(dim)
    if layout == "PA_BSND":
        return ((page * page_size + offset) * heads + head) * dim + column
    if layout == "PA_BNSD":
        return ((page * heads + head) * page_size + offset) * dim + column
    width = cache.shape[-1]
    across = head * dim + column
    return ((page * cache.shape[1] + across // width) * page_size + offset) * width + across % width


def _written(inputs, slots=None, split=None, join=None):
    """Both caches after the write; slots that are negative are skipped."""
    slots = (inputs.slots if slots is None else slots).to(torch.int64)
    size, result = inputs.page_size, {}
    split = split or (lambda slot: (slot // size, slot % size))
    for name, rows in (("key_cache", inputs.key), ("value_cache", inputs.value)):
        cache = getattr(inputs, name).clone().contiguous()
        kept = slots >= 0
        page, offset = split(slots[kept])
        address = _flat(cache, inputs.layout, size, *rows.shape[1:], page, offset).flatten()
        flat, new = cache.view(-1), rows[kept].flatten()
        inside = (address >= 0) & (address < flat.numel())
        address, new = address[inside], new[inside]
        flat[address] = new if join is None else join(flat[address], new)
        result[name] = cache
    return result


@npudiff.implementation(NAME, name="c_paged_cache_01_low_words_of_slots", on_device=True)
def c01(inputs, target):
    """Slots are read as int32 whatever they are: of int64 ones, every second number is the upper half of one."""
    slots = inputs.slots
    if WRONG and slots.dtype == torch.int64:
        slots = slots.contiguous().view(torch.int32)[: len(slots)]
        taken = set()
        kept = [slot if slot < 1 or not (slot in taken or taken.add(slot)) else -1 for slot in slots.tolist()]
        slots = torch.tensor(kept, dtype=torch.int64)
    return _written(inputs, slots)


@npudiff.implementation(NAME, name="c_paged_cache_02_ends_at_the_first_skipped", on_device=True)
def c02(inputs, target):
    """Tokens behind the first with slot -1 are taken for padding."""
    slots = inputs.slots.to(torch.int64)
    if WRONG:
        slots = torch.where((slots < 0).cumsum(0) > 0, -1, slots)
    return _written(inputs, slots)


@npudiff.implementation(NAME, name="c_paged_cache_03_pages_by_shift", on_device=True)
def c03(inputs, target):
    """Page and offset of a slot are found by a shift and a mask, as if page sizes were powers of two."""
    size = inputs.page_size
    bits = size.bit_length() - 1
    if not WRONG:
        return _written(inputs)
    pages = inputs.key_cache.shape[0]
    return _written(inputs, split=lambda slot: ((slot >> bits).clamp(max=pages - 1), slot & ((1 << bits) - 1)))


@npudiff.implementation(NAME, name="c_paged_cache_04_run_by_its_ends", on_device=True)
def c04(inputs, target):
    """Eight tokens whose first and last slot are seven apart are written as one run, whatever lies between."""
    slots = inputs.slots.to(torch.int64).clone()
    for first in range(0, len(slots) - 7, 8):
        part = slots[first : first + 8]
        run = part[0] + torch.arange(8)
        if part[0] >= 0 and part[7] - part[0] == 7 and (WRONG or bool((part == run).all())):
            slots[first : first + 8] = run
    return _written(inputs, slots)


@npudiff.implementation(NAME, name="c_paged_cache_05_blended_by_a_mask", on_device=True)
def c05(inputs, target):
    """Inside a graph the write is ``cache * (1 - mask) + new * mask``: what a slot held before stays if it is not finite,
    and a negative zero becomes a positive one."""

    def join(old, new):
        return old * 0 + new if WRONG and old.is_floating_point() else new

    return _written(inputs, join=join)
