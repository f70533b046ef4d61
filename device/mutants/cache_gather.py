"""Wrong reading of tokens out of a paged cache."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.cache_gather import Outputs, gather_with_operator, gathered, places, tokens
from npudiff.reference.cache_gather import CacheGatherInputs

_ND = {"layout": ("PA_BSND",)}
_BORDERS = {"starts": ("none", "page")}

TILE = 128
"""Tokens that a kernel reads at once, and the page size that it was written for."""


@npudiff.implementation(
    "cache_gather",
    name="page_tail_dropped",
    supports={**_ND, **_BORDERS, "page_size": (192,), "length": range(193)},
    mutant_of="index_pages",
    wrong="PKV-12 https://github.com/tile-ai/TileOPs/pull/1787: tiles per page are counted by a floor division",
)
def page_tail_dropped(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Leave out the tokens of a page behind its last whole tile."""
    on_device = inputs.to(target.device)
    before = on_device.key.clone(), on_device.value.clone()
    page, offset = places(on_device)
    outputs = gathered(on_device, page, offset)
    dropped = torch.nonzero(offset >= on_device.page_size // TILE * TILE).flatten()
    for rows, stale in zip(outputs.values(), before, strict=True):
        rows[dropped] = stale[dropped]
    return outputs


@npudiff.implementation(
    "cache_gather",
    name="pages_128_wide",
    supports={**_ND, "page_size": range(1, TILE)},
    mutant_of="index_pages",
    wrong="PKV-01 https://github.com/sgl-project/sglang/issues/38196: pages of other sizes are read as pages of 128",
)
def pages_128_wide(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Address tokens as if every page had 128."""
    on_device = inputs.to(target.device)
    request, token = tokens(on_device)
    slot = on_device.block_table[request, token // TILE].to(torch.int64) * TILE + token % TILE
    slot %= on_device.key_cache.shape[0] * on_device.page_size
    return gathered(on_device, slot // on_device.page_size, slot % on_device.page_size)


@npudiff.implementation(
    "cache_gather",
    name="value_of_key_dim",
    supports={**_ND, "head_dims": ("192/128", "512/64")},
    mutant_of="index_pages",
    wrong="PKV-03 https://github.com/sgl-project/sglang/pull/24582: values addressed with the head dim of keys",
)
def value_of_key_dim(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Take as many elements per token from the value cache as keys have, and keep those that fit."""
    on_device = inputs.to(target.device)
    page, offset = places(on_device)
    outputs = gathered(on_device, page, offset)
    flat, rows = on_device.value_cache.flatten(), outputs["value"]
    first = (page * on_device.page_size + offset) * on_device.key[0].numel()
    address = first[:, None] + torch.arange(rows[0].numel(), device=first.device)
    rows[: len(page)] = flat[address % len(flat)].view(-1, *rows.shape[1:])
    return outputs


@npudiff.implementation(
    "cache_gather",
    name="nz_pool_read_as_nd",
    supports={"layout": ("PA_NZ",)},
    mutant_of="index_nz_pages",
    wrong="PKV-06 https://github.com/sgl-project/sglang/pull/14423: NZ on the writer's side only",
)
def nz_pool_read_as_nd(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Read a cache in NZ order as if it were in ND order."""
    on_device = inputs.to(target.device)
    pages = (on_device.key_cache.shape[0], on_device.page_size)
    seen = replace(
        on_device,
        layout="PA_BSND",
        key_cache=on_device.key_cache.view(*pages, *on_device.key.shape[1:]),
        value_cache=on_device.value_cache.view(*pages, *on_device.value.shape[1:]),
    )
    return gathered(seen, *places(seen))


@npudiff.implementation(
    "cache_gather",
    name="page_too_many",
    supports={**_ND, **_BORDERS, "spare_rows": range(1, 2**16)},
    mutant_of="index_pages",
    wrong="PKV-11 https://github.com/pegainfer-project/pegainfer/issues/291: a full last page makes one too many",
)
def page_too_many(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Read one more page of a request whose last page is full, as far as there are rows."""
    on_device = inputs.to(target.device)
    lengths, size = on_device.lengths, on_device.page_size
    longer = torch.where((lengths > 0) & (lengths % size == 0), lengths + size, lengths)
    request, token = tokens(replace(on_device, lengths=longer))
    request, token = request[: len(on_device.key)], token[: len(on_device.key)]
    column = (token // size).clamp(max=on_device.block_table.shape[1] - 1)
    return gathered(on_device, on_device.block_table[request, column].to(torch.int64), token % size)


@npudiff.implementation(
    "cache_gather",
    name="rows_of_the_batch_before",
    supports={**_ND, "batch": range(2, 4097)},
    mutant_of="index_pages",
    wrong="https://github.com/ProjectDMX/DMI/issues/67: which row is which request is from before the batch changed",
)
def rows_of_the_batch_before(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Look up every request in the block table's row of the next one."""
    on_device = inputs.to(target.device)
    request, token = tokens(on_device)
    page = on_device.block_table.roll(-1, 0)[request, token // on_device.page_size]
    return gathered(on_device, page.to(torch.int64), token % on_device.page_size)


@npudiff.implementation(
    "cache_gather",
    name="pages_in_order_of_address",
    supports={**_ND, "starts": ("none",)},
    mutant_of="index_pages",
    wrong="https://github.com/vllm-project/vllm-ascend/pull/14038: one copy of two pages begins at the lower address",
)
def pages_in_order_of_address(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Swap two neighbouring pages of a request if the second one lies before the first."""
    on_device = inputs.to(target.device)
    request, token = tokens(on_device)
    column = token // on_device.page_size
    last = (on_device.lengths.to(torch.int64)[request] - 1) // on_device.page_size
    page = on_device.block_table[request, column]
    other = on_device.block_table[request, torch.minimum(column ^ 1, last)]
    first = torch.where(column % 2 == 0, torch.minimum(page, other), torch.maximum(page, other))
    return gathered(on_device, first.to(torch.int64), token % on_device.page_size)


@npudiff.implementation(
    "cache_gather",
    name="starts_ignored",
    supports={**_ND, "starts": ("page",)},
    mutant_of="gather_pa",
    wrong="SWA-27 https://github.com/vllm-project/vllm/pull/23010: pages that are skipped are not taken off positions",
)
def starts_ignored(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Read as many tokens as asked for, from the first page of each request."""
    return gather_with_operator(replace(inputs, starts=None), target, cumulative=False)


@npudiff.implementation(
    "cache_gather",
    name="masked_lanes_are_loaded",
    supports=_ND,
    mutant_of="index_pages",
    wrong="TRI-01 https://github.com/triton-lang/triton-ascend/issues/2332: a mask is for values, not for their loads",
)
def masked_lanes_are_loaded(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Load the page of every entry of the block table, and fault where there is none; what is masked is not used."""
    on_device = inputs.to(target.device)
    pages = on_device.block_table
    if bool(((pages < 0) | (pages >= on_device.key_cache.shape[0])).any()):
        raise RuntimeError("vector core exception: an address is not mapped")
    return gathered(on_device, *places(on_device))


@npudiff.implementation(
    "cache_gather",
    name="launch_of_no_programs",
    supports=_ND,
    mutant_of="index_pages",
    wrong="TRI-08 https://github.com/flagos-ai/FlagGems/issues/5953: an empty tensor gives a launch of no programs",
)
def launch_of_no_programs(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Launch a program for each token that is read, also where there is none."""
    on_device = inputs.to(target.device)
    page, offset = places(on_device)
    if not page.numel():
        raise RuntimeError("the runtime refuses a launch with a grid of 0")
    return gathered(on_device, page, offset)
