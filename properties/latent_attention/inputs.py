"""From a case to tensors: latents by recipe, needles at borders, poison where nothing may be read."""

from __future__ import annotations

import math

import numpy as np
import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.sliding_attention.borders import border_tokens
from npudiff.properties.sliding_attention.pages import plan_pages
from npudiff.reference.attention_tile import AttentionRoundings
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections
from npudiff.reference.paged_kv import PagedKV

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

LARGE = 512.0
"""Finite poison of latents: exact in every 16-bit type, and far above what any right output holds."""

LARGE_SCORE = 1024.0
"""Score that poison has by its rotated key, of needles: more than what its latent adds, whose sign is anything."""

NZ_STRIP = 16
"""C0 of 16-bit elements: 32 bytes."""

ROW_STEP = 7
"""Every row of a weight matrix is a stretch of one stream of numbers that begins so many further than the row before:
millions of weights from a few thousand draws."""

_NEEDLE_LATENT = 2.0
_NEEDLE_NOISE = 0.5
_OUTLIER = 16.0


def build_inputs(case: LatentAttentionCase) -> LatentAttentionInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    dtype = DTYPES[case.dtype]
    query, query_rope = _queries(case)
    return LatentAttentionInputs(
        query=with_row_stride(query.to(dtype), case.rows),
        query_rope=with_row_stride(query_rope.to(dtype), case.rows, GAPS[1]),
        pool=_pool(case, dtype),
        query_lengths=tuple(request.query for request in case.requests),
        kv_lengths=tuple(request.kv for request in case.requests),
        scale=_scale(case),
        up=_up(case, dtype) if case.form == "expanded" else None,
        roundings=AttentionRoundings(merges=case.merges),
    )


def _scale(case: LatentAttentionCase) -> float:
    return case.scale / math.sqrt(case.query_dim + case.rope_dim)


def _direction(case: LatentAttentionCase) -> torch.Tensor:
    """What rotated queries and needles share, ``[rope_dim]``, of unit length."""
    direction = Stream(case.seed, "direction").normal((case.rope_dim,), torch.float32)
    unit: torch.Tensor = direction / direction.norm()
    return unit


def _queries(case: LatentAttentionCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Both parts of the queries; with needles, a key has a score of 1 for each unit along the direction."""
    query = Stream(case.seed, "query").normal((case.tokens, case.heads, case.query_dim), torch.float32)
    rope = Stream(case.seed, "query rope").normal((case.tokens, case.heads, case.rope_dim), torch.float32)
    if case.recipe == "needle":
        noise = _NEEDLE_NOISE / case.scale
        query, rope = query * noise, rope * noise + _direction(case) / _scale(case)
    real = case.tokens - case.padded_rows
    query[real:] = rope[real:] = math.nan if case.poison == "nan" else LARGE
    return query, rope


def _pool(case: LatentAttentionCase, dtype: torch.dtype) -> PagedKV:
    """The pool: live tokens by recipe, everything else poisoned.

    Latents that are expanded are all different: equal ones would have equal errors, of which a bound takes no account.
    """
    attention = case.as_attention
    plan = plan_pages(attention, shared_pages=case.form == "absorbed")
    shape = (plan.pages, case.page_size, 1)
    latent = Stream(case.seed, "latent").normal((*shape, case.rank), dtype)
    rope = Stream(case.seed, "rope").normal((*shape, case.rope_dim), dtype)
    poison = _poison(case, dtype)
    for page in plan.stale:
        latent[page], rope[page] = poison
    for row, (request, span) in enumerate(zip(case.requests, plan.live, strict=True)):
        if not span:
            continue
        borders = np.array(border_tokens(attention, request, span))
        places = torch.from_numpy(plan.table[row][borders // case.page_size]).long(), borders % case.page_size
        if case.recipe == "outlier":
            latent[places] *= _OUTLIER
        if case.recipe == "needle":
            latent[places] *= _NEEDLE_LATENT
            rope[places] = (_direction(case) * _strength(request.kv)).to(dtype)
        last = int(plan.table[row][(span.last - 1) // case.page_size])
        behind = slice((span.last - 1) % case.page_size + 1, None)
        latent[last, behind], rope[last, behind] = poison
    table = with_row_stride(torch.from_numpy(plan.table), case.rows)
    if case.layout == "PA_NZ":
        latent, rope = _strips(latent), _strips(rope)
    return PagedKV(latent, rope, table, case.layout)


def _strength(keys: int) -> float:
    """Score that gives a key about half of the weight among as many others, whose scores have a variance of about 1."""
    return math.log(max(keys, 2)) + (1 + _NEEDLE_NOISE**2) / 2


def _poison(case: LatentAttentionCase, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """Latent and rotated key of a token that must not be read."""
    if case.poison == "nan":
        return math.nan, torch.full((case.rope_dim,), math.nan, dtype=dtype)
    return LARGE, (_direction(case) * (LARGE_SCORE if case.recipe == "needle" else 0.0)).to(dtype)


def _strips(cache: torch.Tensor) -> torch.Tensor:
    """From ``[pages, page_size, 1, dim]`` to ``[pages, 1, dim / 16, page_size, 16]``."""
    return cache.reshape(*cache.shape[:3], -1, NZ_STRIP).permute(0, 2, 3, 1, 4).contiguous()


def _up(case: LatentAttentionCase, dtype: torch.dtype) -> UpProjections:
    """Matrices whose products with a latent are about as large as its elements."""
    rows = case.heads * (case.nope_dim + case.value_dim)
    numbers = Stream(case.seed, "up").normal((rows * ROW_STEP + case.rank,), torch.float32) / math.sqrt(case.rank)
    both = numbers.to(dtype).as_strided((case.heads, case.nope_dim + case.value_dim, case.rank), (
        (case.nope_dim + case.value_dim) * ROW_STEP, ROW_STEP, 1
    ))  # fmt: skip
    key, value = both[:, : case.nope_dim], both[:, case.nope_dim :]
    return UpProjections(key.contiguous(), value.transpose(1, 2).contiguous())
