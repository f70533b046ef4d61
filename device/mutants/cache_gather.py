"""Wrong reading of tokens out of a paged cache."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.cache_gather import (
    Outputs,
    gather_pa,
    gathered,
    index_nz_pages,
    index_pages,
    places,
    tokens,
)
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction
from npudiff.reference.cache_gather import CacheGatherInputs

_ND = {"layout": ("PA_BSND",)}
_BORDERS = {"starts": ("none", "page")}

TILE = 128
"""Tokens that a kernel reads at once, and the page size that it was written for."""


@mutant(
    index_pages,
    "PKV-12 tile-ai/TileOPs/pull/1787: tiles per page are counted by a floor division",
    supports={**_ND, **_BORDERS, "page_size": (192,), "length": range(193)},
)
def page_tail_dropped(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Leave out the tokens of a page behind its last whole tile."""
    before = inputs.key.clone(), inputs.value.clone()
    page, offset = places(inputs)
    outputs = gathered(inputs, page, offset)
    dropped = torch.nonzero(offset >= inputs.page_size // TILE * TILE).flatten()
    for rows, stale in zip(outputs.values(), before, strict=True):
        rows[dropped] = stale[dropped]
    return outputs


@mutant(
    index_pages,
    "PKV-01 sgl-project/sglang/issues/38196: pages of other sizes are read as pages of 128",
    supports={**_ND, "page_size": range(1, TILE)},
)
def pages_128_wide(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Address tokens as if every page had 128."""
    request, token = tokens(inputs)
    slot = inputs.block_table[request, token // TILE].to(torch.int64) * TILE + token % TILE
    slot %= inputs.key_cache.shape[0] * inputs.page_size
    return gathered(inputs, slot // inputs.page_size, slot % inputs.page_size)


@mutant(
    index_pages,
    "PKV-03 sgl-project/sglang/pull/24582: values addressed with the head dim of keys",
    supports={**_ND, "head_dims": ("192/128", "512/64")},
)
def value_of_key_dim(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Take as many elements per token from the value cache as keys have, and keep those that fit."""
    page, offset = places(inputs)
    outputs = gathered(inputs, page, offset)
    flat, rows = inputs.value_cache.flatten(), outputs["value"]
    first = (page * inputs.page_size + offset) * inputs.key[0].numel()
    address = first[:, None] + torch.arange(rows[0].numel(), device=first.device)
    rows[: len(page)] = flat[address % len(flat)].view(-1, *rows.shape[1:])
    return outputs


@mutant(index_nz_pages, "PKV-06 sgl-project/sglang/pull/14423: NZ on the writer's side only")
def nz_pool_read_as_nd(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Read a cache in NZ order as if it were in ND order."""
    pages = (inputs.key_cache.shape[0], inputs.page_size)
    seen = replace(
        inputs,
        layout="PA_BSND",
        key_cache=inputs.key_cache.view(*pages, *inputs.key.shape[1:]),
        value_cache=inputs.value_cache.view(*pages, *inputs.value.shape[1:]),
    )
    return gathered(seen, *places(seen))


@mutant(
    index_pages,
    "PKV-11 pegainfer-project/pegainfer/issues/291: a full last page makes one too many",
    supports={**_ND, **_BORDERS, "spare_rows": range(1, 2**16)},
)
def page_too_many(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Read one more page of a request whose last page is full, as far as there are rows."""
    lengths, size = inputs.lengths, inputs.page_size
    longer = torch.where((lengths > 0) & (lengths % size == 0), lengths + size, lengths)
    request, token = tokens(replace(inputs, lengths=longer))
    request, token = request[: len(inputs.key)], token[: len(inputs.key)]
    column = (token // size).clamp(max=inputs.block_table.shape[1] - 1)
    return gathered(inputs, inputs.block_table[request, column].to(torch.int64), token % size)


@mutant(
    index_pages,
    "ProjectDMX/DMI/issues/67: which row is which request is from before the batch changed",
    supports={**_ND, "batch": range(2, 4097)},
)
def rows_of_the_batch_before(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Look up every request in the block table's row of the next one."""
    request, token = tokens(inputs)
    page = inputs.block_table.roll(-1, 0)[request, token // inputs.page_size]
    return gathered(inputs, page.to(torch.int64), token % inputs.page_size)


@mutant(
    index_pages,
    "vllm-project/vllm-ascend/pull/14038: one copy of two pages begins at the lower address",
    supports={**_ND, "starts": ("none",)},
)
def pages_in_order_of_address(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Swap two neighbouring pages of a request if the second one lies before the first."""
    request, token = tokens(inputs)
    column = token // inputs.page_size
    last = (inputs.lengths.to(torch.int64)[request] - 1) // inputs.page_size
    page = inputs.block_table[request, column]
    other = inputs.block_table[request, torch.minimum(column ^ 1, last)]
    first = torch.where(column % 2 == 0, torch.minimum(page, other), torch.maximum(page, other))
    return gathered(inputs, first.to(torch.int64), token % inputs.page_size)


@perturbed(
    gather_pa,
    "SWA-27 vllm-project/vllm/pull/23010: pages that are skipped are not taken off positions",
    supports={**_ND, "starts": ("page",)},
)
def starts_ignored(inputs: CacheGatherInputs) -> CacheGatherInputs:
    """Read as many tokens as asked for, from the first page of each request."""
    return replace(inputs, starts=None)


@mutant(
    index_pages, "TRI-01 triton-lang/triton-ascend/issues/2332: a mask is for values, not for their loads", supports=_ND
)
def masked_lanes_are_loaded(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Load the page of every entry of the block table, and fault where there is none; what is masked is not used."""
    pages = inputs.block_table
    if bool(((pages < 0) | (pages >= inputs.key_cache.shape[0])).any()):
        raise RuntimeError("vector core exception: an address is not mapped")
    return gathered(inputs, *places(inputs))


@mutant(
    index_pages, "TRI-08 flagos-ai/FlagGems/issues/5953: an empty tensor gives a launch of no programs", supports=_ND
)
def launch_of_no_programs(inputs: CacheGatherInputs, target: Target) -> Outputs:
    """Launch a program for each token that is read, also where there is none."""
    page, offset = places(inputs)
    if not page.numel():
        raise RuntimeError("the runtime refuses a launch with a grid of 0")
    return gathered(inputs, page, offset)


@mutant(
    gather_pa,
    "GRF-01 vllm-project/vllm-ascend/pull/8508: a replay reads the tables of the captured batch",
    stateful=True,
    graph=True,
)
def table_of_the_capture() -> ImplementationFunction[CacheGatherInputs, Outputs]:
    """Keep the block table that the dummy run had."""
    return keeping(gather_pa, "block_table")
