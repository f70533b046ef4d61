"""Wrong kernels of page_allocation; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "page_allocation"


def _allocated(inputs, free=None, *, begins=None, number=None, tail_page=False):
    """Slots and pages taken, token by token; pages are numbers of ``free``."""
    free = inputs.free_pages.tolist() if free is None else free
    size, slots, taken = inputs.page_size, [], 0
    begins = begins or (lambda position: position % size == 0)
    number = number or (lambda page: page * size)
    for prefix, length, slot in zip(
        inputs.prefix_lengths.tolist(), inputs.lengths.tolist(), inputs.last_slots.tolist(), strict=True
    ):
        if tail_page and prefix % size and prefix // size == (length - 1) // size:
            slot, taken = number(free[min(taken, len(free) - 1)]) - 1 if free else slot, taken + 1
        for position in range(prefix, length):
            if begins(position):
                slot, taken = number(free[min(taken, len(free) - 1)]), taken + 1
            else:
                slot += 1
            slots.append(slot)
    return {
        "slots": torch.tensor(slots, dtype=torch.int32),
        "pages_taken": torch.tensor([taken], dtype=torch.int64),
    }


@npudiff.implementation(NAME, name="c_page_allocation_01_sorts_before_taking", on_device=True)
def c01(inputs, target):
    """Free pages are sorted before they are taken, as after a merge of released ones, and not taken in their order."""
    free = inputs.free_pages.tolist()
    return _allocated(inputs, sorted(free) if WRONG else free)


@npudiff.implementation(NAME, name="c_page_allocation_02_tail_without_a_new_page", on_device=True)
def c02(inputs, target):
    """Tokens that all fit into the last page are taken for a tail, and get a page of their own."""
    return _allocated(inputs, tail_page=WRONG)


@npudiff.implementation(NAME, name="c_page_allocation_03_remainder_one", on_device=True)
def c03(inputs, target):
    """A decode takes a page where the length leaves a remainder of 1, which it never does in pages of one token."""
    decode = bool((inputs.lengths - inputs.prefix_lengths == 1).all())
    if not (decode and WRONG):
        return _allocated(inputs)
    return _allocated(inputs, begins=lambda position: (position + 1) % inputs.page_size == 1)


@npudiff.implementation(NAME, name="c_page_allocation_04_slots_in_float32", on_device=True)
def c04(inputs, target):
    """The vector unit multiplies pages and page size as float32, which has no odd numbers beyond 2**24."""
    kind = torch.float32 if WRONG else torch.float64
    result = _allocated(inputs)
    return {**result, "slots": result["slots"].to(kind).to(torch.int32)}
