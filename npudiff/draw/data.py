"""Data of a case: counter-based random streams that give the same bits on every machine and library version."""

from __future__ import annotations

import functools
import hashlib
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence

_QUANTILES = 4096
_NUMPY_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@functools.cache
def _normal_table(dtype: torch.dtype) -> np.ndarray:
    """Bit patterns of the mid-quantiles of the standard normal distribution, on a grid of 2**-12."""
    normal = statistics.NormalDist()
    values = [round(normal.inv_cdf((i + 0.5) / _QUANTILES) * 4096) / 4096 for i in range(_QUANTILES)]
    return np.asarray(torch.tensor(values, dtype=torch.float64).to(dtype).view(_NUMPY_BITS[dtype]).numpy())


class _Key(ISeedSequence):
    """A key where NumPy expects what makes one: given a plain key, it asks the system for entropy first, in vain."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:
        """Return the two words of the key."""
        del n_words, dtype
        return self._words


class Stream:
    """A named stream of random numbers of one case.

    Only the raw 64-bit words of NumPy's Philox are used: their values are fixed by the algorithm (Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", 2011), while NumPy's distributions may change between versions.

    Parameters
    ----------
    seed : int
        Seed of the case.
    name : str
        Name of the stream; streams of different names are independent.
    """

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
        self._bits = np.random.Philox(_Key(digest))  # type: ignore[arg-type] # any is documented

    def random_uint64(self, count: int) -> np.ndarray:
        """Return ``count`` raw 64-bit words."""
        return np.asarray(self._bits.random_raw(count))

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return standard normal values (4,096 quantiles, at most 3.7 in magnitude) of a float dtype."""
        count = int(np.prod(shape))
        index = self.random_uint64(-(-count // 4)).view(np.uint16)[:count] & (_QUANTILES - 1)
        # All indices are inside; to raise where one is not, NumPy would make them longer first, and take twice as long.
        bits = np.take(_normal_table(dtype), index, mode="clip")
        return torch.from_numpy(bits).view(dtype).reshape(tuple(shape))

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """Return ``count`` integers in ``[low, high)``."""
        found: list[int] = self.integer_array(low, high, count).tolist()
        return found

    def integer_array(self, low: int, high: int, count: int) -> np.ndarray:
        """Return the same as int64 ``[count]``."""
        found: np.ndarray = low + (self.random_uint64(count) % np.uint64(high - low)).astype(np.int64)
        return found

    def permutation(self, count: int) -> list[int]:
        """Return a permutation of ``range(count)``."""
        order: list[int] = np.argsort(self.random_uint64(count), kind="stable").tolist()
        return order

    def permutations(self, rows: int, count: int) -> np.ndarray:
        """Return as many permutations of ``range(count)``, int64 ``[rows, count]``, as so many calls would."""
        return np.argsort(self.random_uint64(rows * count).reshape(rows, count), axis=1, kind="stable")
