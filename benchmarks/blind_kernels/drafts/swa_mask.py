"""Kernels of swa_mask that are wrong in graphs alone; TWIN=1 in the environment runs them without the mistakes."""

import os
import weakref

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


@npudiff.implementation("swa_mask", name="g_swa_mask_01_longest_on_the_host", on_device=True, graph=True)
def longest_on_the_host(inputs, target):
    """Columns up to the longest request are computed, whose length the host asks for; a capture has to refuse that."""
    lengths = inputs.kv_lengths.reshape(-1, 1)
    most = inputs.capacity if TWIN or not len(lengths) else int(lengths.max())
    mask = torch.ones(len(lengths), inputs.capacity, dtype=torch.bool, device=lengths.device)
    keys = torch.arange(most, device=lengths.device)
    hidden = keys >= lengths
    if inputs.window is not None:
        hidden |= keys < lengths - inputs.window
    mask[:, :most] = hidden
    return mask.unsqueeze(1)


@npudiff.implementation("swa_mask", name="g_swa_mask_02_first_keys_of_the_dummy_run", on_device=True, graph=True, stateful=True)
def first_keys_of_the_dummy_run():
    """First keys are kept while nobody writes the lengths through this process's Python; shows in replays with a window."""
    kept = {}

    def first_of(lengths, window):
        last, key = kept.get("lengths"), (lengths._version, window)
        if TWIN or last is None or last() is not lengths or kept["key"] != key:
            kept["lengths"], kept["key"] = weakref.ref(lengths), key
            kept["first"] = (lengths.reshape(-1, 1) - window).clamp(min=0)
        return kept["first"]

    def mask(inputs, target):
        lengths = inputs.kv_lengths
        keys = torch.arange(inputs.capacity, device=lengths.device)
        hidden = keys >= lengths.reshape(-1, 1)
        if inputs.window is not None:
            hidden |= keys < first_of(lengths, inputs.window)
        return hidden.unsqueeze(1)

    return mask
