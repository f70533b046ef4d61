"""Kernels of paged_cache that are wrong in graphs alone; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
ND = {"layout": ("PA_BSND", "PA_BNSD")}


def pages_of(inputs):
    for cache, rows in ((inputs.key_cache, inputs.key), (inputs.value_cache, inputs.value)):
        yield (cache if inputs.layout == "PA_BSND" else cache.transpose(1, 2)), rows


@npudiff.implementation("paged_cache", name="g_paged_cache_01_padding_is_cut_out", supports=ND, on_device=True, graph=True)
def padding_is_cut_out(inputs, target):
    """Tokens that go nowhere are cut out by a mask, whose count the host has to know; a capture has to refuse that."""
    slots, size = inputs.slots.to(torch.int64), inputs.page_size
    for pages, rows in pages_of(inputs):
        if TWIN:
            page, offset = slots.clamp(min=0) // size, slots.clamp(min=0) % size
            nowhere = (slots < 0).view(-1, 1, 1)
            pages[page, offset] = torch.where(nowhere, pages[0, 0], rows)
        else:
            kept = slots >= 0
            pages[slots[kept] // size, slots[kept] % size] = rows[kept]
    return {"key_cache": inputs.key_cache, "value_cache": inputs.value_cache}


@npudiff.implementation("paged_cache", name="g_paged_cache_02_runs_of_the_host", supports=ND, graph=True)
def runs_of_the_host(inputs, target):
    """Slots that follow each other are copied as one run, and runs are found on the host; shows where a replay has others."""
    there = inputs.to(target.device)
    slots, size = there.slots.to(torch.int64), inputs.page_size
    if TWIN:
        for pages, rows in pages_of(there):
            kept = slots.clamp(min=0)
            pages[kept // size, kept % size] = torch.where((slots < 0).view(-1, 1, 1), pages[0, 0], rows)
        return {"key_cache": there.key_cache, "value_cache": there.value_cache}
    known, runs = inputs.slots.numpy(), []
    for token, slot in enumerate(known):
        if slot < 0:
            continue
        last = runs[-1] if runs else None
        if last is not None and last[0] + last[2] == token and last[1] + last[2] == slot and slot % size:
            last[2] += 1
        else:
            runs.append([token, int(slot), 1])
    for pages, rows in pages_of(there):
        for token, slot, count in runs:
            pages[slot // size, slot % size : slot % size + count] = rows[token : token + count]
    return {"key_cache": there.key_cache, "value_cache": there.value_cache}
