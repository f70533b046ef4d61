"""What must hold between rows of one table, without knowing the right frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare, same_bits
from npudiff.model.component import Comparison, ExpectedOutput, NotApplicable, Property, Subject
from npudiff.properties._shared import rows
from npudiff.properties.rope_cache.case import RopeCacheCase
from npudiff.properties.rope_cache.inputs import build_inputs
from npudiff.reference.rope_cache import RopeCacheInputs, entry_rounding
from npudiff.reference.rope_scaling import amplitude

Outputs = Mapping[str, torch.Tensor]


def _halves(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of each pair, float64 ``[tokens, width / 2]``, from whatever the implementation returns."""
    if "table" in outputs:
        cosine, sine = outputs["table"].to(torch.float64).chunk(2, dim=-1)
        return cosine, sine
    if "cos" not in outputs or "sin" not in outputs:
        raise NotApplicable("neither a table nor cosines and sines are returned")
    width = outputs["cos"].shape[-1]
    return tuple(outputs[name].to(torch.float64).flatten(1)[:, : width // 2] for name in ("cos", "sin"))  # type: ignore[return-value]


def _bounds(expected: Mapping[str, ExpectedOutput]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of the same."""
    cosine, sine = expected["table"].bound.chunk(2, dim=-1)
    return cosine, sine


def _tokens_do_not_mix(subject: Subject, case: RopeCacheCase) -> Comparison:
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.tokens)
    before = _taken(subject.run(inputs), torch.tensor(order))
    other = replace(
        inputs,
        positions=inputs.positions[order],
        offsets=None if inputs.offsets is None else inputs.offsets[order],
    )
    return same_bits(before, subject.run(other), "tokens in another order")


def _taken(outputs: Outputs, tokens: torch.Tensor) -> Outputs:
    return {name: output if name == "softmax_scale" else output[tokens] for name, output in outputs.items()}


def _offsets_are_added(subject: Subject, case: RopeCacheCase) -> Comparison:
    subject.require(replace(case, offsets="none"), "the sum as positions")
    inputs = build_inputs(case)
    added = replace(inputs, positions=inputs.rows, offsets=None)
    return same_bits(subject.run(inputs), subject.run(added), "offsets against positions plus offsets")


def _growth_keeps_rows(subject: Subject, case: RopeCacheCase) -> Comparison:
    """Rows that were there before a table grew are the bits that a table has which never grows."""
    if len(case.lengths) < 2 or case.lengths[0] <= case.first_row:
        raise NotApplicable("nothing is kept")
    short = replace(case, lengths=case.lengths[:1])
    subject.require(short, "the table before it grows")
    inputs = build_inputs(short)
    grown = replace(inputs, lengths=case.lengths)
    return same_bits(subject.run(inputs), subject.run(grown), "before the table grew against after")


def _rows_are_on_a_circle(subject: Subject, case: RopeCacheCase) -> Comparison:
    """Cosine and sine are those of one angle, whichever it is: their squares add up to that of the amplitude."""
    inputs = build_inputs(case)
    cosine, sine = _halves(subject.run(inputs))
    factor = amplitude(inputs.config)
    reduced = torch.full((1,), torch.pi)  # an argument that has to be reduced
    errors = [entry_rounding((part / factor).abs().clamp(max=1), reduced, factor, inputs.dtype) * _SECOND_ORDER
              for part in (cosine, sine)]  # fmt: skip
    bound = sum(
        (2 * part.abs() * error + error.square() for part, error in zip((cosine, sine), errors, strict=True)),
        start=torch.zeros_like(cosine),
    )
    squares = cosine.square() + sine.square()
    right = Derived(torch.full_like(squares, factor**2), bound)
    return compare({"table": right}, {"table": squares}, "cosine and sine of one angle, squared")


_SECOND_ORDER = 1.01
"""The roundings are taken from what the device returned instead of the exact entries, which differ by 1 % at most."""


def _relative_positions(subject: Subject, case: RopeCacheCase) -> Comparison:
    """The angle between two rows depends on their distance only: both are moved by the same number of rows."""
    inputs = build_inputs(case)
    room = case.lengths[-1] - case.first_row
    if room < 2:
        raise NotApplicable("the table has one row")
    stream = Stream(case.seed, "distance")
    start = torch.tensor(stream.integers(0, room, case.tokens))
    other = torch.tensor(stream.integers(0, room, case.tokens))
    moved = 1 + torch.tensor(stream.integers(0, room - 1, case.tokens))
    moved = torch.minimum(moved, room - 1 - torch.maximum(start, other))
    rows = case.first_row + torch.cat([start, other, start + moved, other + moved])
    four = replace(inputs, positions=rows, offsets=None)
    subject.require(replace(case, tokens=len(rows), offsets="none"), "four rows per token")
    return _between(subject, four, case.tokens)


def _between(subject: Subject, four: RopeCacheInputs, tokens: int) -> Comparison:
    """Compare the cosine of the angle between the first two quarters of the rows with that between the last two."""
    halves, bounds = _halves(subject.run(four)), _bounds(subject.expected(four))
    products, errors = [], []
    for first in (0, 2 * tokens):
        one, two = slice(first, first + tokens), slice(first + tokens, first + 2 * tokens)
        products.append(sum((half[one] * half[two] for half in halves), start=torch.zeros(())))
        errors.append(
            sum(
                (half[one].abs() * bound[two] + half[two].abs() * bound[one] + bound[one] * bound[two]
                 for half, bound in zip(halves, bounds, strict=True)),
                start=torch.zeros(()),
            )
        )  # fmt: skip
    right = Derived(products[0], errors[0] + errors[1])
    return compare({"table": right}, {"table": products[1]}, "two rows, and two as far apart elsewhere")


RELATIONS = (
    Property(
        "tokens_do_not_mix",
        "the order of tokens does not matter",
        _tokens_do_not_mix,
        within={"tokens": rows.SEVERAL},
    ),
    Property(
        "offsets_are_added",
        "offsets are what is added to positions",
        _offsets_are_added,
        within={"offsets": ("int64", "int32")},
        needs={"offsets": ("none",)},
    ),
    Property(
        "growth_keeps_rows",
        "a table that grows keeps its rows",
        _growth_keeps_rows,
        within={"growths": range(1, 4)},
        needs={"growths": (0,)},
    ),
    Property("rows_are_on_a_circle", "cosine and sine are those of one angle", _rows_are_on_a_circle),
    Property(
        "relative_positions",
        "the angle between two rows depends on their distance only",
        _relative_positions,
        within={"offsets": ("none",), "sections": (1,), "rows": range(2, 2**20 + 1), "tokens": range(1, 258)},
    ),
)
