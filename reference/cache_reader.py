"""Keys and values of one request in float64, read in stretches that neighbouring tiles share."""

from __future__ import annotations

from functools import cached_property

import torch

from npudiff.reference.paged_kv import PagedKV

CACHE_TILE = 2**20
"""Elements of keys and values that are converted to float64 together: 8 MiB, which stay in the cache of a processor.
Four times as many take 1.6 times as long."""


class Stretch:
    """Consecutive tokens of one request; each form of them is made when it is asked for, and once.

    Parameters
    ----------
    stored_keys, stored_values : torch.Tensor
        ``[tokens, kv_heads, dim]``.
    errors : tuple of torch.Tensor or None
        What a device has keys and values off by, of their shapes, where it computes and rounds them itself; each
        element's error is its own. None where they are given.
    """

    def __init__(
        self,
        stored_keys: torch.Tensor,
        stored_values: torch.Tensor,
        errors: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._keys, self._values, self._errors = stored_keys.transpose(0, 1), stored_values.transpose(0, 1), errors

    @cached_property
    def keys(self) -> torch.Tensor:
        """float64 ``[kv_heads, head_dim, tokens]``."""
        return in_float64(self._keys).transpose(1, 2)

    @cached_property
    def norms(self) -> torch.Tensor:
        """float64 ``[kv_heads, tokens, 1]`` of keys."""
        norms: torch.Tensor = self.keys.transpose(1, 2).norm(dim=-1, keepdim=True)
        return norms

    @cached_property
    def largest_norm(self) -> float:
        """The largest norm of a key."""
        return float(self.norms.max()) if self.norms.numel() else 0.0

    @cached_property
    def values(self) -> torch.Tensor:
        """float64 ``[kv_heads, tokens, value_head_dim]``."""
        return in_float64(self._values)

    @cached_property
    def narrow_values(self) -> torch.Tensor:
        """The same in float32."""
        return self._values.to(torch.float32)

    @cached_property
    def absolute(self) -> torch.Tensor:
        """Absolute values in float32, for bounds, which need no more precision."""
        return self._values.abs().to(torch.float32)

    @cached_property
    def squares(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Squares of the errors, float64 of the shapes of ``keys`` and ``values``."""
        if self._errors is None:
            return None
        of_keys, of_values = self._errors
        return of_keys.square().permute(1, 2, 0), of_values.square().transpose(0, 1)


def in_float64(numbers: torch.Tensor) -> torch.Tensor:
    """Return numbers in float64; those of float16 by way of float32, which takes two thirds of the time."""
    return (numbers.to(torch.float32) if numbers.dtype == torch.float16 else numbers).to(torch.float64)


class CacheSpan:
    """Some tokens of a stretch, without a copy.

    Parameters
    ----------
    stretch : Stretch
        What was read.
    part : slice
        Tokens of it.
    """

    def __init__(self, stretch: Stretch, part: slice) -> None:
        self._stretch, self._part = stretch, part
        self.largest_norm = stretch.largest_norm

    @property
    def keys(self) -> torch.Tensor:
        """As of ``Stretch``."""
        return self._stretch.keys[..., self._part]

    @property
    def values(self) -> torch.Tensor:
        """As of ``Stretch``."""
        return self._stretch.values[:, self._part]

    @property
    def narrow_values(self) -> torch.Tensor:
        """As of ``Stretch``."""
        return self._stretch.narrow_values[:, self._part]

    @property
    def absolute(self) -> torch.Tensor:
        """As of ``Stretch``."""
        return self._stretch.absolute[:, self._part]

    @property
    def norms(self) -> torch.Tensor:
        """As of ``Stretch``."""
        return self._stretch.norms[:, self._part]

    @property
    def squares(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As of ``Stretch``."""
        whole = self._stretch.squares
        return whole and (whole[0][..., self._part], whole[1][:, self._part])


class CacheReader:
    """Reads the cache of one request; a stretch that was read last is not read again.

    Parameters
    ----------
    kv : PagedKV
        The pool.
    request : int
        Row of the block table.
    end : int
        Tokens of the request; none at or beyond it is touched.
    """

    def __init__(self, kv: PagedKV, request: int, end: int) -> None:
        self._kv, self._request, self._end = kv, request, end
        self.kv_heads, head_dim, self.value_dim = self.sizes()
        self.most_keys = max(1, CACHE_TILE // (self.kv_heads * (head_dim + self.value_dim)))
        self._first, self._last = 0, 0
        self._stretch: Stretch | None = None

    def sizes(self) -> tuple[int, int, int]:
        """Return KV heads, and the elements of a key and of a value."""
        return self._kv.kv_heads, self._kv.head_dim, self._kv.value_head_dim

    def read(self, first: int, last: int) -> CacheSpan:
        """Return tokens ``first`` to ``last - 1``."""
        if self._stretch is None or first < self._first or last > self._last:
            self._first, self._last = first, max(last, min(first + self.most_keys, self._end))
            self._stretch = self.stored(self._first, self._last)
        return CacheSpan(self._stretch, slice(first - self._first, last - self._first))

    def stored(self, first: int, last: int) -> Stretch:
        """Return tokens ``first`` to ``last - 1`` as what attention is over, for ``read`` to keep."""
        return self.load(*self._kv.read(self._request, first, last))

    def load(self, stored_keys: torch.Tensor, stored_values: torch.Tensor) -> Stretch:
        """Return what the pool holds of some tokens, ``[tokens, kv_heads, dim]`` each, as what attention is over."""
        return Stretch(stored_keys, stored_values)
