"""Tokens, caches and profiles for the cache operators, and where a token lies: written as loops, element by element."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile


def tokens(count, heads, dim, dtype=torch.float16, seed=0):
    """Return [count, heads, dim], no element 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 120, (count, heads, dim), generator=generator).to(dtype)


def nz_cache(blocks, block_size, heads, dim, dtype=torch.float16):
    c0 = 32 // dtype.itemsize
    return torch.zeros(blocks, heads * dim // c0, block_size, c0, dtype=dtype)


def nd_cache(blocks, block_size, heads, dim, dtype=torch.float16):
    return torch.zeros(blocks, block_size, heads, dim, dtype=dtype)


def written(cache, rows, slots, *, nz):
    """Return what a cache must be after rows went to slots, in order; the cache has the axes of its mode."""
    result = cache.clone()
    block_size = cache.shape[2] if nz else cache.shape[1]
    for row, slot in zip(rows, slots, strict=True):
        if slot < 0:
            continue
        block, offset = divmod(slot, block_size)
        if not nz:
            result[block, offset] = row
            continue
        for position, element in enumerate(row.flatten()):
            result[block, position // cache.shape[3], offset, position % cache.shape[3]] = element
    return result


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def cast(tensor):
    return torch.ops.npu.npu_format_cast(tensor, 29)


@pytest.fixture(scope="session")
def kit():
    return SimpleNamespace(
        tokens=tokens, nz_cache=nz_cache, nd_cache=nd_cache, written=written, changed=changed, cast=cast
    )
