"""What tests of grouped products share: draws, group lists, packed int4, and products in Python's integers."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile

GARBAGE = {torch.float16: 0x5A5A, torch.bfloat16: 0x5A5A, torch.float32: 0x5A5A5A5A, torch.int8: 0x5A}


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def integers(*shape, low=-128, high=127, seed=0, dtype=torch.int8):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pack(weight):
    """Pack int4 along the last axis, bit by bit: int8 [..., n] to int32 [..., n / 8]."""
    words = weight.to(torch.int64).unflatten(-1, (-1, 8)) & 15
    total = sum(words[..., place] << (4 * place) for place in range(8))
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def bits(scale, high=0):
    """Return int64 with the bits of float32 in the lower half, and something in the upper one."""
    low = scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return low + (high << 32)


def python_product(x, weight):
    """Multiply in Python's integers."""
    columns = list(zip(*weight.tolist(), strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in x.tolist()]


def is_garbage(tensor):
    view = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return bool((tensor.contiguous().view(view) == GARBAGE[tensor.dtype]).all())


@pytest.fixture(scope="session")
def gmm():
    return SimpleNamespace(
        changed=changed, integers=integers, pack=pack, bits=bits, python_product=python_product, is_garbage=is_garbage
    )
