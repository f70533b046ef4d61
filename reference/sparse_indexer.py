"""Which keys a query should attend to: the best ones by weighted sums of rectified products, as sets with ties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import (
    ACCUMULATION_CONFIDENCE,
    FLOAT32_ROUNDOFF,
    Expected,
    accumulation_error,
    underflow_step,
    unit_roundoff,
)
from npudiff.reference.paged_kv import check_pages
from npudiff.reference.views import moved_inputs

QUANTISED_PRODUCTS = torch.float16
"""What the factor of a head, and its rectified product over 1,024, are rounded to where queries and keys are int8. The
kernel that was read does so (vllm-ascend, ``csrc/attention/lightning_indexer_quant``), and the documentation wants the
first of them to fit; that CANN's does as well is inferred. float32 would ask for more."""

PRODUCT_UNIT = 2.0**10
"""By which products of int8 are divided before they are rounded."""

SCORES_TOGETHER = 2**22
"""Products of heads, rows and keys that are computed together."""

UNSURE = 0.75
"""Bound of a key that may be in the set or not, whose value is one half: twice in it is an error."""


@dataclass(frozen=True)
class SparseIndexerInputs:
    """One call of one layer. Row ``r`` of a request with ``q`` new and ``L`` total tokens stands at ``L - q + r``."""

    query: torch.Tensor
    """``[tokens, heads, dim]``, bfloat16 or float16, or int8. Rows beyond ``sum(query_lengths)`` are padding."""
    weights: torch.Tensor
    """``[tokens, heads]``, of the queries' dtype, float32, or float16 beside int8."""
    key: torch.Tensor
    """``[pages, page_size, 1, dim]``, as queries: the pool."""
    block_table: torch.Tensor
    """int32 ``[batch, width]``."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    count: int
    """Keys that are chosen for a row, where it sees as many."""
    query_scale: torch.Tensor | None = None
    """float16 ``[tokens, heads]``: of int8 queries."""
    key_scale: torch.Tensor | None = None
    """float16 ``[pages, page_size, 1]``: of int8 keys."""

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(self.kv_lengths, default=0)

    def to(self, device: str | torch.device) -> SparseIndexerInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        return moved_inputs(self, device, copies=())


def sparse_indexer(inputs: SparseIndexerInputs) -> dict[str, Expected]:
    """Return which keys are chosen for each row.

    The score of a key is ``sum_h weights[h] * relu(query[h] . key)``; a row sees the keys up to its own position, and
    the ``count`` with the largest scores are chosen (DeepSeek-AI, "DeepSeek-V3.2", 2025, eq. 1). They are listed first,
    in any order, and -1 behind the last.

    Returns
    -------
    dict
        ``chosen``: int8 ``[tokens, longest + 1]``: how often each key is listed, and last, how many entries name no key
        of the request. ``listed``: int32 ``[tokens, 2]``: entries in front of the first -1, and entries that are not.

    Raises
    ------
    ValueError
        If shapes contradict each other.

    Notes
    -----
    Nothing is said of keys whose scores are nearer to that of the last one than rounding allows to tell: scores that
    are equal, as all are where no product is positive, are chosen by any rule.
    """
    _validate(inputs)
    tokens = len(inputs.query)
    chosen = torch.zeros(tokens, inputs.longest + 1, dtype=torch.float64)
    bound = torch.zeros_like(chosen)
    listed = torch.zeros(tokens, 2, dtype=torch.float64)
    listed_bound = torch.zeros_like(listed)
    row = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for first, score, error in _scores(inputs, request, row, total):
            for place in range(len(score)):
                visible = total - new + first + place + 1
                sure, maybe = best(score[place, :visible], error[place, :visible], inputs.count)
                here = row + first + place
                chosen[here, :visible] = torch.where(maybe & ~sure, 0.5, sure.to(torch.float64))
                bound[here, :visible] = torch.where(maybe & ~sure, UNSURE, 0.0)
                listed[here] = min(inputs.count, visible)
        row += new
    bound[row:], listed_bound[row:] = torch.inf, torch.inf
    return {
        "chosen": Expected(chosen, bound, torch.int8),
        "listed": Expected(listed, listed_bound, torch.int32),
    }


def best(score: torch.Tensor, error: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of some numbers surely are among the largest ones, and which may be, bool.

    Parameters
    ----------
    score, error : torch.Tensor
        float64 ``[keys]``: numbers, and by how much a device may be off.
    count : int
        How many are chosen.
    """
    if len(score) <= count:
        everything = torch.ones(len(score), dtype=torch.bool)
        return everything, everything
    least, most = score - error, score + error
    # Surely chosen: at most count - 1 others may be as large. Surely not: count others surely are larger.
    as_large = len(score) - torch.searchsorted(most.sort().values, least, right=False)
    larger = len(score) - torch.searchsorted(least.sort().values, most, right=True)
    return as_large <= count, larger < count


