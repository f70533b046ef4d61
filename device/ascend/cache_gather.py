"""How backends read tokens back out of a paged cache: the operator, or plain indexing, per layout."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.storage_format import FRACTAL_NZ, format_cast
from npudiff.reference.cache_gather import CacheGatherInputs

Outputs = dict[str, torch.Tensor]

_WHOLE_PAGES = {"starts": ("none", "page")}
_OPERATOR = (
    {"layout": ("PA_BSND",), **_WHOLE_PAGES},
    {"layout": ("PA_NZ",), "page_size": range(16, 2**16 + 1, 16), **_WHOLE_PAGES},
)


@implementation("cache_gather", supports=_OPERATOR, graph=True)
def gather_pa(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """npu_gather_pa_kv_cache with one length per request; caches in NZ order carry the format FRACTAL_NZ."""
    return gather_with_operator(inputs, target, cumulative=False)


@implementation("cache_gather", supports=_OPERATOR, graph=True)
def gather_pa_cumulative(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """npu_gather_pa_kv_cache with is_seq_lens_cumsum: lengths are where each request ends in the packed rows."""
    return gather_with_operator(inputs, target, cumulative=True)


def gather_with_operator(inputs: CacheGatherInputs, target: Target, *, cumulative: bool) -> Outputs:
    """Gather with the operator, into the packed rows of the inputs.

    The format of the key cache, and nothing else, tells the operator which order its bytes have. A cast moves no byte
    of pages of a multiple of 16 tokens: a strip of 32 bytes is a tile's row. Starts inside a page are rounded down to
    it. The operator refuses outputs without rows, and no backend calls it for them.
    """
    on_device = inputs.to(target.device)
    if not len(on_device.key):
        return {"key": on_device.key, "value": on_device.value}
    caches, packed = [on_device.key_cache, on_device.value_cache], [on_device.key, on_device.value]
    if on_device.layout == "PA_NZ":
        caches = [format_cast(cache, FRACTAL_NZ, target) for cache in caches]
        packed = [rows.flatten(1) for rows in packed]
    lengths = on_device.lengths
    if cumulative:
        lengths = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])
    torch.ops.npu.npu_gather_pa_kv_cache(
        *caches,
        on_device.block_table,
        lengths,
        *packed,
        seq_offset=on_device.starts,
        is_seq_lens_cumsum=cumulative,
    )
    return {"key": on_device.key, "value": on_device.value}


@implementation("cache_gather", supports={"layout": ("PA_BSND", "PA_BNSD")}, on_device=True)
def index_pages(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Plain indexing with the page and the offset of every token."""
    return gathered(inputs, *places(inputs))


def gathered(on_device: CacheGatherInputs, page: torch.Tensor, offset: torch.Tensor) -> Outputs:
    """Write the token at each place of ND caches into the packed rows."""
    outputs = {"key": on_device.key, "value": on_device.value}
    for cache, rows in ((on_device.key_cache, on_device.key), (on_device.value_cache, on_device.value)):
        pages = cache if on_device.layout == "PA_BSND" else cache.transpose(1, 2)
        rows[: len(page)] = pages[page, offset]
    return outputs


@implementation("cache_gather", supports={"layout": ("PA_NZ",)}, on_device=True)
def index_nz_pages(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Bring the pages of the batch from NZ into ND order, as sglang's MLA cache is read, and index them."""
    page, offset = places(inputs)
    used, place = torch.unique(page, return_inverse=True)
    outputs = {"key": inputs.key, "value": inputs.value}
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        nd = cache[used].permute(0, 2, 1, 3).reshape(len(used), inputs.page_size, *rows.shape[1:])
        rows[: len(page)] = nd[place, offset]
    return outputs


def places(on_device: CacheGatherInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Page and offset of every token that is read, int64 ``[tokens]``."""
    request, token = tokens(on_device)
    page = on_device.block_table[request, token // on_device.page_size]
    return page.to(torch.int64), token % on_device.page_size


def tokens(on_device: CacheGatherInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Request of every token that is read, and its number within the request; int64 ``[tokens]``."""
    lengths = on_device.lengths.to(torch.int64)
    request = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    first = (torch.cumsum(lengths, 0) - lengths)[request]
    token = torch.arange(len(request), device=lengths.device) - first
    return request, token if on_device.starts is None else token + on_device.starts[request]
