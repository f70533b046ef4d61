"""Products with one weight matrix: what their cases and relations have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import Property

MOST_WEIGHTS = 2**19
"""Elements of a matrix up to which it may have more columns than it must."""

HUGE_INNER, HUGE_COLUMNS = (8, 16), (8,)
"""Of a matrix where tokens are beyond a thousand: int4 fills words."""

_MAX_ELEMENTS = 2**26
_MAX_PRODUCTS = 2**34


def too_large(tokens: int, inner: int, columns: int) -> Iterator[str]:
    """Say that a test of these sizes would be too large, if it would."""
    elements = max(tokens * inner, inner * columns, tokens * columns)
    if elements > _MAX_ELEMENTS or tokens * inner * columns > _MAX_PRODUCTS:
        yield f"there would be more than {_MAX_ELEMENTS} elements or {_MAX_PRODUCTS} products"


def affords_tokens(draft: AnyCase, tokens: int, most: int) -> bool:
    """Whether a draft may have so many rows: of products up to ``most``, or where they are huge, of few elements."""
    if draft.huge:
        return bool(draft.affords(tokens * max(draft.inner, draft.columns), 0))
    return bool(tokens * draft.inner * draft.columns <= most)


def coordinates(inputs: AnyInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token and column."""
    del output  # there is one
    tokens, columns = len(inputs.x), inputs.weight.shape[1]
    return {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(columns).unsqueeze(0)}


def columns_do_not_mix() -> Property[Any]:
    """Return the property that columns of the weight, and what belongs to them, may be in any order."""

    def moved(inputs: AnyInputs, case: AnyCase) -> Changed[Any]:
        order = Stream(case.seed, "columns").permutation(case.columns)
        own = {name: getattr(inputs, name) for name in ("scale", "offset", "bias")}
        changes = {
            name: each[..., order] for name, each in own.items() if each is not None and each.shape[-1] == len(order)
        }
        weight = inputs.weight[:, order].contiguous()
        if not inputs.weight.is_contiguous():
            weight = weight.t().contiguous().t()
        other = replace(inputs, weight=weight, **changes)
        return Changed(other, lambda outputs: {"output": outputs["output"][:, order]})

    return relation(
        "columns_do_not_mix", "the order of columns does not matter", moved, within={"columns": range(2, 2**16)}
    )
