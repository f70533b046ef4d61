"""Rotary position embedding of queries and keys, from a table of cosines and sines."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, underflow_step, unit_roundoff
from npudiff.reference.views import moved_inputs

STYLES = ("half", "interleaved", "interleaved_to_half")
"""Which elements of a head form a pair, and where the rotated pair goes.

half: elements ``i`` and ``i + rotary_dim / 2`` (NeoX). interleaved: elements ``2 i`` and ``2 i + 1`` (GPT-J).
interleaved_to_half: read as interleaved, written as half, which is what ``npu_interleave_rope`` does.
"""


@dataclass(frozen=True)
class RotaryInputs:
    """Queries and keys of some tokens, their positions, and the table."""

    query: torch.Tensor
    """``[tokens, heads, head_dim]``, bfloat16, float16 or float32."""
    key: torch.Tensor
    """``[tokens, kv_heads, head_dim]``, of the same dtype."""
    positions: torch.Tensor
    """int64 ``[tokens]``: rows of the table; or ``[sections, tokens]``, a row for each section."""
    cos_sin_cache: torch.Tensor
    """``[positions, rotary_dim]``, of the same dtype: the cosines of all frequencies, then their sines."""
    style: str
    """One of ``STYLES``."""
    sections: tuple[int, ...] = ()
    """Frequencies of each section: the first so many columns of a token's row come from its first position, the next
    ones from its second. Empty if there is one position per token."""

    @property
    def rotary_dim(self) -> int:
        """Elements of each head that are rotated; the others stay."""
        return self.cos_sin_cache.shape[1]

    def to(self, device: str | torch.device) -> RotaryInputs:
        """Return the same inputs on ``device``; queries and keys are copies, since operators may write into them."""
        return moved_inputs(self, device, copies=("query", "key"))


def rotary(inputs: RotaryInputs) -> dict[str, Expected]:
    """Return rotated queries and keys.

    The pair ``(a, b)`` at frequency ``i`` of a token at position ``p`` becomes ``(a c - b s, b c + a s)``, where ``c``
    and ``s`` are columns ``i`` and ``rotary_dim / 2 + i`` of row ``p`` (Su et al., "RoFormer", 2021, eq. 34).

    Returns
    -------
    dict
        ``query`` and ``key``, of the shape and dtype of the inputs. Elements beyond ``rotary_dim`` are copies.

    Raises
    ------
    ValueError
        If the rotary dim is odd or larger than a head, a position is outside the table, or the style is not known.

    Notes
    -----
    A correct device rounds the two products and their sum: in float32 when it is fused, to the dtype of the inputs when
    it is composed of elementwise operators.
    """
    _validate(inputs)
    cosine, sine = (part.unsqueeze(1) for part in _angles(inputs))
    return {name: _rotated(inputs, getattr(inputs, name), cosine, sine) for name in ("query", "key")}


def _angles(inputs: RotaryInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every token, float64 ``[tokens, rotary_dim / 2]``."""
    rows = inputs.cos_sin_cache[inputs.positions].to(torch.float64)
    if not inputs.sections:
        cosine, sine = rows.chunk(2, dim=-1)
        return cosine, sine
    section = torch.repeat_interleave(torch.arange(len(inputs.sections)), torch.tensor(inputs.sections))
    column = torch.arange(inputs.rotary_dim // 2)
    return rows[section, :, column].T, rows[section, :, inputs.rotary_dim // 2 + column].T


def _rotated(inputs: RotaryInputs, states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> Expected:
    dim = inputs.rotary_dim
    value = states.to(torch.float64, copy=True)
    bound = torch.zeros_like(value)
    turned = rotated(value[..., :dim], bound[..., :dim], cosine, sine, inputs.style, states.dtype)
    value[..., :dim], bound[..., :dim] = turned.value, turned.bound
    return Expected(value, bound, states.dtype)


def rotated(
    states: torch.Tensor, error: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, style: str, dtype: torch.dtype
) -> Expected:
    """Rotate float64 states ``[..., rotary_dim]``, with the error that they have already, by half as many angles.

    A device may store the products in the dtype: nothing is said of a difference of two that may be infinite there.
    """
    first, second = pairs(states, interleaved=style != "half")
    errors = pairs(error, interleaved=style != "half")
    products = ((first * cosine, -second * sine), (second * cosine, first * sine))
    results = tuple(one + other for one, other in products)
    brought = (
        errors[0] * cosine.abs() + errors[1] * sine.abs(),
        errors[1] * cosine.abs() + errors[0] * sine.abs(),
    )
    bounds = tuple(_bound(one, other, before, dtype) for (one, other), before in zip(products, brought, strict=True))
    interleaved = style == "interleaved"
    return Expected(joined(*results, interleaved=interleaved), joined(*bounds, interleaved=interleaved), dtype)


def _bound(one: torch.Tensor, other: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Largest error of the sum of two products, whose factors bring an error."""
    rounding = max(unit_roundoff(dtype), FLOAT32_ROUNDOFF)
    sizes = one.abs() + other.abs()
    bound = (sizes + (one + other).abs() + before) * rounding * (1 + rounding) + 3 * underflow_step(dtype) + before
    largest = torch.maximum(one.abs(), other.abs()) + before
    return bound.masked_fill_(largest > torch.finfo(dtype).max, torch.inf)


def pairs(states: torch.Tensor, *, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the second element of every pair, each ``[..., rotary_dim / 2]``."""
    if interleaved:
        return states[..., 0::2], states[..., 1::2]
    first, second = states.chunk(2, dim=-1)
    return first, second


def joined(first: torch.Tensor, second: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """Return pairs as neighbours, or as halves."""
    if interleaved:
        return torch.stack([first, second], dim=-1).flatten(-2)
    return torch.cat([first, second], dim=-1)


def _validate(inputs: RotaryInputs) -> None:
    dim, table = inputs.rotary_dim, inputs.cos_sin_cache.shape[0]
    if inputs.style not in STYLES:
        raise ValueError(f"style is one of {', '.join(STYLES)}, got {inputs.style}")
    if dim % 2 or not 0 < dim <= inputs.query.shape[2]:
        raise ValueError(f"rotary_dim must be even and at most head_dim {inputs.query.shape[2]}, got {dim}")
    if inputs.query.shape[2] != inputs.key.shape[2]:
        raise ValueError(f"queries have head dim {inputs.query.shape[2]}, keys {inputs.key.shape[2]}")
    kinds = (len(inputs.sections),) if inputs.sections else ()
    if inputs.positions.shape != (*kinds, len(inputs.query)):
        raise ValueError(f"positions must be {[*kinds, len(inputs.query)]}, got {list(inputs.positions.shape)}")
    if inputs.sections and 2 * sum(inputs.sections) != dim:
        raise ValueError(f"sections {inputs.sections} do not add up to half of rotary_dim {dim}")
    if bool(((inputs.positions < 0) | (inputs.positions >= table)).any()):
        raise ValueError(f"positions must lie in 0..{table - 1}")
