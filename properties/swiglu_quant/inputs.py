"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.swiglu_quant.case import DTYPES, SwigluQuantCase
from npudiff.reference.swiglu import Activation
from npudiff.reference.swiglu_quant import SwigluQuantInputs

COLUMN_STEPS = {"small": 2.0**-8, "beyond 2**24": 2.0**-16}
"""What a sum is worth by its column, as a mean."""

TOKEN_STEPS = {"small": 2.0**-4, "beyond 2**24": 2.0**-10}
"""What it is worth by its row: together 2**12 or 2**26 sums in a number of 1."""

MOST = 2**31 - 2**28
"""The largest sum of a case: with any bias it fits into 32 bits."""


def build_inputs(case: SwigluQuantCase) -> SwigluQuantInputs:
    """Build the inputs of a case. Rows that are nobody's hold NaN, or the largest sum and a scale of NaN."""
    numbers = _numbers(case)
    counts = counts_of(case)
    column, token, bias = _scales(case, counts)
    states = numbers.to(DTYPES[case.dtype])
    if column is not None and token is not None:
        group = torch.arange(len(column)).repeat_interleave(counts if counts is not None else len(states))
        group = torch.cat([group, group.new_zeros(case.spare_rows)])
        sums = numbers.to(torch.float64) / (column[group].to(torch.float64) * token.to(torch.float64).unsqueeze(1))
        states = sums.round().clamp(-MOST, MOST).to(torch.int32)
        token[case.tokens :] = torch.nan
    states[case.tokens :] = 2**31 - 1 if column is not None else torch.nan
    smooth = None
    if case.smooth:
        spread = Stream(case.seed, "smooth").normal((case.groups or 1, case.width), torch.float32)
        smooth = 1 + 0.25 * spread
    return SwigluQuantInputs(
        states=with_row_stride(states, case.rows),
        weight_scale=column,
        token_scale=token,
        bias=bias,
        smooth=smooth,
        counts=counts,
        activation=Activation(case.activation),
        limit=case.limit if case.limited else None,
        alpha=case.alpha,
        glu_bias=case.glu_bias,
        gates=case.gates,
        dtype=DTYPES[case.dtype],
        rounding=case.rounding,
    )


def _numbers(case: SwigluQuantCase) -> torch.Tensor:
    """Gates and ups where the case has them, float32 ``[rows, 2 * width]``."""
    gate, up = _part(case, "gate"), _part(case, "up")
    if case.recipe == "outlier":
        columns = Stream(case.seed, "outlier").integers(0, case.width, case.all_rows)
        up[range(case.all_rows), columns] *= 64
    if case.gates == "even":
        return torch.stack([gate, up], dim=-1).flatten(1)
    return torch.cat([gate, up] if case.gates == "left" else [up, gate], dim=1)


def _part(case: SwigluQuantCase, name: str) -> torch.Tensor:
    """Gates or ups, ``[rows, width]``; around the limit that applies, or where a common default lies."""
    stream, shape = Stream(case.seed, name), (case.all_rows, case.width)
    limit = case.limit if case.limited else 7.0
    if case.recipe == "at limit":
        near = torch.tensor([limit * sign * step for sign in (1, -1) for step in (1.0, 0.99, 1.01, 1.3)])
        picked = torch.from_numpy(stream.random_uint64(case.all_rows * case.width).astype("int64") % len(near))
        return near[picked].reshape(shape)
    numbers = stream.normal(shape, torch.float32) * (3 * limit if case.recipe == "beyond" else min(2.0, limit / 4))
    if case.recipe == "zero rows":
        numbers[::2] = 0.0
    return numbers


def _scales(
    case: SwigluQuantCase, counts: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What a sum is worth by column and by row, and what is added to it, about half a number of 1."""
    if case.sums == "none":
        return None, None, None
    steps = {"weight scale": COLUMN_STEPS[case.sums], "token scale": TOKEN_STEPS[case.sums]}
    shapes = {"weight scale": (1 if counts is None else len(counts), 2 * case.width), "token scale": (case.all_rows,)}
    column, token = (
        (1 + 0.25 * Stream(case.seed, name).normal(shapes[name], torch.float32)) * step for name, step in steps.items()
    )
    if not case.bias:
        return column, token, None
    added = Stream(case.seed, "bias").normal((2 * case.width,), torch.float32)
    return column, token, (added * (0.5 / (steps["weight scale"] * steps["token scale"]))).round().to(torch.int32)


def counts_of(case: SwigluQuantCase) -> torch.Tensor | None:
    """Rows of each group, int64 ``[groups]``."""
    if case.groups is None:
        return None
    if case.load == "one gets all":
        groups = [case.groups - 1] * case.tokens
    else:
        first = 1 if case.load == "first gets none" and case.groups > 1 else 0
        groups = Stream(case.seed, "groups").integers(first, case.groups, case.tokens)
    return torch.bincount(torch.tensor(groups), minlength=case.groups)


def coordinates(inputs: SwigluQuantInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, group and column."""
    token = torch.arange(len(inputs.states))
    places = {"token": token}
    if inputs.counts is not None:
        group = torch.bucketize(token, inputs.counts.cumsum(0), right=True)
        places["group"] = torch.where(group < len(inputs.counts), group, NOWHERE)
    if output == "scale":
        return places
    columns = {"column": torch.arange(inputs.width).unsqueeze(0)}
    return {name: place.unsqueeze(1) for name, place in places.items()} | columns
