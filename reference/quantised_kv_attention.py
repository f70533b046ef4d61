"""Attention over a paged cache of int8 keys and values, which scales and offsets give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import attended
from npudiff.reference.bounds import Expected
from npudiff.reference.cache_reader import CacheReader, Stretch
from npudiff.reference.paged_kv import PagedKV, check_pages
from npudiff.reference.views import moved

GRANULARITIES = ("channel", "tensor", "head", "token", "token and head")
"""What has a number of its own: every element of a KV head, the whole cache, a KV head, a token, a token of a head."""

DEQUANTISED_IN = ("float32", "query")
"""In which precision a device may compute ``(integer + offset) * scale``: no source settles it. query: rounded to the
query's dtype after every step, numbers included, as the golden of CANN's tests and vllm-ascend have it. float32: not
rounded, as by kernels that multiply queries or scores. Both are right here; leave one out, and it is wrong."""


@dataclass(frozen=True)
class Antiquant:
    """What gives the keys, or the values, of a pool back: ``(integer + offset) * scale``."""

    granularity: str
    """One of ``GRANULARITIES``."""
    scale: torch.Tensor
    """In the query's dtype ``[kv_heads, head_dim]``, ``[1]`` or ``[kv_heads]``; of tokens float32, and they lie as the
    pool does: ``[pages, page_size]``, or ``[pages, kv_heads, page_size]``."""
    offset: torch.Tensor | None = None
    """Of the shape and dtype of ``scale``; none is 0."""

    @property
    def of_tokens(self) -> bool:
        """Whether tokens have numbers of their own."""
        return self.granularity in ("token", "token and head")

    def to(self, device: str | torch.device) -> Antiquant:
        """Return the same numbers on ``device``."""
        return replace(
            self, scale=moved(self.scale, device), offset=None if self.offset is None else moved(self.offset, device)
        )

    def shape(self, pool: PagedKV, dim: int) -> tuple[int, ...]:
        """Return the shape that numbers of a pool have, whose heads have so many elements."""
        heads, pages, size = pool.kv_heads, len(pool.key), pool.page_size
        shapes: Mapping[str, tuple[int, ...]] = {
            "channel": (heads, dim),
            "tensor": (1,),
            "head": (heads,),
            "token": (pages, size),
            "token and head": (pages, heads, size),
        }
        return shapes[self.granularity]

    def restored(self, integers: torch.Tensor, slots: torch.Tensor, page_size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements as they are computed in a dtype, ``[tokens, kv_heads, dim]``.

        Parameters
        ----------
        integers : torch.Tensor
            int8 ``[tokens, kv_heads, dim]``.
        slots : torch.Tensor
            int64 ``[tokens]``: where they lie in the pool.
        page_size : int
            Slots of a page.
        dtype : torch.dtype
            float64 for the exact elements.
        """
        found = integers.to(dtype)
        if self.offset is not None:
            found = found + self._broadcast(self.offset, slots, page_size).to(dtype)
        return found * self._broadcast(self.scale, slots, page_size).to(dtype)

    def _broadcast(self, numbers: torch.Tensor, slots: torch.Tensor, page_size: int) -> torch.Tensor:
        """Numbers that broadcast to ``[tokens, kv_heads, dim]``."""
        if self.granularity == "token":
            return numbers[slots // page_size, slots % page_size][:, None, None]
        if self.granularity == "token and head":
            return numbers[slots // page_size, :, slots % page_size].unsqueeze(-1)
        return numbers if self.granularity in ("channel", "tensor") else numbers.unsqueeze(-1)


@dataclass(frozen=True)
class QuantisedKvAttentionInputs:
    """One attention call of one layer.

    Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at position ``L - q + r`` and sees the keys at
    positions up to its own.
    """

    query: torch.Tensor
    """``[tokens, heads, head_dim]``, bfloat16 or float16: the new tokens of all requests, one request after the other.
    Rows beyond ``sum(query_lengths)`` are padding: their output is zero, their LSE is not specified."""
    pool: PagedKV
    """int8 keys and values, of one head dim: ``[pages, page_size, kv_heads, head_dim]``, or in NZ in strips of 32."""
    of_keys: Antiquant
    """What gives keys back."""
    of_values: Antiquant
    """What gives values back: numbers of the same kind, or of tokens where those of keys are of channels."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """New tokens and total tokens (the new ones included) of each request."""
    scale: float
    """Factor of the scores."""

    def to(self, device: str | torch.device) -> QuantisedKvAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        return replace(
            self,
            query=moved(self.query, device),
            pool=self.pool.to(device),
            of_keys=self.of_keys.to(device),
            of_values=self.of_values.to(device),
        )


def quantised_kv_attention(inputs: QuantisedKvAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp, with bounds.

    A row that sees no key (of a request of length 0) has output 0 and an LSE of minus infinity.

    Returns
    -------
    dict
        ``output``: ``[tokens, heads, head_dim]`` in the query's dtype. ``lse``: float32 ``[tokens, heads]``, natural
        logarithm of the sum of exponentials of the scaled scores.

    Raises
    ------
    ValueError
        If shapes or dtypes contradict each other, or a page is none of the pool.

    Notes
    -----
    Softmax attention of Vaswani et al., "Attention is all you need" (2017), eq. 1, over ``(integer + offset) * scale``
    (torch_npu's documentation of ``npu_fused_infer_attention_score``, antiquantisation). The value is that of the first
    form of ``DEQUANTISED_IN``. The bound reaches to what the other one comes to, and as far beyond it as attention over
    those elements may be off: a device has one or the other, for all elements. How rounding moves a result is computed
    and not bounded, since equal integers of a channel are rounded alike and their errors do not cancel.
    """
    _validate(inputs)
    dtypes = {"float32": torch.float64, "query": inputs.query.dtype}
    first, *others = (_attended(inputs, dtypes[name]) for name in DEQUANTISED_IN)
    return {
        name: replace(one, bound=torch.stack([one.bound, *(_reach(one, form[name]) for form in others)]).amax(dim=0))
        for name, one in first.items()
    }


def _reach(first: Expected, other: Expected) -> torch.Tensor:
    """How far from the value a device may be that has the other form."""
    return torch.where(first.value == other.value, 0.0, (other.value - first.value).abs()) + other.bound


def _attended(inputs: QuantisedKvAttentionInputs, dtype: torch.dtype) -> dict[str, Expected]:
    return attended(
        inputs.query,
        inputs.query_lengths,
        inputs.kv_lengths,
        lambda request, total: QuantisedReader(inputs, request, total, dtype),
        inputs.pool.value_head_dim,
        scale=inputs.scale,
    )


class QuantisedReader(CacheReader):
    """Reads keys and values of one request as they are computed in a dtype."""

    def __init__(self, inputs: QuantisedKvAttentionInputs, request: int, end: int, dtype: torch.dtype) -> None:
        self._inputs, self._dtype = inputs, dtype
        super().__init__(inputs.pool, request, end)

    def stored(self, first: int, last: int) -> Stretch:
        """See ``CacheReader``."""
        pool, tokens = self._kv, torch.arange(first, last)
        pages = pool.block_table[self._request, tokens // pool.page_size].to(torch.int64)
        slots = pages * pool.page_size + tokens % pool.page_size
        sides = zip(pool.read(self._request, first, last), (self._inputs.of_keys, self._inputs.of_values), strict=True)
        keys, values = (side.restored(part, slots, pool.page_size, self._dtype) for part, side in sides)
        return Stretch(keys, values)


def _validate(inputs: QuantisedKvAttentionInputs) -> None:
    tokens, heads, head_dim = inputs.query.shape
    pool = inputs.pool
    if (pool.key.dtype, pool.value.dtype) != (torch.int8, torch.int8):
        raise ValueError(f"keys and values are int8, got {pool.key.dtype} and {pool.value.dtype}")
    if head_dim != pool.head_dim or heads % pool.kv_heads or pool.key.shape != pool.value.shape:
        shapes = f"{tuple(pool.key.shape)} and values {tuple(pool.value.shape)}"
        raise ValueError(f"query {tuple(inputs.query.shape)} does not fit keys {shapes}")
    for name, side in (("keys", inputs.of_keys), ("values", inputs.of_values)):
        _validate_numbers(name, side, pool, inputs.query.dtype)
    if len(inputs.query_lengths) != len(inputs.kv_lengths) or sum(inputs.query_lengths) > tokens:
        raise ValueError(f"lengths {inputs.query_lengths} and {inputs.kv_lengths} are not of {tokens} rows")
    check_pages(pool.block_table, inputs.query_lengths, inputs.kv_lengths, pool.page_size, len(pool.key))


def _validate_numbers(name: str, side: Antiquant, pool: PagedKV, dtype: torch.dtype) -> None:
    if side.granularity not in GRANULARITIES:
        raise ValueError(f"numbers are one of {', '.join(GRANULARITIES)}, got {side.granularity}")
    dtype = torch.float32 if side.of_tokens else dtype
    shape = side.shape(pool, pool.head_dim)
    for what, numbers in (("scale", side.scale), ("offset", side.offset)):
        if numbers is not None and (tuple(numbers.shape) != shape or numbers.dtype != dtype):
            given = f"{list(numbers.shape)} of {numbers.dtype}"
            raise ValueError(f"the {what} of {name} per {side.granularity} is {list(shape)} of {dtype}, got {given}")
