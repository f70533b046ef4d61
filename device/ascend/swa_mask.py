"""The mask of sliding-window attention, as a backend builds it for a decode: eagerly, or in a captured buffer."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.swa_mask import SwaMaskInputs


def window_mask(kv_lengths: torch.Tensor, capacity: int, left_context: int | None) -> torch.Tensor:
    """Build the mask of the newest query of each request; True is hidden.

    Parameters
    ----------
    kv_lengths : torch.Tensor
        int32 or int64, ``[batch]`` or ``[batch, 1]``.
    capacity : int
        Key columns.
    left_context : int or None
        Visible keys, the query's own included. Backends write -1 for a layer without a window: pass None.

    Returns
    -------
    torch.Tensor
        bool ``[batch, 1, capacity]`` on the device of the lengths.
    """
    lengths = kv_lengths.reshape(-1, 1)
    keys = torch.arange(capacity, device=lengths.device).unsqueeze(0)
    hidden = keys >= lengths
    if left_context is not None:
        hidden |= keys < (lengths - left_context).clamp(min=0)
    return hidden.unsqueeze(1)


@implementation("swa_mask", name="eager", on_device=True, graph=True)
def swa_mask_eager(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """Compare key indices with the window's first key and the length (sglang: get_swa_mask)."""
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)


@implementation("swa_mask", name="graph_buffer", on_device=True, graph=True)
def swa_mask_graph(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """Write into a captured buffer that is larger than the batch and holds what the last replay left."""
    lengths = inputs.kv_lengths
    batch = lengths.shape[0]
    buffer = torch.zeros(batch + 2, 1, inputs.capacity + 5, dtype=torch.bool, device=target.device)
    buffer.fill_(True)
    buffer[:batch] = window_mask(lengths, buffer.shape[2], inputs.window)
    return buffer[:batch, :, : inputs.capacity].contiguous()
