"""Products with one weight matrix: what their cases and relations have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Subject

MOST_WEIGHTS = 2**19
"""Elements of a matrix up to which it may have more columns than it must."""

_MAX_ELEMENTS = 2**26
_MAX_PRODUCTS = 2**34


def narrow(columns: Sequence[int], inner: int) -> Sequence[int]:
    """Return columns of matrices that are not too large, or the fewest."""
    return [count for count in columns[:4096] if inner * count <= MOST_WEIGHTS] or [min(columns)]


def check_sizes(tokens: int, inner: int, columns: int) -> None:
    """Raise ``ValueError`` if a test of these sizes would be too large."""
    if (
        max(tokens * inner, inner * columns, tokens * columns) > _MAX_ELEMENTS
        or tokens * inner * columns > _MAX_PRODUCTS
    ):
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} elements or {_MAX_PRODUCTS} products")


def coordinates(inputs: Any, output: str) -> Mapping[str, torch.Tensor]:  # noqa: ANN401 - of either component
    """Return integer tensors that broadcast to the output: token and column."""
    del output  # there is one
    tokens, columns = len(inputs.x), inputs.weight.shape[1]
    return {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(columns).unsqueeze(0)}


def columns_in_another_order(subject: Subject, inputs: Any, order: Sequence[int]) -> Comparison:  # noqa: ANN401
    """Compare a run with one whose weight has its columns, and what belongs to them, in another order."""
    own = {name: getattr(inputs, name) for name in ("scale", "offset", "bias")}
    moved = {name: each[..., order] for name, each in own.items() if each is not None and each.shape[-1] == len(order)}
    weight = inputs.weight[:, order].contiguous()
    if not inputs.weight.is_contiguous():
        weight = weight.t().contiguous().t()
    other = replace(inputs, weight=weight, **moved)
    before = {"output": subject.run(inputs)["output"][:, order]}
    return compare_runs(bounds_of(subject.expected(other)), before, subject.run(other), "columns in another order")
