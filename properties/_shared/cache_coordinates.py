"""Where each element of a cache that was written lies, and which new token belongs there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.judge.pattern import NOWHERE

_AXES = {
    "PA_BSND": ("page", "offset", "head", "dim"),
    "PA_BNSD": ("page", "head", "offset", "dim"),
    "PA_NZ": ("page", "strip", "offset", "column of strip"),
}


def cache_coordinates(
    cache: torch.Tensor, layout: str, page_size: int, slots: torch.Tensor
) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to a cache of four axes.

    Parameters
    ----------
    cache : torch.Tensor
        ``[pages, ...]`` in the shape of its layout.
    layout : str
        ``PA_BSND``, ``PA_BNSD`` or ``PA_NZ``.
    page_size : int
        Tokens per page.
    slots : torch.Tensor
        Slot of each new token, in the order in which they are written; negative ones are left out.

    Returns
    -------
    mapping
        The axes of the layout, and ``new token``: the last one whose slot it is.
    """
    names = _AXES[layout]
    axes = {
        name: torch.arange(size).reshape([-1 if axis == place else 1 for axis in range(len(names))])
        for place, (name, size) in enumerate(zip(names, cache.shape, strict=True))
    }
    owner = dict.fromkeys(range(cache.shape[0] * page_size), NOWHERE)
    owner |= {slot: token for token, slot in enumerate(slots.flatten().tolist()) if slot >= 0}
    tokens = torch.tensor([owner[slot] for slot in range(cache.shape[0] * page_size)])
    shape = [size if name in ("page", "offset") else 1 for name, size in zip(names, cache.shape, strict=True)]
    return {**axes, "new token": tokens.reshape(shape)}
