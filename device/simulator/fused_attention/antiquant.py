"""Keys and values of integers under a 16-bit query: the parameters that give them back, and what is given back.

The value of an element is ``(integer + offset) * scale``. Scale and offset have a number per channel (mode 0; or one
for all), per token (1), per head (2), per token and head (3), or as 1 and 3 in blocks of a cache (4, 5). Sources: DOC
of both versions; the rounding points are those of the golden in CANN's tests, see the profile's ``antiquant_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.fused_attention.paging import (
    ContiguousTokens,
    JoinedTokens,
    KeyValues,
    PagedTokens,
    Tokens,
    tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Span
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

PER_CHANNEL, PER_TOKEN, PER_HEAD, PER_TOKEN_AND_HEAD, PAGED_PER_TOKEN, PAGED_PER_TOKEN_AND_HEAD = range(6)


@dataclass(frozen=True)
class Parameters:
    """What gives the keys, or the values, of a call back."""

    names: tuple[str, str, str]
    """Scale, offset and mode in the caller's words."""
    scale: Tensor | None
    offset: Tensor | None
    mode: int
    combined: bool
    """Whether scale and offset are the halves of one tensor for key and value."""


_SEPARATE = {
    True: (
        ("key_antiquant_scale", "key_antiquant_offset", "key_antiquant_mode"),
        ("value_antiquant_scale", "value_antiquant_offset", "value_antiquant_mode"),
    ),
    False: (
        ("dequant_scale_key", "dequant_offset_key", "key_quant_mode"),
        ("dequant_scale_value", "dequant_offset_value", "value_quant_mode"),
    ),
}
_COMBINED = ("antiquant_scale", "antiquant_offset", "antiquant_mode")

ANTIQUANT_NAMES = frozenset(name for version in _SEPARATE.values() for side in version for name in side) | {*_COMBINED}
"""Arguments of both versions that a cache of integers has a use for."""


def parameters(request: FusedAttentionRequest) -> tuple[Parameters, Parameters]:
    """Read the parameters of keys and of values; nothing is checked.

    DOC: separate ones win over combined ones, which have a leading axis of 2.
    """
    given = dict(request.extras)
    separate = _SEPARATE[request.names.first]
    if not any(name in given for side in separate for name in side) and _COMBINED[0] in given:
        # DOC: the mode has no effect for several queries, whose numbers are per channel.
        single = not request.packed and request.query.shape[request.axes.index("S")] == 1
        mode = int(str(given.get(_COMBINED[2], 0))) if single else PER_CHANNEL
        halves = [_halves(given.get(name)) for name in _COMBINED[:2]]
        key, value = (Parameters(_COMBINED, halves[0][i], halves[1][i], mode, combined=True) for i in (0, 1))
        return key, value
    key, value = (
        Parameters(
            side, _tensor(given.get(side[0])), _tensor(given.get(side[1])), int(str(given.get(side[2], 0))), False
        )
        for side in separate
    )
    return key, value


def _tensor(given: object) -> Tensor | None:
    return given if isinstance(given, torch.Tensor) else None


def _halves(given: object) -> tuple[Tensor | None, Tensor | None]:
    """Cut a tensor in two along its first axis; what has none, or more than two rows, stays whole."""
    if not isinstance(given, torch.Tensor):
        return None, None
    return (given[0], given[1]) if given.dim() and len(given) == 2 else (given, given)


@dataclass(frozen=True)
class Constant:
    """One number for all tokens: [heads or 1, 1, dim or 1]."""

    tensor: Tensor

    def read(self, start: int, stop: int) -> Tensor:
        """Return the tensor, which holds for any range."""
        del start, stop
        return self.tensor


@dataclass(frozen=True)
class DequantisedTokens:
    """Tokens of integers as numbers of ``dtype``, rounded to it after every step."""

    integers: Tokens
    scale: Tokens
    offset: Tokens | None
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Return the tokens ``start`` to ``stop``."""
        integers = self.integers.read(start, stop)
        values = (_unpacked(integers) if integers.dtype == torch.int32 else integers).to(self.dtype)
        if self.offset is not None:
            values = values + self.offset.read(start, stop).to(self.dtype)
        return values * self.scale.read(start, stop).to(self.dtype)


def _unpacked(packed: Tensor) -> Tensor:
    """Take eight int4 out of each int32, along the last axis."""
    shifts = torch.arange(28, -4, -4, dtype=torch.int32)
    return ((packed.unsqueeze(-1) << shifts) >> 28).flatten(-2)


def key_values(request: FusedAttentionRequest, span: Span, profile: CannProfile) -> KeyValues:
    """Return the source of one sequence's keys and values, in numbers."""
    keys, values = tokens(request, span, request.key), tokens(request, span, request.value)
    if request.integer_cache:
        of_keys, of_values = parameters(request)
        dtype = request.query.dtype if profile.antiquant_sums == "query_dtype" else torch.float32
        keys = _dequantised(request, span, keys, of_keys, dtype)
        values = _dequantised(request, span, values, of_values, dtype)
    if request.key_rope is not None:
        keys = JoinedTokens((keys, tokens(request, span, request.key_rope)))
    return KeyValues(keys, values)


def _dequantised(
    request: FusedAttentionRequest, span: Span, integers: Tokens, given: Parameters, dtype: torch.dtype
) -> Tokens:
    if given.scale is None:
        raise TypeError(f"{given.names[0]} has not been checked")
    scale = _numbers(request, span, given.scale, given.mode)
    offset = None if given.offset is None else _numbers(request, span, given.offset, given.mode)
    return DequantisedTokens(integers, scale, offset, dtype)


def _numbers(request: FusedAttentionRequest, span: Span, numbers: Tensor, mode: int) -> Tokens:
    """Return the scales, or offsets, of one sequence's tokens, which broadcast over [kv heads, tokens, dim]."""
    if numbers.numel() == 1:
        return Constant(numbers.view(1, 1, 1))
    if mode in (PER_CHANNEL, PER_HEAD):
        return Constant(numbers.reshape(request.kv_heads, 1, -1))
    if mode == PER_TOKEN:
        return ContiguousTokens(numbers.reshape(-1, numbers.shape[-1])[span.batch].view(1, -1, 1))
    if mode == PER_TOKEN_AND_HEAD:
        return ContiguousTokens(numbers[span.batch].unsqueeze(-1))
    paged = tokens(request, span, numbers.unsqueeze(-1))
    if mode == PAGED_PER_TOKEN and isinstance(paged, PagedTokens):
        return PagedTokens(paged.operator, paged.batch, paged.blocks, paged.cache, paged.block_size, kv_heads=1)
    return paged
