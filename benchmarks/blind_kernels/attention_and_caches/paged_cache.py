"""Wrong kernels of paged_cache; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def addresses(inputs, page, offset, heads, dim, pages, strip=None):
    """Flat place of every element, int64 [tokens, heads, dim]."""
    size = inputs.page_size
    page, offset = page[:, None, None], offset[:, None, None]
    head, column = torch.arange(heads)[:, None], torch.arange(dim)
    if inputs.layout == "PA_BSND":
        return ((page * size + offset) * heads + head) * dim + column
    if inputs.layout == "PA_BNSD":
        return ((page * heads + head) * size + offset) * dim + column
    across = head * dim + column
    return ((page * (heads * dim // strip) + across // strip) * size + offset) * strip + across % strip


def write(inputs, slots=None, *, place=None, strip=None, rows=None, columns=None, where=None):
    """Write at all slots but negative ones; each argument is one step of it that a kernel may do differently."""
    slots = inputs.slots.long() if slots is None else slots
    kept = slots >= 0
    if where is not None:
        kept = where(slots)
    results = {}
    for name in ("key", "value"):
        cache = getattr(inputs, name + "_cache")
        states = getattr(inputs, name)
        states = states if rows is None else rows(states)
        tokens, heads, dim = states.shape
        page, offset = (slots // inputs.page_size, slots % inputs.page_size) if place is None else place(slots)
        width = 32 // cache.element_size() if strip is None else strip
        to = addresses(inputs, page[kept], offset[kept], heads, dim, cache.shape[0], width)
        given = states[kept]
        if columns is not None:
            to, given = to[..., :columns(dim)], given[..., :columns(dim)]
        flat = cache.view(-1)
        flat[to.clamp(0, len(flat) - 1)] = given
        results[name + "_cache"] = cache
    return results


@npudiff.implementation("paged_cache", name="b_paged_cache_01_strips_of_16", on_device=True)
def b01(inputs, target):
    """NZ strips have 16 elements, also of int8."""
    return write(inputs, strip=16 if WRONG else None)


@npudiff.implementation("paged_cache", name="b_paged_cache_02_contiguous_by_ends", on_device=True)
def b02(inputs, target):
    """One copy where the last slot is as far from the first as there are tokens."""
    slots = inputs.slots.long()
    count = len(slots)
    if WRONG and count > 1 and int(slots[0]) >= 0 and int(slots[-1] - slots[0]) == count - 1:
        slots = int(slots[0]) + torch.arange(count)
    return write(inputs, slots)


@npudiff.implementation("paged_cache", name="b_paged_cache_03_negative_slot_wraps", on_device=True)
def b03(inputs, target):
    """A slot of -1 is an index from behind."""
    slots = inputs.slots.long()
    if WRONG:
        pages = inputs.key_cache.shape[0]
        slots = torch.where(slots < 0, slots + pages * inputs.page_size, slots)
    return write(inputs, slots)


@npudiff.implementation("paged_cache", name="b_paged_cache_04_whole_chunks_of_a_head", on_device=True)
def b04(inputs, target):
    """Heads are copied in chunks of 64 elements, rounded down; a head of fewer is one chunk."""
    return write(inputs, columns=(lambda dim: dim // 64 * 64 if dim > 64 else dim) if WRONG else None)


@npudiff.implementation("paged_cache", name="b_paged_cache_05_heads_outside", on_device=True)
def b05(inputs, target):
    """Caches of PA_BNSD are addressed as PA_BSND."""
    if WRONG and inputs.layout == "PA_BNSD":
        slots = inputs.slots.long()
        kept = slots >= 0
        for name in ("key", "value"):
            cache, rows = getattr(inputs, name + "_cache"), getattr(inputs, name)
            cache.view(-1, *rows.shape[1:])[slots[kept]] = rows[kept]
        return {"key_cache": inputs.key_cache, "value_cache": inputs.value_cache}
    return write(inputs)


@npudiff.implementation("paged_cache", name="b_paged_cache_06_rows_one_after_the_other", on_device=True)
def b06(inputs, target):
    """New keys and values are read as if their tokens lay one after the other."""

    def rows(states):
        tokens, heads, dim = states.shape
        return states.as_strided(states.shape, (heads * dim, dim, 1)) if WRONG and states.numel() else states

    return write(inputs, rows=rows)


@npudiff.implementation("paged_cache", name="b_paged_cache_07_slot_0_is_padding", on_device=True)
def b07(inputs, target):
    """Tokens for slot 0 are padding, and need not be written."""
    return write(inputs, where=(lambda slots: slots > 0) if WRONG else None)


@npudiff.implementation("paged_cache", name="b_paged_cache_08_cores_take_equal_tokens", on_device=True)
def b08(inputs, target):
    """Tokens are divided among 40 cores; the rest is dropped where there are more tokens than cores."""
    count, cores = len(inputs.slots), 40
    last = count // cores * cores if WRONG and count > cores else count
    return write(inputs, where=lambda slots: (slots >= 0) & (torch.arange(count) < last))


@npudiff.implementation("paged_cache", name="b_paged_cache_09_division_by_magic_number", on_device=True)
def b09(inputs, target):
    """The page of a slot is a product with a magic number and a shift by 16 bits."""

    def place(slots):
        size = inputs.page_size
        page = slots * -(-65536 // size) >> 16 if WRONG else slots // size
        page = page.clamp(max=inputs.key_cache.shape[0] - 1)
        return page, (slots - page * size).clamp(0, size - 1) if WRONG else slots - page * size

    return write(inputs, place=place)


@npudiff.implementation("paged_cache", name="b_paged_cache_10_opened_page_cleared", on_device=True)
def b10(inputs, target):
    """Whole pages are cleared when their first slot is written, so that no stale token is left in them."""
    slots = inputs.slots.long()
    if WRONG:
        opened = slots[(slots > 0) & (slots % inputs.page_size == 0)] // inputs.page_size
        for cache in (inputs.key_cache, inputs.value_cache):
            cache[opened] = 0
    return write(inputs)
