"""From a case to tensors: data by recipe, needles where a mistake would be, poison where nothing may be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.far_pool import behind, pages_before
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.sliding_attention.borders import LiveRange, border_tokens
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.pages import PagePlan, plan_pages
from npudiff.reference.attention_tile import AttentionRoundings
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

LARGE = 4096.0
"""Finite poison of values: exact in every 16-bit type, and far above what any right output holds."""

COLD_SCORE = 60_000.0
"""Magnitude of the (negative) scores of the ``cold`` recipe; masks with a sentinel of -50,000 exist."""

NZ_STRIP = 16
"""C0 of 16-bit elements: 32 bytes."""

_NEEDLE_VALUE = 4.0
_NEEDLE_NOISE = 0.5
_OUTLIER_VALUE = 64.0


@dataclass(frozen=True)
class _Recipe:
    """How one case's data is made: a direction per KV head that all its queries share, and strengths along it."""

    direction: torch.Tensor  # [kv_heads, head_dim] float32, unit length
    query_strength: float
    query_noise: float
    score_unit: float  # score of a key of unit strength, for a query of the shared direction


def build_inputs(case: SlidingAttentionCase) -> SlidingAttentionInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    dtype = _dtype(case)
    recipe = _recipe(case)
    plan = plan_pages(case)
    layer = _layer_pool(case, plan, recipe, dtype)
    decoy = _decoy_pool(case, dtype) if case.hybrid else None
    windowed = case.window is not None
    return SlidingAttentionInputs(
        query=_query(case, recipe, dtype),
        full=decoy if windowed and decoy is not None else layer,
        sliding=layer if windowed and decoy is not None else decoy,
        query_lengths=tuple(request.query for request in case.requests),
        kv_lengths=tuple(request.kv for request in case.requests),
        window=case.window,
        scale=case.scale / math.sqrt(case.head_dim),
        sinks=_sinks(case, plan) if case.sinks else None,
        roundings=AttentionRoundings(
            case.scaled_query, case.weight_sum == "rounded", case.exponential == "cubic", case.merges
        ),
    )


def _dtype(case: SlidingAttentionCase) -> torch.dtype:
    return torch.bfloat16 if case.dtype == "bfloat16" else torch.float16


def _recipe(case: SlidingAttentionCase) -> _Recipe:
    direction = Stream(case.seed, "direction").normal((case.kv_heads, case.head_dim), torch.float32)
    direction = direction / direction.norm(dim=1, keepdim=True)
    scale = case.scale / math.sqrt(case.head_dim)
    if case.recipe == "cold":
        strength = math.sqrt(COLD_SCORE / scale)
        return _Recipe(direction, strength, 0.0, scale * strength)
    if case.recipe == "needle":
        strength = math.sqrt(case.head_dim) / case.scale
        return _Recipe(direction, strength, _NEEDLE_NOISE / case.scale, scale * strength)
    return _Recipe(direction, 0.0, 1.0, 0.0)


def _query(case: SlidingAttentionCase, recipe: _Recipe, dtype: torch.dtype) -> torch.Tensor:
    rows = case.tokens - case.padded_rows
    shape = (case.tokens, case.kv_heads, case.group, case.head_dim)
    query = Stream(case.seed, "query").normal(shape, torch.float32) * recipe.query_noise
    query += recipe.direction.unsqueeze(1) * recipe.query_strength
    query[rows:] = _poison(case)
    return with_row_stride(query.flatten(1, 2).to(dtype), case.rows)


def _poison(case: SlidingAttentionCase) -> float:
    return math.nan if case.poison == "nan" else LARGE


def _layer_pool(case: SlidingAttentionCase, plan: PagePlan, recipe: _Recipe, dtype: torch.dtype) -> PagedKV:
    """The pool that the layer reads: live tokens by recipe, everything else poisoned."""
    shape = (plan.pages, case.page_size, case.kv_heads)
    key = Stream(case.seed, "key").normal((*shape, case.head_dim), dtype)
    value = Stream(case.seed, "value").normal((*shape, case.value_head_dim), dtype)
    if case.recipe == "cold":
        key[:] = (recipe.direction * -recipe.query_strength).to(dtype)
        value.abs_()
    for page in plan.stale:
        key[page], value[page] = _poison_key(case, recipe, case.page_size, dtype), _poison(case)
    for row, (request, span) in enumerate(zip(case.requests, plan.live, strict=True)):
        if span:
            _place_needles(case, recipe, request, span, plan.table[row], key, value)
            _poison_beside(case, recipe, span, plan.table[row], key, value)
    pool = _laid_out(case, key, value, torch.from_numpy(plan.table))
    before = pages_before(case)
    if not before:
        return pool
    table = with_row_stride(torch.from_numpy(plan.table) + before, case.rows)
    return PagedKV(behind(pool.key, before), behind(pool.value, before), table, pool.layout)


