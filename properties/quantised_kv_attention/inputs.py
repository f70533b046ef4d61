"""From a case to tensors: integers by recipe, scales of any size, queries that fit them, poison beside what is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.quantised_kv_attention.case import QuantisedKvAttentionCase
from npudiff.properties.sliding_attention.borders import border_tokens
from npudiff.properties.sliding_attention.pages import PagePlan, plan_pages
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

UNIT = 32
"""Integers of a standard deviation: they have four on each side."""

LARGE = 4096.0
"""Finite poison: of queries, and how many times too large the scale of a token is that must not be read."""

NZ_STRIP = 32
"""C0 of int8: 32 bytes."""

OFFSET = 24.0
"""Standard deviation of offsets."""

_NEEDLE_NOISE = 0.5
_SATURATED = 8
_EXPONENTS = {"wide": 6.0, "powers of two": 4.0}
"""Binary exponents of scales, to both sides."""

_OF_TOKENS = 1.0
"""The same of keys that have scales of tokens: their scores have them as well, whatever queries are."""


@dataclass(frozen=True)
class _Recipe:
    """A direction per KV head that all its queries share, and strengths along it, in units of scores."""

    direction: torch.Tensor  # [kv_heads, head_dim] float32, unit length
    query_strength: float
    query_noise: float


def build_inputs(case: QuantisedKvAttentionCase) -> QuantisedKvAttentionInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    plan, dtype = plan_pages(case.as_attention), DTYPES[case.dtype]
    recipe = _recipe(case)
    sides = [_numbers(case, plan, name, dtype) for name in ("key", "value")]
    integers = [_integers(case, plan, recipe, name, side) for name, side in zip(("key", "value"), sides, strict=True)]
    key, value = (_strips(one) if case.layout == "PA_NZ" else one for one in integers)
    return QuantisedKvAttentionInputs(
        query=_query(case, recipe, sides[0], dtype),
        pool=PagedKV(key, value, with_row_stride(torch.from_numpy(plan.table), case.rows), case.layout),
        of_keys=sides[0],
        of_values=sides[1],
        query_lengths=tuple(request.query for request in case.requests),
        kv_lengths=tuple(request.kv for request in case.requests),
        scale=case.scale / math.sqrt(case.head_dim),
    )


def _recipe(case: QuantisedKvAttentionCase) -> _Recipe:
    direction = Stream(case.seed, "direction").normal((case.kv_heads, case.head_dim), torch.float32)
    direction = direction / direction.norm(dim=1, keepdim=True)
    if case.recipe != "needle":
        return _Recipe(direction, 0.0, 1.0)
    return _Recipe(direction, math.sqrt(case.head_dim) / case.scale, _NEEDLE_NOISE / case.scale)


def _granularity(case: QuantisedKvAttentionCase, name: str) -> str:
    if case.form == "channel, values token":
        return "token" if name == "value" else "channel"
    return case.form


def _numbers(case: QuantisedKvAttentionCase, plan: PagePlan, name: str, dtype: torch.dtype) -> Antiquant:
    """Scales and offsets; those of tokens that must not be read are poison."""
    granularity = _granularity(case, name)
    shape = {
        "channel": (case.kv_heads, case.head_dim),
        "tensor": (1,),
        "head": (case.kv_heads,),
        "token": (plan.pages, case.page_size),
        "token and head": (plan.pages, case.kv_heads, case.page_size),
    }[granularity]
    of_tokens = granularity.startswith("token")
    dtype = torch.float32 if of_tokens else dtype
    scale = _sizes(case, name, shape, narrow=of_tokens and name == "key") / UNIT
    if of_tokens:
        unread = _unread(case, plan)
        unread = unread if granularity == "token" else unread.unsqueeze(1).expand(shape)
        scale[unread] = math.nan if case.poison == "nan" else LARGE / UNIT
    offset = None
    if case.offsets != "none":
        steps = 1 if case.offsets == "whole" else 4
        offset = Stream(case.seed, f"{name} offset").normal(shape, torch.float32) * OFFSET * steps
        offset = (offset.round() / steps).to(dtype)
    return Antiquant(granularity, scale.to(dtype), offset)


def _sizes(case: QuantisedKvAttentionCase, name: str, shape: tuple[int, ...], *, narrow: bool) -> torch.Tensor:
    """Scales in units of what keeps elements about 1."""
    places = Stream(case.seed, f"{name} scale").normal(shape, torch.float32).clamp(-2, 2) / 2  # within [-1, 1]
    if case.spread == "alike":
        return torch.exp2(places / 2)
    exponents = places * (_OF_TOKENS if narrow else _EXPONENTS[case.spread])
    return torch.exp2(exponents.round() if case.spread == "powers of two" else exponents)


def _unread(case: QuantisedKvAttentionCase, plan: PagePlan) -> torch.Tensor:
    """Slots that no request reads, bool ``[pages, page_size]``."""
    unread = torch.zeros(plan.pages, case.page_size, dtype=torch.bool)
    unread[list(plan.stale)] = True
    for table, span in zip(plan.table, plan.live, strict=True):
        if span:
            unread[int(table[(span.last - 1) // case.page_size]), (span.last - 1) % case.page_size + 1 :] = True
    return unread


def _integers(
    case: QuantisedKvAttentionCase, plan: PagePlan, recipe: _Recipe, name: str, side: Antiquant
) -> torch.Tensor:
    """int8 ``[pages, page_size, kv_heads, head_dim]`` that come to numbers about 1 times their scale.

    What is not read would have much of the weight, and values as large as integers are.
    """
    shape = (plan.pages, case.page_size, case.kv_heads, case.head_dim)
    wanted = Stream(case.seed, name).normal(shape, torch.float32) * UNIT
    if case.recipe == "saturated":
        words = torch.from_numpy(Stream(case.seed, f"{name} ends").random_uint64(wanted.numel()).astype("int64"))
        words = words.view(shape)
        wanted[words % _SATURATED == 0] = 400.0
        wanted[words % (2 * _SATURATED) == 0] = -400.0
    for row, (request, span) in enumerate(zip(case.requests, plan.live, strict=True)):
        if not span:
            continue
        borders = torch.tensor(border_tokens(case.as_attention, request, span))
        pages = torch.from_numpy(plan.table[row])[borders // case.page_size].to(torch.int64)
        if case.recipe == "needle":
            needle = _needle(recipe, request.kv) if name == "key" else wanted[pages, borders % case.page_size] * 2
            wanted[pages, borders % case.page_size] = needle
        if case.recipe == "outlier" and name == "value":
            wanted[pages, borders % case.page_size] *= 400.0
    longest = max(request.kv for request in case.requests)
    wanted[_unread(case, plan)] = _needle(recipe, longest) if name == "key" else 400.0
    if side.offset is not None:
        wanted -= _as_pool(side.offset, side.granularity)
    return wanted.round().clamp(-128, 127).to(torch.int8)


def _needle(recipe: _Recipe, keys: int) -> torch.Tensor:
    """A key ``[kv_heads, head_dim]`` that takes about half of the weight among as many others, in integers."""
    variance = 1 + _NEEDLE_NOISE**2
    return recipe.direction * (math.log(max(keys, 2)) + variance / 2) * UNIT


def _as_pool(numbers: torch.Tensor, granularity: str) -> torch.Tensor:
    """Numbers that broadcast to ``[pages, page_size, kv_heads, head_dim]``."""
    wide = numbers.to(torch.float32)
    if granularity == "token":
        return wide[:, :, None, None]
    if granularity == "token and head":
        return wide.transpose(1, 2).unsqueeze(-1)
    return wide if granularity in ("channel", "tensor") else wide.unsqueeze(-1)


def _query(case: QuantisedKvAttentionCase, recipe: _Recipe, keys: Antiquant, dtype: torch.dtype) -> torch.Tensor:
    """Queries over the scales of the keys, but for those of tokens: every channel counts as much as the others."""
    shape = (case.tokens, case.kv_heads, case.group, case.head_dim)
    query = Stream(case.seed, "query").normal(shape, torch.float32) * recipe.query_noise
    query += recipe.direction.unsqueeze(1) * recipe.query_strength
    if not keys.of_tokens:
        scale = keys.scale.to(torch.float32) * UNIT
        query /= scale.unsqueeze(1) if keys.granularity == "channel" else scale.view(-1, 1, 1)
    query[case.tokens - case.padded_rows :] = LARGE
    return with_row_stride(query.flatten(1, 2).to(dtype), case.rows)


def _strips(cache: torch.Tensor) -> torch.Tensor:
    """From ``[pages, page_size, heads, dim]`` to ``[pages, heads, dim / 32, page_size, 32]``."""
    return cache.reshape(*cache.shape[:3], -1, NZ_STRIP).permute(0, 2, 3, 1, 4).contiguous()