def _scores(
    inputs: SparseIndexerInputs, request: int, row: int, total: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield a number of rows that are done, and scores and errors ``[rows, keys]`` of some more of a request."""
    size, new, heads = inputs.key.shape[1], inputs.query_lengths[request], inputs.query.shape[1]
    position = torch.arange(total)
    place = inputs.block_table[request].to(torch.int64)[position // size], position % size
    step = max(1, SCORES_TOGETHER // max(1, heads * total))
    for first in range(0, new, step):
        rows = slice(row + first, row + min(first + step, new))
        parts = [_of_keys(inputs, rows, (place[0][keys], place[1][keys])) for keys in _stretches(heads, total)]
        yield first, torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], dim=1)


def _stretches(heads: int, total: int) -> list[slice]:
    width = max(1, SCORES_TOGETHER // heads)
    return [slice(first, min(first + width, total)) for first in range(0, total, width)]


def _of_keys(
    inputs: SparseIndexerInputs, rows: slice, place: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and errors of some rows and keys, ``[rows, keys]``."""
    query, key = inputs.query[rows].to(torch.float64), inputs.key[place].squeeze(1).to(torch.float64)
    weights = inputs.weights[rows].to(torch.float64)
    products = query @ key.t()  # [rows, heads, keys]
    positive = products.clamp(min=0.0)
    if inputs.query_scale is None or inputs.key_scale is None:
        lengths = query.norm(dim=-1, keepdim=True) * key.norm(dim=-1)
        off = lengths * accumulation_error(query.shape[-1])
        own = torch.where(products > -off, off, 0.0) * weights.abs().unsqueeze(-1)
        scales = torch.ones((), dtype=torch.float64)
    else:
        scales = inputs.key_scale[place].reshape(-1).to(torch.float64)
        weights = weights * inputs.query_scale[rows].to(torch.float64)
        own = _rounded_products(weights.abs().unsqueeze(-1), positive)
    terms = weights.unsqueeze(-1) * positive
    size = terms.abs().sum(dim=1)
    brought = torch.minimum(own.sum(dim=1), ACCUMULATION_CONFIDENCE * own.square().sum(dim=1).sqrt())
    error = brought + size * (accumulation_error(max(2, query.shape[1])) + 2 * FLOAT32_ROUNDOFF)
    return terms.sum(dim=1) * scales, error * scales.abs() * (1 + 2 * FLOAT32_ROUNDOFF)


def _rounded_products(factors: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Errors of ``factor * product`` of int8, both of which are rounded: of independent heads."""
    rounding, step = unit_roundoff(QUANTISED_PRODUCTS), underflow_step(QUANTISED_PRODUCTS)
    relative = (2 + rounding) * rounding * factors * positive
    return relative + step * (positive + factors * PRODUCT_UNIT)


def _validate(inputs: SparseIndexerInputs) -> None:
    tokens, heads, dim = inputs.query.shape
    if inputs.key.shape[2:] != (1, dim):
        raise ValueError(f"keys are of one head of {dim} elements, as queries, got {list(inputs.key.shape)}")
    if inputs.weights.shape != (tokens, heads):
        raise ValueError(f"weights must be [{tokens}, {heads}], got {list(inputs.weights.shape)}")
    quantised = inputs.query.dtype == torch.int8
    if quantised != (inputs.query_scale is not None) or quantised != (inputs.key_scale is not None):
        raise ValueError("int8 queries and keys have scales, and no others")
    if len(inputs.query_lengths) != len(inputs.kv_lengths) or sum(inputs.query_lengths) > tokens:
        raise ValueError(f"lengths {inputs.query_lengths} and {inputs.kv_lengths} are not of {tokens} rows")
    check_pages(inputs.block_table, inputs.query_lengths, inputs.kv_lengths, inputs.key.shape[1], len(inputs.key))
    if inputs.count < 1:
        raise ValueError(f"at least one key is chosen, got {inputs.count}")
