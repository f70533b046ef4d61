"""Paged caches whose other rows are NaN, and what rounding in float16 may cost."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

BLOCK = 16


def normal(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def paged(sequences, block_size=BLOCK):
    """Put sequences [tokens, heads, dim] into blocks in a drawn order: cache and block table."""
    width = max(math.ceil(len(one) / block_size) for one in sequences)
    order = torch.randperm(len(sequences) * width, generator=torch.Generator().manual_seed(7)) + 1
    table = order.view(len(sequences), width).to(torch.int32)
    cache = torch.full((len(order) + 2, block_size, *sequences[0].shape[1:]), math.nan).to(sequences[0].dtype)
    for row, tokens in zip(table.tolist(), sequences, strict=True):
        for block, part in zip(row, tokens.split(block_size), strict=False):
            cache[block, : len(part)] = part
    return cache, table


def lost_in_halves(query, key, scale):
    """Bound the relative error of probabilities whose scores were rounded to float16 three times; all by head."""
    group = len(query) // len(key)
    scores = query.double() @ key.double().repeat_interleave(group, 0).transpose(1, 2) * scale
    # product, scale, scaled score and the difference from the maximum, and a mask, each half a unit of float16
    error = 6 * 2**-11 * scores.abs().amax(-1, keepdim=True) + 2**-20
    return torch.expm1(2 * error) + 3 * 2**-11


@pytest.fixture(scope="session")
def atb():
    return SimpleNamespace(
        normal=normal, int32=int32, paged=paged, lost_in_halves=lost_in_halves, block=BLOCK, ops=torch.ops.atb
    )
