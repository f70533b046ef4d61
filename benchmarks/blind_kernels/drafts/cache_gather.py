"""A kernel of cache_gather that is wrong in graphs alone; TWIN=1 in the environment runs it without the mistake."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
BLOCK = 128


@npudiff.implementation("cache_gather", name="g_cache_gather_01_grid_of_the_capture", supports={"layout": ("PA_BSND", "PA_BNSD")}, graph=True)
def grid_of_the_capture(inputs, target):
    """Its grid has blocks of 128 tokens of the longest request, which the host knows; shows where a replay's has more."""
    there = inputs.to(target.device)
    lengths, table, size = there.lengths.to(torch.int64), there.block_table, inputs.page_size
    most = len(inputs.key) if TWIN else int(inputs.lengths.numpy().max(initial=0))
    token = torch.arange(-(-most // BLOCK) * BLOCK, device=table.device)
    valid = token < lengths.unsqueeze(1)
    behind = len(inputs.key)
    to = torch.where(valid, (lengths.cumsum(0) - lengths).unsqueeze(1) + token, behind)
    at = token.expand_as(valid) if there.starts is None else there.starts.to(torch.int64).unsqueeze(1) + token
    at = torch.where(valid, at, 0)
    width = table.shape[1]
    if not len(token) or not width:
        return {"key": there.key, "value": there.value}
    page = table.to(torch.int64).gather(1, (at // size).clamp(max=width - 1))
    page, offset = torch.where(valid, page, 0), torch.where(valid, at % size, 0)
    found = {}
    for name, cache, rows in (("key", there.key_cache, there.key), ("value", there.value_cache, there.value)):
        pages = cache if inputs.layout == "PA_BSND" else cache.transpose(1, 2)
        room = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
        room[to.flatten()] = pages[page.flatten(), offset.flatten()]
        found[name] = room[:behind]
    return found
