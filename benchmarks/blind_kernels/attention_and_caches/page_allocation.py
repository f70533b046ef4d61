"""Wrong kernels of page_allocation; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


class Allocator:
    """Room in last pages, new pages of each request by a prefix sum, slots; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.size = inputs, inputs.page_size
        self.counts = inputs.lengths - inputs.prefix_lengths
        self.room = self.rest()
        self.free = inputs.free_pages
        self.pages = self.new_pages()

    def rest(self):
        """Tokens that still fit in the last page of each request, as far as they are needed."""
        rest = -self.inputs.prefix_lengths % self.size
        return torch.minimum(rest, self.counts)

    def new_pages(self):
        return -(-(self.counts - self.room) // self.size)

    def first_pages(self):
        return torch.cumsum(self.pages, 0) - self.pages

    def taken(self, index):
        if not len(self.free):
            return torch.zeros_like(index)
        return self.free[index.clamp(max=len(self.free) - 1)]

    def page(self, first, count):
        """The pages with these numbers among those that a request takes, which begin with its first."""
        return self.taken(first + count)

    def run(self):
        slots, firsts = [], self.first_pages()
        for request in range(len(self.counts)):
            room, new = int(self.room[request]), int(self.counts[request])
            old = int(self.inputs.last_slots[request]) + 1 + torch.arange(room)
            beyond = torch.arange(new - room)
            fresh = self.page(firsts[request], beyond // self.size) * self.size + beyond % self.size
            slots += [old, fresh]
        joined = torch.cat(slots) if slots else torch.zeros(0)
        return {"slots": joined.to(torch.int32), "pages_taken": self.pages.sum().reshape(1)}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("page_allocation", name=name, on_device=True)(run)

    return register


@kernel("b_page_allocation_01_full_page_has_room")
class FullHasRoom(Allocator):
    """A prefix of whole pages leaves room for a page: size - prefix % size."""

    def rest(self):
        if not WRONG:
            return super().rest()
        prefix = self.inputs.prefix_lengths
        rest = torch.where(prefix > 0, self.size - prefix % self.size, 0)
        return torch.minimum(rest, self.counts)


@kernel("b_page_allocation_02_pages_of_new_tokens")
class PagesOfNew(Allocator):
    """What is taken is a page for each page size of new tokens, as if no page had room."""

    def new_pages(self):
        return -(-self.counts // self.size) if WRONG else super().new_pages()


@kernel("b_page_allocation_03_sum_of_128_requests")
class SumOf128(Allocator):
    """The prefix sum over requests is one of blocks of 128, without what the blocks before add up to."""

    def first_pages(self):
        firsts = super().first_pages()
        if WRONG:
            index = torch.arange(len(firsts)) // 128 * 128
            firsts = firsts - firsts[index]
        return firsts


@kernel("b_page_allocation_04_pages_in_a_row")
class InARow(Allocator):
    """All pages of a request follow its first one, as they do in a pool that nobody has used."""

    def page(self, first, count):
        return self.taken(first + 0 * count) + count if WRONG else super().page(first, count)


@kernel("b_page_allocation_05_decode_of_page_size_1")
class DecodeOf1(Allocator):
    """A step of one token each takes a page where length % page_size is 1, which no length is with pages of 1."""

    def rest(self):
        if WRONG and len(self.counts) and bool((self.counts == 1).all()):
            return torch.where(self.inputs.lengths % self.size == 1, 0, 1)
        return super().rest()


@kernel("b_page_allocation_06_lowest_pages_first")
class LowestFirst(Allocator):
    """Free pages are sorted before they are taken."""

    def taken(self, index):
        if WRONG:
            self.free = self.inputs.free_pages.sort().values
        return super().taken(index)


@kernel("b_page_allocation_07_long_requests_first")
class LongFirst(Allocator):
    """Pages are numbered over requests that need more than one first, and then over those that need one."""

    def first_pages(self):
        if not WRONG:
            return super().first_pages()
        order = torch.argsort((self.pages <= 1).long(), stable=True)
        firsts = torch.empty_like(self.pages)
        firsts[order] = torch.cumsum(self.pages[order], 0) - self.pages[order]
        return firsts
