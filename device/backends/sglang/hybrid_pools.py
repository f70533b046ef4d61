"""Pools of hybrid models in sglang: ``SWATokenToKVPoolAllocator`` over ``SWAKVPool``, and the table of requests.

Who has a page is known to sglang's tree of prefixes; here it is counted. All that a step changes, the mapping and the
free pages among it, is done by the allocator; block tables are those that ``AscendAttnBackend`` makes for a decode.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.common import free_swa_out_of_window_slots
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from npudiff import Target, implementation
from npudiff.device.ascend import sliding_attention
from npudiff.device.backends.sglang.attention_world import Model, attention_backend, forward_batch
from npudiff.device.backends.sglang.pool_world import DEVICE, buffers, fill, swa_pool
from npudiff.model.constraints import Box
from npudiff.reference.hybrid_pools import HybridPoolsInputs, PoolsSnapshot, TokenStates
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_NO_SLOTS = torch.zeros(0, dtype=torch.int64)

_LAYERS = (SimpleNamespace(layer_id=0), SimpleNamespace(layer_id=1))


class SglangPools:
    """Both pools and the requests in them; the methods are those of ``npudiff.reference.hybrid_pools.HybridPools``.

    Parameters
    ----------
    inputs : HybridPoolsInputs
        On the host.
    target : Target
        Where to run.
    need_sort : bool
        Whether freed pages wait until they are sorted, as where prefill and decode are apart.
    """

    def __init__(self, inputs: HybridPoolsInputs, target: Target, *, need_sort: bool) -> None:
        full, sliding = inputs.full.to(DEVICE), inputs.sliding.to(DEVICE)
        self.inputs, self.target, self.size = inputs, target, inputs.page_size
        slots, sliding_slots = full.pages * self.size, sliding.pages * self.size
        self.pool: Any = swa_pool((full.key, full.value), slots=slots, sliding_slots=sliding_slots, page_size=self.size)
        for layer, storage in enumerate((full, sliding)):
            fill(self.pool, layer, storage.key, storage.value)
        self.allocator: Any = SWATokenToKVPoolAllocator(
            slots, sliding_slots, self.size, full.key.dtype, DEVICE, self.pool, need_sort
        )
        self.table: Any = ReqToTokenPool(inputs.requests, slots, DEVICE, False)
        self.backend: Any = attention_backend(
            self.pool, self.table, Model(full.key.dtype, inputs.heads, inputs.window, self.size)
        )
        self.held: dict[int, ReqKvInfo] = {}
        self.owners = torch.zeros(1 + full.pages, dtype=torch.int64)

    def allocate(self, request: int, tokens: TokenStates) -> bool:
        """Admit a request with its first tokens."""
        return self._admitted(request, _NO_SLOTS, tokens)

    def extend(self, request: int, tokens: TokenStates) -> bool:
        """Append tokens to a request."""
        before = self._lengths([request])
        after = before + tokens.tokens
        last = self._last_slots([request])
        slots = self.allocator.alloc_extend(before.to(DEVICE), before, after.to(DEVICE), after, last, tokens.tokens)
        return self._appended([request], tokens, slots)

    def decode(self, requests: Sequence[int], tokens: TokenStates) -> bool:
        """Append one token to each of some requests, if the scheduler would, which asks for free pages first."""
        before = self._lengths(requests)
        needed = int((before % self.size == 0).sum()) * self.size
        if needed > min(self.allocator.full_available_size(), self.allocator.swa_available_size()):
            return False
        slots = self.allocator.alloc_decode((before + 1).to(DEVICE), before + 1, self._last_slots(requests))
        return self._appended(requests, tokens, slots)

    def share(self, source: int, request: int, pages: int, tokens: TokenStates) -> bool:
        """Admit a request that begins with pages of another."""
        return self._admitted(request, self._slots(source)[: pages * self.size], tokens)

    def fork(self, source: int, request: int) -> bool:
        """Admit a request with all tokens of another; the rest of its last page is a copy."""
        slots = self._slots(source)
        whole = len(slots) // self.size * self.size
        return self._admitted(request, slots[:whole], self._states(slots[whole:]))

    def evict(self, requests: Sequence[int]) -> None:
        """Give up pages of the sliding pool that are left of the window and belong to one request only."""
        for request in requests:
            if self.inputs.prefix_sharing:  # the tree does it, which keeps what several requests have
                keep = -(-max(self.inputs.window, self.size) // self.size)
                pages = self._pages(request)[: max(0, len(self._slots(request)) // self.size - keep)]
                alone = pages[self.owners[pages] == 1].to(DEVICE)
                self.allocator.free_swa(alone * self.size)
            else:
                _free_out_of_window(self, self.held[request])

    def free(self, request: int) -> None:
        """Forget a request; its pages are free when nobody else has them."""
        slots = self._slots(request)
        self.owners[self._pages(request)] -= 1
        alone = self.owners[slots.cpu() // self.size] == 0
        self.allocator.free(slots[alone.to(DEVICE)])
        del self.held[request]

    def attend(
        self, requests: Sequence[int], query_lengths: Sequence[int], query: torch.Tensor
    ) -> Mapping[str, torch.Tensor]:
        """Return attention of the last tokens of some requests in plain torch: the pools are under test here."""
        full, sliding = (PagedKV(*self._cache(layer), table) for layer, table in enumerate(self._tables(requests)))
        return {
            name: sliding_attention.torch_native(
                SlidingAttentionInputs(
                    query=query, full=full, sliding=None if window is None else sliding, window=window, sinks=None,
                    query_lengths=tuple(query_lengths), kv_lengths=tuple(self._lengths(requests).tolist()),
                    scale=self.inputs.scale,
                ),
                self.target,
            )
            for name, window in (("full", None), ("sliding", self.inputs.window))
        }  # fmt: skip

    def snapshot(self) -> PoolsSnapshot:
        """Say where everything lies."""
        allocators = self.allocator.full_attn_allocator, self.allocator.swa_attn_allocator
        free, free_sliding = (_all_free_pages(one).cpu() for one in allocators)
        full, sliding = self._tables(tuple(self.held))
        return PoolsSnapshot(
            slots={request: self._slots(request).cpu() for request in self.held},
            mapping=self.allocator.full_to_swa_index_mapping[:-1].cpu(),
            block_table=full.cpu(),
            sliding_block_table=sliding.cpu(),
            free_pages=free,
            free_sliding_pages=free_sliding,
        )

    def _admitted(self, request: int, prefix: torch.Tensor, tokens: TokenStates) -> bool:
        """Give a request a row, with a prefix that is there already, if there are pages for its other tokens."""
        row = min(set(range(1, 1 + self.inputs.requests)) - {one.req_pool_idx for one in self.held.values()})
        self.held[request] = ReqKvInfo(req_pool_idx=row, kv_allocated_len=len(prefix))
        self.table.write((row, slice(0, len(prefix))), prefix.to(DEVICE, torch.int32))
        if tokens.tokens and not self.extend(request, tokens):
            del self.held[request]
            return False
        self.owners[self._pages(request)[: len(prefix) // self.size]] += 1
        return True

    def _appended(self, requests: Sequence[int], tokens: TokenStates, slots: torch.Tensor | None) -> bool:
        """Write new tokens into their slots in both pools, if there are any, and remember where they are."""
        if slots is None:
            return False
        states = tokens.to(DEVICE)
        places = KVWriteLoc(slots, self.allocator.translate_loc_from_full_to_swa(slots))
        self.pool.set_kv_buffer(_LAYERS[0], places, states.full_key, states.full_value)
        self.pool.set_kv_buffer(_LAYERS[1], places, states.sliding_key, states.sliding_value)
        count = tokens.tokens // len(requests)
        for place, request in enumerate(requests):
            one, own = self.held[request], slots[place * count : (place + 1) * count]
            self.table.write((one.req_pool_idx, slice(one.kv_allocated_len, one.kv_allocated_len + count)), own)
            one.kv_allocated_len += count
            self.owners[own.cpu()[own.cpu() % self.size == 0].long() // self.size] = 1
        return True

    def _lengths(self, requests: Sequence[int]) -> torch.Tensor:
        return torch.tensor([self.held[request].kv_allocated_len for request in requests], dtype=torch.int64)

    def _slots(self, request: int) -> torch.Tensor:
        """Slots of a request's tokens in the full pool, int64 ``[tokens]``."""
        one = self.held[request]
        slots: torch.Tensor = self.table.req_to_token[one.req_pool_idx, : one.kv_allocated_len].long()
        return slots

    def _pages(self, request: int) -> torch.Tensor:
        """Pages of a request in the full pool, int64 on the host."""
        return self._slots(request)[:: self.size].cpu() // self.size

    def _last_slots(self, requests: Sequence[int]) -> torch.Tensor:
        """Slot of the last token of each request, -1 for one without any."""
        slots = [self._slots(request) for request in requests]
        return torch.stack([one[-1] if len(one) else one.new_tensor(-1) for one in slots])

    def _cache(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pages of keys and of values of a layer, ``[1 + pages, page_size, heads, dim]``."""
        key, value = (cache.view(-1, self.size, *cache.shape[-2:]) for cache in buffers(self.pool, layer))
        return key, value

    def _states(self, slots: torch.Tensor) -> TokenStates:
        """What lies in some slots of the full pool, and in those of the sliding pool that they are mapped to."""
        own = self.allocator.translate_loc_from_full_to_swa(slots)
        return TokenStates(
            *(cache.flatten(0, 1)[slots] for cache in self._cache(0)),
            *(cache.flatten(0, 1)[own] for cache in self._cache(1)),
        )

    def _tables(self, requests: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables of both pools, as attention gets them for a decode."""
        if not requests:
            nothing = torch.zeros(0, 0, dtype=torch.int32)
            return nothing, nothing
        lengths, rows = self._lengths(requests).tolist(), [self.held[request].req_pool_idx for request in requests]
        batch = forward_batch(ForwardMode.DECODE, self.table, [1] * len(rows), lengths, rows=rows)
        self.backend.init_forward_metadata(batch)
        said = self.backend.forward_metadata
        return said.block_tables, said.block_tables_swa


def _all_free_pages(allocator: Any) -> torch.Tensor:  # noqa: ANN401 - sglang's
    """Return the free pages of one pool, those that wait to be sorted among them."""
    pages: torch.Tensor = allocator.get_all_free_pages()
    return pages


def _free_out_of_window(pools: SglangPools, held: ReqKvInfo) -> None:
    """Have sglang give up what left the window, where no tree of prefixes keeps it."""
    known = inspect.signature(free_swa_out_of_window_slots).parameters
    alone = {"supports_prefix_sharing": False} if "supports_prefix_sharing" in known else {"is_chunk_cache": True}
    free_swa_out_of_window_slots(
        SimpleNamespace(kv=held), held.kv_allocated_len, sliding_window_size=pools.inputs.window,
        page_size=pools.size, req_to_token_pool=pools.table, token_to_kv_pool_allocator=pools.allocator, **alone,
    )  # fmt: skip


_SUPPORTED: Box = {"page_size": (16, 32, 64, 128)}
"""Pages of a power of two, as Triton's kernel of the allocator has them."""


@implementation("hybrid_pools", name="SWATokenToKVPoolAllocator", supports=_SUPPORTED)
def at_once(inputs: HybridPoolsInputs, target: Target) -> SglangPools:
    """SWATokenToKVPoolAllocator and SWAKVPool; freed pages are taken again at once."""
    return SglangPools(inputs, target, need_sort=False)


@implementation("hybrid_pools", name="SWATokenToKVPoolAllocator_sorted", supports=_SUPPORTED)
def when_sorted(inputs: HybridPoolsInputs, target: Target) -> SglangPools:
    """SWATokenToKVPoolAllocator with need_sort: freed pages wait until the others are used up."""
    return SglangPools(inputs, target, need_sort=True)
