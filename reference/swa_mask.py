"""Which keys each request of a decode batch hides: the mask of sliding-window attention.

The mask is a tensor that a decode call passes to the fused attention operator, because that operator ignores its
window arguments at query length 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly


@dataclass(frozen=True)
class SwaMaskInputs:
    """What a mask is built from."""

    kv_lengths: torch.Tensor
    """int32 or int64, shape ``[batch]`` or ``[batch, 1]``: tokens of each request, the newest included. 0 is a dummy
    request of a padded batch."""
    capacity: int
    """Number of key columns, at least the longest length (table width times page size)."""
    window: int | None
    """Number of visible keys, the query's own included. None shows every key of the request."""

    def to(self, device: str | torch.device) -> SwaMaskInputs:
        """Return the same inputs on ``device``."""
        return replace(self, kv_lengths=self.kv_lengths.to(device))


def swa_mask(inputs: SwaMaskInputs) -> dict[str, Expected]:
    """Return the mask of the newest query of each request.

    Key ``j`` of a request with ``L`` tokens is hidden when ``j < L - window`` (left the window) or ``j >= L`` (not
    written yet). True means hidden, as in every mask of the fused attention operators.

    Returns
    -------
    dict
        ``mask``: bool ``[batch, 1, capacity]``, compared bit for bit.

    Raises
    ------
    ValueError
        If the window is not positive, or a length is negative or above the capacity.
    """
    lengths = [int(length) for length in inputs.kv_lengths.flatten().tolist()]
    if inputs.window is not None and inputs.window < 1:
        raise ValueError(f"window must be at least 1 (the query's own key) or None, got {inputs.window}")
    if any(not 0 <= length <= inputs.capacity for length in lengths):
        raise ValueError(f"kv_lengths must lie between 0 and capacity {inputs.capacity}, got {lengths}")
    mask = torch.ones(len(lengths), 1, inputs.capacity, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        first = 0 if inputs.window is None else max(0, length - inputs.window)
        row[:, first:length] = False
    return {"mask": exactly(mask)}
