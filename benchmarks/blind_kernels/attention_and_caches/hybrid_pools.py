"""Wrong kernels of hybrid_pools; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.hybrid_pools import NativePools

WRONG = os.environ.get("TWIN") != "1"


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs, target)

        run.__doc__ = cls.__doc__
        return npudiff.implementation("hybrid_pools", name=name)(run)

    return register


@kernel("b_hybrid_pools_01_unmapped_page_freed")
class UnmappedFreed(NativePools):
    """What is given back is not filtered: pages that were evicted are mapped to page 0, which becomes free."""

    def release_sliding(self, pages):
        if not WRONG:
            super().release_sliding(pages)
            return
        mapped = self.mapping[pages * self.size] // self.size
        self.sliding.free_pages = torch.cat([self.sliding.free_pages, mapped])
        self.unmap(pages)


@kernel("b_hybrid_pools_02_whole_pages_wanted")
class WholePages(NativePools):
    """Whether a step fits is asked for whole pages of its tokens, whatever room the last page has."""

    def needed(self, requests, counts):
        if WRONG:
            return sum(-(-count // self.size) for count in counts)
        return super().needed(requests, counts)


@kernel("b_hybrid_pools_03_share_holds_the_last_page")
class HoldsLast(NativePools):
    """A shared prefix counts as one more holder of its last page only."""

    def hold(self, request, prefix):
        super().hold(request, prefix)
        if WRONG:
            pages = prefix[:: self.size].long() // self.size
            self.references[pages[:-1]] -= 1


@kernel("b_hybrid_pools_04_decode_in_order_of_rows")
class OrderOfRows(NativePools):
    """A decode takes its requests in the order of their rows, and their tokens in that of the batch."""

    def decode(self, requests, tokens):
        return super().decode(sorted(requests, key=self.rows.__getitem__) if WRONG else requests, tokens)


@kernel("b_hybrid_pools_05_first_slot_unmapped")
class FirstSlot(NativePools):
    """A page is unmapped by its first slot, the one that was given to the call."""

    def unmap(self, pages):
        if WRONG:
            self.mapping[pages * self.size] = 0
        else:
            super().unmap(pages)


@kernel("b_hybrid_pools_06_fork_copies_full_pool")
class CopiesFull(NativePools):
    """A fork copies its last page in the full pool, and maps an empty one of the sliding pool."""

    def fork(self, source, request):
        copy = self.sliding.copy
        if WRONG:
            self.sliding.copy = lambda source, slots: None
        try:
            return super().fork(source, request)
        finally:
            self.sliding.copy = copy


@kernel("b_hybrid_pools_07_decode_without_asking")
class WithoutAsking(NativePools):
    """A decode asks for room request by request, and keeps what the first ones got."""

    def decode(self, requests, tokens):
        if not WRONG or super().fits(requests, [1] * len(requests)):
            return super().decode(requests, tokens)
        for index, request in enumerate(requests):
            if not self.fits([request], [1]):
                return False
            fields = tokens.__dataclass_fields__
            one = type(tokens)(*(getattr(tokens, name)[index : index + 1] for name in fields))
            self.append([request], [1], one, decode=True)
        return True


@kernel("b_hybrid_pools_08_eviction_of_the_first_request")
class EvictsFirst(NativePools):
    """An eviction of a batch goes on until a request has nothing to give up."""

    def evict(self, requests):
        for request in requests:
            if WRONG and self.lengths[request] - self.kept_tokens() < self.size:
                return
            self.evict_up_to(request, self.lengths[request])


@kernel("b_hybrid_pools_09_full_pool_asked_only")
class FullOnly(NativePools):
    """Whether a step fits is asked of the full pool; the sliding pool has always been the one with more room."""

    def fits(self, requests, counts):
        if not WRONG:
            return super().fits(requests, counts)
        return self.needed(requests, counts) <= len(self.full.free_pages)

    def from_pool(self, pool, before, counts, last, *, decode):
        if WRONG and pool is self.sliding:
            missing = self.pages_missing(before, counts)
            if missing > 0:
                self.sliding.free_pages = torch.cat([self.sliding.free_pages, torch.zeros(missing, dtype=torch.int64)])
        return super().from_pool(pool, before, counts, last, decode=decode)

    def pages_missing(self, before, counts):
        needed = sum(-(-(length + count) // self.size) - -(-length // self.size) for length, count in zip(before, counts))
        return needed - len(self.sliding.free_pages)
