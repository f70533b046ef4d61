"""Wrong hybrid pools: what becomes of requests when one of the many steps of a server's memory forgets something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend import page_allocation
from npudiff.device.ascend.hybrid_pools import AscendPools, fia_pools
from npudiff.reference.hybrid_pools import HybridPoolsInputs, TokenStates
from npudiff.reference.page_allocation import PageAllocationInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_ALLOCATOR = "sglang 0.5.23 mem_cache/allocator/swa.py"
_EVICTION = "sglang 0.5.23 mem_cache/common.py 75"
_LLAMA_CPP = "SWA-29 ggml-org/llama.cpp/pull/18720"


@mutant(fia_pools, f"{_ALLOCATOR} 499: slots that are given back have to be mapped to 0")
class MappingKept(AscendPools):
    """Pages that are given back stay mapped."""

    def unmap(self, pages: torch.Tensor) -> None:
        """Do nothing."""


@mutant(fia_pools, "SWA-30 huggingface/transformers/issues/37574: at W, not above it")
class EvictsAtTheWindow(AscendPools):
    """Eviction counts the oldest visible token as out of the window."""

    def kept_tokens(self) -> int:
        """Keep one token less."""
        return super().kept_tokens() - 1


@mutant(fia_pools, f"{_EVICTION}: the threshold is floored to a page")
class EvictsAPageEarly(AscendPools):
    """Eviction gives up a page when its first token leaves the window, and not its last."""

    def kept_tokens(self) -> int:
        """Keep a page less."""
        return super().kept_tokens() - self.size + 1


@mutant(fia_pools, f"{_LLAMA_CPP}: the largest position of the batch decides for all of it")
class EvictsByLongest(AscendPools):
    """Eviction takes the length of the longest request of the batch for all."""

    def evict(self, requests: Sequence[int]) -> None:
        """Evict all by one length."""
        for request in requests:
            self.evict_up_to(request, max(self.lengths[request] for request in requests))


@mutant(fia_pools, f"{_LLAMA_CPP}: the first tokens of a chunk still need what its last one does not")
class ExtendEvictsByItsEnd(AscendPools):
    """A chunk gives up what its last token does not see before its first one attends."""

    def extend(self, request: int, tokens: TokenStates) -> bool:
        """Evict as soon as the tokens are counted."""
        if not super().extend(request, tokens):
            return False
        self.evict([request])
        return True


@mutant(fia_pools, f"{_ALLOCATOR} 499: the mapping belongs to a page, and a page to several requests")
class EvictsForOthers(AscendPools):
    """Eviction gives up pages that other requests have as well, and still see."""

    def unshared(self, pages: torch.Tensor) -> torch.Tensor:
        """Do not ask who else has them."""
        return pages


@mutant(fia_pools, f"{_EVICTION}: with prefix sharing, whole pages before the last one stay usable")
class EvictsSharedPrefixes(AscendPools):
    """Eviction keeps a window only, although requests may begin with pages of others."""

    def kept_tokens(self) -> int:
        """Keep what a request without prefix sharing keeps."""
        return self.inputs.window


@mutant(fia_pools, f"{_ALLOCATOR} 300: whoever writes into a page has it alone")
class ForkWithoutCopy(AscendPools):
    """A fork takes over the last page although it has room, and both requests write into it."""

    def fork(self, source: int, request: int) -> bool:
        """Share all pages."""
        slots = self.slots_of(source)
        if not self.admit(request, len(slots), 0):
            return False
        self.hold(request, slots)
        return True


@mutant(fia_pools, f"{_ALLOCATOR} 499: pages go back when the last request that has them is gone")
class ReferencesNotCounted(AscendPools):
    """A request that ends takes its pages along, whoever else has them."""

    def unused(self, pages: torch.Tensor) -> torch.Tensor:
        """Do not ask who else has them."""
        return pages


@mutant(fia_pools, "PKV-14 sgl-project/sglang/issues/13065: pages leak")
class PartialPageLeaks(AscendPools):
    """A request that ends gives back its whole pages only; the one that it was filling is lost."""

    def unused(self, pages: torch.Tensor) -> torch.Tensor:
        """Leave out the last page if it has room."""
        last = (pages[-1:] + 1) * self.size - 1
        filled = torch.isin(last, self.slots)
        return super().unused(pages if bool(filled.all()) else pages[:-1])


@mutant(fia_pools, f"{_ALLOCATOR} 300: pages of one pool are given back if the other has too few")
class FailedAllocationKeepsPages(AscendPools):
    """Pages of the full pool are taken before it is known that the sliding pool has too few."""

    def fits(self, requests: Sequence[int], counts: Sequence[int]) -> bool:
        """Take the pages of the full pool along."""
        if super().fits(requests, counts):
            return True
        needed = self.needed(requests, counts)
        if needed <= len(self.full.free_pages):
            self.full.free_pages = self.full.free_pages[needed:]
        return False


@mutant(
    fia_pools, "PKV-11 pegainfer-project/pegainfer/issues/291: off at seq % page", name="pools_decode_new_page_late"
)
class DecodeNewPageLate(AscendPools):
    """A decode takes a new page for the last token of a page instead of the first."""

    def decode_slots(self, inputs: PageAllocationInputs) -> page_allocation.Outputs:
        """Be one token late."""
        return page_allocation.decode(inputs, inputs.lengths % inputs.page_size == 0)


@mutant(fia_pools, "PKV-15 sgl-project/sglang/pull/39040: looked up a token early")
class DecodeSharesLastSlot(AscendPools):
    """A token that needs no new page gets the slot of the one before it."""

    def decode_slots(self, inputs: PageAllocationInputs) -> page_allocation.Outputs:
        """Count from the slot before the last."""
        return super().decode_slots(replace(inputs, last_slots=inputs.last_slots - 1))


@mutant(
    fia_pools, "PKV-14 sgl-project/sglang/issues/13065: the tail is ignored", name="pools_extend_skips_partial_page"
)
class ExtendSkipsPartialPage(AscendPools):
    """A chunk begins a new page although the last one has room."""

    def extend_slots(self, inputs: PageAllocationInputs) -> page_allocation.Outputs:
        """Act as if the last page were full."""
        return page_allocation.extend(inputs, torch.zeros_like(inputs.lengths))


@mutant(fia_pools, "sglang 0.5.23 attention/ascend_backend.py 733: slots are translated first")
class SlidingWrittenAtFullSlots(AscendPools):
    """Tokens are written into the sliding pool at their slots of the full pool."""

    def sliding_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Do not translate."""
        return slots.long() % (self.sliding.key.shape[0] * self.size)


