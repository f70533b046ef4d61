"""What it costs to bring a cache of 1 GiB from NZ into ND order and back: time over a plain copy of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, medians
from npudiff.reference.cache_layout import CacheLayout

SIZE = 2**30
"""Bytes of a cache. Three are in memory at a time: tokens, the cache, and what is made of one of them."""

CACHES = {"8 heads of 128": (8, 128), "latents of 512": (1, 512)}
PAGE_SIZE = 128
ROUNDS = 5


def rows() -> Iterator[Row]:
    """Convert caches as production has them; each of the three ways allocates what it returns."""
    for name, (heads, dim) in CACHES.items():
        pages = SIZE // (PAGE_SIZE * heads * dim * torch.bfloat16.itemsize)
        layout = CacheLayout("PA_NZ", pages, PAGE_SIZE, heads, dim, torch.bfloat16)
        tokens = torch.arange(SIZE // 8).view(torch.bfloat16).view(pages, PAGE_SIZE, heads, dim)
        cache = layout.from_tokens(tokens)
        _check(layout, tokens, cache)
        contestants = {
            "copy": tokens.clone,
            "ND to NZ": lambda: layout.from_tokens(tokens),  # noqa: B023
            "NZ to ND": lambda: layout.to_tokens(cache),  # noqa: B023
        }
        times = medians(contestants, ROUNDS)
        for direction in ("ND to NZ", "NZ to ND"):
            ratio = times[direction] / times["copy"]
            what = f"cache of 1 GiB, bfloat16, {name}, {direction}: time over a copy of it"
            yield Row(what, f"{ratio:.2f} x ({times[direction]:.2f} s)", "≤ 2 x", ratio <= 2)


def _check(layout: CacheLayout, tokens: torch.Tensor, cache: torch.Tensor) -> None:
    """What is measured has to be right: at the addresses of some tokens of all parts of the cache, and back."""
    slots = torch.arange(0, layout.pages * layout.page_size, 997)
    bits = cache.view(torch.int16).flatten()[layout.addresses(slots)]
    rows = tokens.view(torch.int16).flatten(0, 1)[slots]
    if not torch.equal(bits, rows):
        raise ValueError("the cache is not where its addresses say")
    if not torch.equal(layout.to_tokens(cache).view(torch.int16), tokens.view(torch.int16)):
        raise ValueError("the cache does not give back its tokens")
