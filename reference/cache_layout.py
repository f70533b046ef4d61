"""Where each element of a paged cache lies: the layouts in which backends keep pages, as addresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LAYOUTS = ("PA_BSND", "PA_BNSD", "PA_NZ")
"""PA_BSND is ``[pages, page_size, heads, dim]`` and PA_BNSD ``[pages, heads, page_size, dim]``.

PA_NZ is ``[pages, heads * dim / C0, page_size, C0]``: the columns of a token, all heads side by side, are cut into
strips of C0, and the same strip of all tokens of a page lies together.
"""

STRIP_BYTES = 32
"""Bytes of one strip of PA_NZ: C0 is 16 elements of two bytes, or 32 of one."""


def strip_width(dtype: torch.dtype) -> int:
    """Return C0, the elements of one strip of PA_NZ."""
    return STRIP_BYTES // dtype.itemsize


@dataclass(frozen=True)
class CacheLayout:
    """The shape of one cache and the address of each of its elements."""

    name: str
    """One of ``LAYOUTS``."""
    pages: int
    page_size: int
    heads: int
    dim: int
    """Sizes."""
    dtype: torch.dtype
    """Dtype of the elements; it sets the strip width of PA_NZ."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in which the cache lies.

        Raises
        ------
        ValueError
            If the layout is not known, or the columns of a token do not fill whole strips.
        """
        pages, size, heads, dim = self.pages, self.page_size, self.heads, self.dim
        if self.name == "PA_BSND":
            return (pages, size, heads, dim)
        if self.name == "PA_BNSD":
            return (pages, heads, size, dim)
        if self.name != "PA_NZ":
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.name}")
        strip = strip_width(self.dtype)
        if heads * dim % strip:
            raise ValueError(f"PA_NZ needs heads * dim to be a multiple of {strip}, got {heads} * {dim}")
        return (pages, heads * dim // strip, size, strip)

    def addresses(self, slots: torch.Tensor) -> torch.Tensor:
        """Return the place of every element of some slots in the flattened cache.

        Parameters
        ----------
        slots : torch.Tensor
            int64 ``[tokens]``: ``page * page_size + offset``.

        Returns
        -------
        torch.Tensor
            int64 ``[tokens, heads, dim]``.
        """
        size, heads, dim = self.page_size, self.heads, self.dim
        page, offset = (slots // size)[:, None, None], (slots % size)[:, None, None]
        head, column = torch.arange(heads)[:, None], torch.arange(dim)
        if self.name == "PA_BSND":
            return ((page * size + offset) * heads + head) * dim + column
        if self.name == "PA_BNSD":
            return ((page * heads + head) * size + offset) * dim + column
        _, strips, _, width = self.shape
        across = head * dim + column
        return ((page * strips + across // width) * size + offset) * width + across % width

    def to_tokens(self, cache: torch.Tensor) -> torch.Tensor:
        """Return the rows of all tokens, without addresses: a view where there can be one, else one pass of copying.

        Parameters
        ----------
        cache : torch.Tensor
            A cache in this layout, of ``shape``.

        Returns
        -------
        torch.Tensor
            ``[pages, page_size, heads, dim]``.
        """
        self._check(cache, self.shape)
        if self.name == "PA_BSND":
            return cache
        if self.name == "PA_BNSD":
            return cache.transpose(1, 2)
        return cache.transpose(1, 2).reshape(self._tokens)

    def from_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a cache in this layout, of ``shape``; the inverse of ``to_tokens``.

        Parameters
        ----------
        tokens : torch.Tensor
            ``[pages, page_size, heads, dim]``.

        Returns
        -------
        torch.Tensor
            A new tensor, but for PA_BSND, in which ``tokens`` lie already.
        """
        self._check(tokens, self._tokens)
        if self.name == "PA_BSND":
            return tokens
        if self.name == "PA_BNSD":
            return tokens.transpose(1, 2).contiguous()
        pages, strips, size, width = self.shape
        return tokens.reshape(pages, size, strips, width).transpose(1, 2).contiguous()

    @property
    def _tokens(self) -> tuple[int, ...]:
        return (self.pages, self.page_size, self.heads, self.dim)

    def _check(self, cache: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(cache.shape) != shape or cache.dtype != self.dtype:
            raise ValueError(f"expected {shape} of {self.dtype}, got {tuple(cache.shape)} of {cache.dtype}")
