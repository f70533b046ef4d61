"""Keys and values of one request in float64, read in stretches that neighbouring tiles share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.paged_kv import PagedKV

CACHE_TILE = 2**22
"""Elements of keys and values that are converted to float64 together."""


@dataclass(frozen=True)
class CacheSpan:
    """Consecutive tokens of one request."""

    keys: torch.Tensor
    """float64 ``[kv_heads, head_dim, tokens]``."""
    values: torch.Tensor
    """float64 ``[kv_heads, tokens, value_head_dim]``."""
    twin: torch.Tensor
    """float32 ``[kv_heads, tokens, 2 * value_head_dim + 1]``: absolute values, the same times the norm of the token's
    key, and that norm. Bounds are sums over these; they need no more precision."""
    largest_norm: float
    """The largest norm of a key."""
    squares: tuple[torch.Tensor, torch.Tensor] | None = None
    """Squares of what a device has keys and values off by, float64 of their shapes, where it computes and rounds them
    itself; each element's error is its own. None where they are given."""

    def narrow(self, first: int, last: int) -> CacheSpan:
        """Return tokens ``first`` to ``last - 1`` of the span, without a copy."""
        part = slice(first, last)
        squares = self.squares and (self.squares[0][..., part], self.squares[1][:, part])
        return CacheSpan(self.keys[..., part], self.values[:, part], self.twin[:, part], self.largest_norm, squares)


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
        self._span: CacheSpan | None = None

    def sizes(self) -> tuple[int, int, int]:
        """Return KV heads, and the elements of a key and of a value."""
        return self._kv.kv_heads, self._kv.head_dim, self._kv.value_head_dim

    def read(self, first: int, last: int) -> CacheSpan:
        """Return tokens ``first`` to ``last - 1``."""
        if self._span is None or first < self._first or last > self._last:
            self._first, self._last = first, max(last, min(first + self.most_keys, self._end))
            self._span = self.load(*self._kv.read(self._request, self._first, self._last))
        return self._span.narrow(first - self._first, last - self._first)

    def load(self, stored_keys: torch.Tensor, stored_values: torch.Tensor) -> CacheSpan:
        """Return a span of what the pool holds of its tokens, ``[tokens, kv_heads, dim]`` each."""
        return span_of(stored_keys, stored_values)


def span_of(
    stored_keys: torch.Tensor,
    stored_values: torch.Tensor,
    key_errors: torch.Tensor | None = None,
    value_errors: torch.Tensor | None = None,
) -> CacheSpan:
    """Return a span of keys and values ``[tokens, kv_heads, dim]``, with their errors where they have some."""
    keys = stored_keys.to(torch.float64).transpose(0, 1)
    values = stored_values.to(torch.float64).transpose(0, 1)
    norms = keys.norm(dim=-1, keepdim=True)
    heads, tokens, dim = values.shape
    twin = torch.empty(heads, tokens, 2 * dim + 1, dtype=torch.float32)
    absolute = twin[..., :dim].copy_(stored_values.transpose(0, 1)).abs_()
    last_column = twin[..., 2 * dim :].copy_(norms)
    torch.mul(absolute, last_column, out=twin[..., dim : 2 * dim])
    largest = float(norms.max()) if norms.numel() else 0.0
    squares = None
    if key_errors is not None and value_errors is not None:
        squares = key_errors.square().permute(1, 2, 0), value_errors.square().transpose(0, 1)
    return CacheSpan(keys.transpose(1, 2), values, twin, largest, squares)
