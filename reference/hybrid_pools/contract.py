"""What a pair of hybrid pools is given, what it must be able to do, and what it tells about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch


@dataclass(frozen=True)
class PoolStorage:
    """The storage of one pool before anything is in it: every slot is poison, and none of it may ever be used."""

    key: torch.Tensor
    """``[1 + pages, page_size, kv_heads, head_dim]``, bfloat16 or float16. Page 0 is a dummy that belongs to nobody."""
    value: torch.Tensor
    """``[1 + pages, page_size, kv_heads, value_head_dim]``, of the dtype of ``key``."""

    @property
    def pages(self) -> int:
        """Pages that requests can have: all but page 0."""
        return self.key.shape[0] - 1

    def to(self, device: str | torch.device) -> PoolStorage:
        """Return a copy on ``device``, to write to."""
        return PoolStorage(self.key.to(device, copy=True), self.value.to(device, copy=True))


@dataclass(frozen=True)
class HybridPoolsInputs:
    """What a pair of pools is opened with: one for the full-attention layers, one for those with a window.

    One layer of each kind stands for all of them. Both have the same heads; a pool has slots of its own.
    """

    full: PoolStorage
    sliding: PoolStorage
    """Storage of the two pools, with pages of the same size, but not as many."""
    heads: int
    """Query heads, a multiple of the KV heads."""
    window: int
    """Keys that a query of a sliding layer sees, its own included."""
    scale: float
    """Factor of the scores."""
    requests: int
    """Requests that are live at a time, at most."""
    prefix_sharing: bool
    """Whether requests may begin with pages of others (``share``, ``fork``). Eviction then keeps more."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.full.key.shape[1]

    def to(self, device: str | torch.device) -> HybridPoolsInputs:
        """Return the same inputs on ``device``; the storage is a copy, to write to."""
        return replace(self, full=self.full.to(device), sliding=self.sliding.to(device))


@dataclass(frozen=True)
class TokenStates:
    """Keys and values of some tokens of one or more requests, for both kinds of layer.

    Attributes
    ----------
    full_key, sliding_key : torch.Tensor
        ``[tokens, kv_heads, head_dim]``.
    full_value, sliding_value : torch.Tensor
        ``[tokens, kv_heads, value_head_dim]``.
    """

    full_key: torch.Tensor
    full_value: torch.Tensor
    sliding_key: torch.Tensor
    sliding_value: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.full_key.shape[0]

    def copy(self) -> TokenStates:
        """Return states that may be written to."""
        return TokenStates(*(getattr(self, name).clone() for name in self.__dataclass_fields__))

    def to(self, device: str | torch.device) -> TokenStates:
        """Return the same states on ``device``."""
        return TokenStates(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class PoolsSnapshot:
    """Where everything lies. A slot is ``page * page_size + offset``; page 0 is nobody's."""

    slots: Mapping[int, torch.Tensor]
    """Live request to int ``[tokens]``: the slot of each of its tokens in the full pool."""
    mapping: torch.Tensor
    """int64, at least ``[(1 + pages) * page_size]``: slot of the full pool to slot of the sliding pool, 0 for none."""
    block_table: torch.Tensor
    sliding_block_table: torch.Tensor
    """int32 ``[live requests, width]`` in the order of ``slots``: pages as the attention of each pool gets them.
    ``width`` is what the longest request needs. A page that was evicted is 0."""
    free_pages: torch.Tensor
    free_sliding_pages: torch.Tensor
    """The pages of each pool that nobody has, in any order."""


class HybridPools(Protocol):
    """What an implementation opens: two pools, the requests in them, and attention over both.

    Requests are numbers that the caller chooses; a number is used again when its request is gone. A page holds tokens
    of consecutive positions, starting with a multiple of ``page_size``, at the offset of their position. It is taken in
    both pools when the first of its tokens comes, so a token has the same offset in both. A method that answers False
    has changed nothing: one of the pools has fewer free pages than the step needs.
    """

    def allocate(self, request: int, tokens: TokenStates) -> bool:
        """Admit a request with its first tokens; needs a page for each ``page_size`` of them that is begun."""

    def extend(self, request: int, tokens: TokenStates) -> bool:
        """Append tokens to a request: first into the rest of its last page, then into new ones."""

    def decode(self, requests: Sequence[int], tokens: TokenStates) -> bool:
        """Append one token to each of some requests, in their order; all of them or none."""

    def evict(self, requests: Sequence[int]) -> None:
        """Give up pages of the sliding pool that no coming token of their request sees.

        A request of ``length`` tokens keeps the last ``window`` of them or, with prefix sharing, the last
        ``max(window, page_size)`` rounded up to whole pages: prefixes of whole pages then stay usable. Pages that lie
        before that as a whole are given up, and their slots are mapped to 0; a page that other requests have as well
        stays.
        """

    def free(self, request: int) -> None:
        """Forget a request. Pages that no other request has are free again, and their slots are mapped to 0."""

    def share(self, source: int, request: int, pages: int, tokens: TokenStates) -> bool:
        """Admit a request that begins with the first whole pages of another, and continues with tokens of its own.

        The pages are not copied. The caller makes sure that the window of the first new token was not evicted.
        """

    def fork(self, source: int, request: int) -> bool:
        """Admit a request with all tokens of another.

        Whole pages are not copied. A last page with room is, in both pools, since both requests will write into it.
        """

    def attend(
        self, requests: Sequence[int], query_lengths: Sequence[int], query: torch.Tensor
    ) -> Mapping[str, torch.Tensor]:
        """Return attention of the last tokens of some requests, in both kinds of layer.

        Parameters
        ----------
        requests : sequence of int
            Which.
        query_lengths : sequence of int
            How many of the last tokens of each request.
        query : torch.Tensor
            ``[sum(query_lengths), heads, head_dim]`` on the host, one request after the other.

        Returns
        -------
        mapping
            ``full`` and ``sliding``: ``[sum(query_lengths), heads, value_head_dim]`` in the query's dtype.
        """

    def snapshot(self) -> PoolsSnapshot | None:
        """Say where everything lies; None where that cannot be seen, and attention alone is compared."""