@mutant(fia_pools, "SWA-26 vllm-project/vllm/pull/41757: W keys, whatever is there")
class SlidingLengthsFilled(AscendPools):
    """Requests that are shorter than the window attend a whole window."""

    def attention(self, inputs: SlidingAttentionInputs) -> torch.Tensor:
        """Claim a window of keys, as far as the table goes."""
        capacity = inputs.kv.block_table.shape[1] * self.size
        least = min(inputs.window or 0, capacity)
        return super().attention(replace(inputs, kv_lengths=tuple(max(least, length) for length in inputs.kv_lengths)))


@mutant(fia_pools, "SWA-27 vllm-project/vllm/pull/23010: the length is not shortened")
class EvictedPagesSkipped(AscendPools):
    """The table of the sliding pool leaves out evicted pages, while lengths still count them."""

    def tables(self, requests: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the pages that are left to the front."""
        full, sliding = super().tables(requests)
        order = torch.argsort((sliding == 0).to(torch.int32), dim=1, stable=True)
        return full, torch.gather(sliding, 1, order)


@mutant(fia_pools, "GRF-01 vllm-project/vllm-ascend/pull/8508: the table of an earlier call")
class TableRowKept(AscendPools):
    """A request that is admitted again finds the pages that it had before in its block table."""

    def __init__(self, inputs: HybridPoolsInputs, target: Target) -> None:
        super().__init__(inputs, target)
        self._seen: dict[int, torch.Tensor] = {}

    def tables(self, requests: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the pages only that are new since the last call."""
        full, sliding = super().tables(requests)
        for row, request in enumerate(requests):
            pages = -(-self.lengths[request] // self.size)
            known = self._seen.get(request, full[row, :0])[:pages]
            full[row, : len(known)] = known
            self._seen[request] = full[row, :pages].clone()
        return full, sliding
