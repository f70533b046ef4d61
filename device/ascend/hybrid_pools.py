"""Hybrid pools as sglang's Ascend backend keeps them: two allocators, one mapping, one table of slots per request.

Sources: sglang 0.5.23, ``mem_cache/allocator/swa.py`` 108-522 (mapping, allocation in both pools, release),
``mem_cache/common.py`` 75-140 (eviction), ``hardware_backend/npu/memory_pool_npu.py`` 88-360 (storage and writes),
``hardware_backend/npu/attention/ascend_backend.py`` 568-585 (block tables). The backend counts references to pages in
the tree of its prefix cache; here they are a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from npudiff import Target, implementation
from npudiff.device.ascend import page_allocation, sliding_attention
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.device.ascend.page_pool import PagePool
from npudiff.reference.hybrid_pools import HybridPoolsInputs, PoolsSnapshot, TokenStates
from npudiff.reference.page_allocation import PageAllocationInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs


class AscendPools:
    """Both pools and the requests in them; the methods are those of ``npudiff.reference.hybrid_pools.HybridPools``.

    Parameters
    ----------
    inputs : HybridPoolsInputs
        On the host.
    target : Target
        Where to run.
    """

    def __init__(self, inputs: HybridPoolsInputs, target: Target) -> None:
        on_device = inputs.to(target.device)
        self.inputs, self.target, self.size = inputs, target, inputs.page_size
        self.full, self.sliding = PagePool(on_device.full), PagePool(on_device.sliding)
        slots = (1 + inputs.full.pages) * self.size
        self.mapping = torch.zeros(slots + 1, dtype=torch.int64, device=target.device)
        self.mapping[-1] = -1  # so that the last slot of an empty request, -1, is mapped to itself
        self.references = torch.zeros(1 + inputs.full.pages, dtype=torch.int64, device=target.device)
        self.slots = torch.zeros(inputs.requests, slots - self.size, dtype=torch.int32, device=target.device)
        self.rows: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self._offsets = torch.arange(self.size, device=target.device)

    def allocate(self, request: int, tokens: TokenStates) -> bool:
        """Admit a request with its first tokens."""
        return self.admit(request, 0, tokens.tokens) and self.append([request], [tokens.tokens], tokens)

    def extend(self, request: int, tokens: TokenStates) -> bool:
        """Append tokens to a request."""
        return self.fits([request], [tokens.tokens]) and self.append([request], [tokens.tokens], tokens)

    def decode(self, requests: Sequence[int], tokens: TokenStates) -> bool:
        """Append one token to each of some requests."""
        counts = [1] * len(requests)
        return self.fits(requests, counts) and self.append(requests, counts, tokens, decode=True)

    def share(self, source: int, request: int, pages: int, tokens: TokenStates) -> bool:
        """Admit a request that begins with pages of another."""
        prefix = self.slots_of(source)[: pages * self.size]
        if not self.admit(request, len(prefix), tokens.tokens):
            return False
        self.hold(request, prefix)
        return self.append([request], [tokens.tokens], tokens)

    def fork(self, source: int, request: int) -> bool:
        """Admit a request with all tokens of another; its last page, if it has room, is a copy."""
        slots = self.slots_of(source)
        whole = len(slots) // self.size * self.size
        if not self.admit(request, whole, len(slots) - whole):
            return False
        self.hold(request, slots[:whole])
        rest = slots[whole:]
        if len(rest):
            copies = self.take_slots([request], [len(rest)])
            self.full.copy(rest.long(), copies)
            self.sliding.copy(self.sliding_slots(rest), self.sliding_slots(copies))
        return True

    def evict(self, requests: Sequence[int]) -> None:
        """Give up pages of the sliding pool that are left of the window and belong to one request only."""
        for request in requests:
            self.evict_up_to(request, self.lengths[request])

    def free(self, request: int) -> None:
        """Forget a request; its pages are free when nobody else has them."""
        pages = self.slots_of(request)[:: self.size].long() // self.size
        self.references[pages] -= 1
        gone = self.unused(pages)
        self.release_sliding(gone)
        self.full.free_pages = torch.cat([self.full.free_pages, gone])
        del self.rows[request], self.lengths[request]

    def attend(
        self, requests: Sequence[int], query_lengths: Sequence[int], query: torch.Tensor
    ) -> Mapping[str, torch.Tensor]:
        """Return attention of the last tokens of some requests, layer by layer."""
        full_table, sliding_table = self.tables(requests)
        layers = {}
        for name, window in (("full", None), ("sliding", self.inputs.window)):
            layers[name] = self.attention(
                SlidingAttentionInputs(
                    query=query.to(self.target.device),
                    full=self.full.paged(full_table),
                    sliding=self.sliding.paged(sliding_table),
                    query_lengths=tuple(query_lengths),
                    kv_lengths=tuple(self.lengths[request] for request in requests),
                    window=window,
                    scale=self.inputs.scale,
                    sinks=None,
                )
            )
        return layers

    def snapshot(self) -> PoolsSnapshot:
        """Say where everything lies."""
        requests = tuple(self.rows)
        full_table, sliding_table = self.tables(requests)
        return PoolsSnapshot(
            slots={request: self.slots_of(request).cpu() for request in requests},
            mapping=self.mapping[:-1].cpu(),
            block_table=full_table.cpu(),
            sliding_block_table=sliding_table.cpu(),
            free_pages=self.full.free_pages.cpu(),
            free_sliding_pages=self.sliding.free_pages.cpu(),
        )

    def attention(self, inputs: SlidingAttentionInputs) -> torch.Tensor:
        """One layer: with a mask where every request has one row, else with a band."""
        if set(inputs.query_lengths) == {1}:
            return sliding_attention.run_decode(inputs, decode_call(inputs))["output"]
        return sliding_attention.run_tnd(inputs, tnd_call(inputs))["output"]

    def tables(self, requests: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables of both pools, int32 ``[batch, pages]``: every page's first slot names it."""
        longest = max((self.lengths[request] for request in requests), default=0)
        first = self.slots[[self.rows[request] for request in requests], :longest][:, :: self.size]
        sliding = self.mapping[first.long()] // self.size
        return first // self.size, sliding.to(torch.int32)

    def slots_of(self, request: int) -> torch.Tensor:
        """Slots of a request's tokens in the full pool, int32 ``[tokens]``."""
        return self.slots[self.rows[request], : self.lengths[request]]

    def kept_tokens(self) -> int:
        """Tokens that stay in the sliding pool: a window or, so that prefixes stay usable, whole pages of it."""
        window = self.inputs.window
        return -(-max(window, self.size) // self.size) * self.size if self.inputs.prefix_sharing else window

    def evict_up_to(self, request: int, length: int) -> None:
        """Give up the whole pages of a request that are left of the window of its first ``length`` tokens."""
        left = max(0, length - self.kept_tokens()) // self.size * self.size
        self.release_sliding(self.unshared(self.slots_of(request)[: left : self.size].long() // self.size))

    def unshared(self, pages: torch.Tensor) -> torch.Tensor:
        """Those pages of the full pool that one request has."""
        return pages[self.references[pages] == 1]

    def unused(self, pages: torch.Tensor) -> torch.Tensor:
        """Those pages of the full pool that no request has."""
        return pages[self.references[pages] == 0]

    def admit(self, request: int, prefix: int, tokens: int) -> bool:
        """Give a request a row, with a prefix that is there already, if there are pages for its other tokens."""
        self.rows[request] = min(set(range(self.inputs.requests)) - set(self.rows.values()))
        self.lengths[request] = prefix
        if self.fits([request], [tokens]):
            return True
        del self.rows[request], self.lengths[request]
        return False

    def hold(self, request: int, prefix: torch.Tensor) -> None:
        """Begin a request's row with slots that others have as well."""
        self.slots[self.rows[request], : len(prefix)] = prefix
        self.references[prefix[:: self.size].long() // self.size] += 1

    def fits(self, requests: Sequence[int], counts: Sequence[int]) -> bool:
        """Whether both pools have pages for so many more tokens of each request."""
        return self.needed(requests, counts) <= min(len(self.full.free_pages), len(self.sliding.free_pages))

    def needed(self, requests: Sequence[int], counts: Sequence[int]) -> int:
        """Pages that so many more tokens of each request take from each pool."""
        return sum(
            -(-(self.lengths[request] + count) // self.size) - -(-self.lengths[request] // self.size)
            for request, count in zip(requests, counts, strict=True)
        )

    def append(
        self, requests: Sequence[int], counts: Sequence[int], tokens: TokenStates, *, decode: bool = False
    ) -> bool:
        """Give new tokens their slots in both pools, and write them."""
        states = tokens.to(self.target.device)
        slots = self.take_slots(requests, counts, decode=decode)
        self.full.write(slots, states.full_key, states.full_value)
        self.sliding.write(self.sliding_slots(slots), states.sliding_key, states.sliding_value)
        return True

    def take_slots(self, requests: Sequence[int], counts: Sequence[int], *, decode: bool = False) -> torch.Tensor:
        """Slots of new tokens in the full pool, int64 ``[tokens]``, each mapped to one of the sliding pool."""
        before = [self.lengths[request] for request in requests]
        last = torch.stack([self.last_slot(request) for request in requests])
        slots = self.from_pool(self.full, before, counts, last, decode=decode)
        sliding = self.from_pool(self.sliding, before, counts, self.mapping[last], decode=decode)
        torch.ops.npu.npu_scatter_nd_update_(self.mapping, slots.view(-1, 1), sliding)
        self.references[slots[slots % self.size == 0] // self.size] = 1
        start = 0
        for request, length, count in zip(requests, before, counts, strict=True):
            self.slots[self.rows[request], length : length + count] = slots[start : start + count].to(torch.int32)
            self.lengths[request] = length + count
            start += count
        return slots

    def sliding_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots of the sliding pool of tokens by their slots of the full pool."""
        return self.mapping[slots.long()]

    def last_slot(self, request: int) -> torch.Tensor:
        """Slot of a request's last token, int64; -1 if it has none."""
        length = self.lengths[request]
        return self.slots[self.rows[request], length - 1].long() if length else self.mapping[-1]

    def from_pool(
        self, pool: PagePool, before: Sequence[int], counts: Sequence[int], last: torch.Tensor, *, decode: bool
    ) -> torch.Tensor:
        """Take slots from one pool, int64 ``[tokens]``."""
        prefix = torch.tensor(before, device=self.target.device)
        lengths = prefix + torch.tensor(counts, device=self.target.device)
        inputs = PageAllocationInputs(prefix, lengths, last, pool.free_pages, self.size)
        found = self.decode_slots(inputs) if decode else self.extend_slots(inputs)
        pool.free_pages = pool.free_pages[int(found["pages_taken"]) :]
        return found["slots"].long()

    def extend_slots(self, inputs: PageAllocationInputs) -> page_allocation.Outputs:
        """Three phases: the rest of the last page, whole pages, the tail."""
        return page_allocation.extend(inputs, page_allocation.room_in_last_page(inputs))

    def decode_slots(self, inputs: PageAllocationInputs) -> page_allocation.Outputs:
        """A new page where the length is one past a page."""
        return page_allocation.decode(inputs, inputs.lengths % inputs.page_size == 1)

    def release_sliding(self, pages: torch.Tensor) -> None:
        """Give the pages of the sliding pool back to which pages of the full pool are mapped, and unmap them."""
        mapped = self.mapping[pages * self.size] // self.size
        self.sliding.free_pages = torch.cat([self.sliding.free_pages, mapped[mapped > 0]])
        self.unmap(pages)

    def unmap(self, pages: torch.Tensor) -> None:
        """Map all slots of some pages of the full pool to 0."""
        self.mapping[(pages.unsqueeze(1) * self.size + self._offsets).flatten()] = 0


class NativePools(AscendPools):
    """The same pools with attention that gathers keys and calls scaled_dot_product_attention."""

    def attention(self, inputs: SlidingAttentionInputs) -> torch.Tensor:
        """One layer, request by request."""
        output: torch.Tensor = sliding_attention.torch_native(inputs, self.target)
        return output


FUSED = {
    "page_size": range(16, 1025, 16),
    "head_dims": ("64", "128"),
    "dtype": ("bfloat16",),
    "poison": sliding_attention.POISON,
}
"""Cases whose attention the fused operators compute, with several rows per request and with one."""


@implementation("hybrid_pools", supports=FUSED)
def fia_pools(inputs: HybridPoolsInputs, target: Target) -> AscendPools:
    """Attention by FIA v2: a mask for decodes, TND with a band for new tokens."""
    return AscendPools(inputs, target)


@implementation("hybrid_pools")
def torch_native_pools(inputs: HybridPoolsInputs, target: Target) -> NativePools:
    """Attention by scaled_dot_product_attention on gathered keys: any page, head dim and dtype."""
    return NativePools(inputs, target)