def _laid_out(case: SlidingAttentionCase, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor) -> PagedKV:
    """The pool in the layout of the case: in PA_NZ, strips of 16 elements of all tokens of a page lie together."""
    laid_table = with_row_stride(table, case.rows)
    if case.layout == "PA_BSND":
        return PagedKV(key, value, laid_table)
    return PagedKV(_strips(key), _strips(value), laid_table, case.layout)


def _strips(cache: torch.Tensor) -> torch.Tensor:
    """From ``[pages, page_size, heads, dim]`` to ``[pages, heads, dim / 16, page_size, 16]``."""
    return cache.reshape(*cache.shape[:3], -1, NZ_STRIP).permute(0, 2, 3, 1, 4).contiguous()


def _poison_key(case: SlidingAttentionCase, recipe: _Recipe, keys: int, dtype: torch.dtype) -> torch.Tensor | float:
    """A key that takes a visible part of the weight of a row that wrongly sees it among ``keys`` others."""
    if case.poison == "nan":
        return math.nan
    return (recipe.direction * _strength(case, recipe, keys)).to(dtype)


def _strength(case: SlidingAttentionCase, recipe: _Recipe, keys: int) -> float:
    """Length along the shared direction that gives a key about half of the weight among ``keys`` others.

    The others' scores are normal with variance ``v`` whatever the scale, so their exponentials add up to about
    ``keys * exp(v / 2)``.
    """
    if recipe.score_unit == 0:
        return 0.0
    if case.recipe == "cold":
        return recipe.query_strength
    variance = 1 + _NEEDLE_NOISE**2
    return (math.log(max(keys, 2)) + variance / 2) / recipe.score_unit


def _place_needles(
    case: SlidingAttentionCase,
    recipe: _Recipe,
    request: Request,
    span: LiveRange,
    table: object,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Give the keys at borders a weight, or a value, that cannot be overlooked."""
    if case.recipe not in ("needle", "outlier"):
        return
    positions = torch.tensor(border_tokens(case, request, span))
    pages = torch.as_tensor(table)[positions // case.page_size].to(torch.int64)
    offsets = positions % case.page_size
    if case.recipe == "outlier":
        value[pages, offsets] *= _OUTLIER_VALUE
        return
    seen = span.last - span.first if case.window is None else min(case.window, span.last)
    key[pages, offsets] = (recipe.direction * _strength(case, recipe, seen)).to(key.dtype)
    value[pages, offsets] *= _NEEDLE_VALUE


def _poison_beside(
    case: SlidingAttentionCase,
    recipe: _Recipe,
    span: LiveRange,
    table: object,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Poison what lies in the live pages of a request before its first and after its last token."""
    pages = torch.as_tensor(table)
    seen = span.last - span.first if case.window is None else min(case.window, span.last)
    poison = _poison_key(case, recipe, seen, key.dtype)
    before, after = span.first % case.page_size, (span.last - 1) % case.page_size + 1
    for page, inside in (
        (pages[span.first // case.page_size], slice(0, before)),
        (pages[(span.last - 1) // case.page_size], slice(after, None)),
    ):
        key[int(page), inside], value[int(page), inside] = poison, _poison(case)


def _decoy_pool(case: SlidingAttentionCase, dtype: torch.dtype) -> PagedKV:
    """The pool of the other kind of layer: nothing in it may be read."""
    shape = (3, case.page_size, case.kv_heads)
    key = torch.full((*shape, case.head_dim), _poison(case), dtype=dtype)
    value = torch.full((*shape, case.value_head_dim), _poison(case), dtype=dtype)
    words = Stream(case.seed, "decoy").random_uint64(len(case.requests) * case.width)
    table = torch.from_numpy((1 + words % 2).astype("int32")).reshape(len(case.requests), case.width)
    return _laid_out(case, key, value, table)


def _sinks(case: SlidingAttentionCase, plan: PagePlan) -> torch.Tensor:
    """Sinks of about the size of the log-sum-exp, so that one that is ignored is seen."""
    longest = max((span.last - span.first for span in plan.live), default=1)
    seen = max(1, longest if case.window is None else min(longest, case.window))
    sinks = Stream(case.seed, "sinks").normal((case.heads,), torch.float32) + math.log(seen)
    return sinks.to(torch.bfloat16)
