"""A toy component of several ranks: each has a row of whole numbers, and returns the sum of the rows of all."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from npudiff.draw.cases import Case, axis, seed
from npudiff.model.component import Component, Subject
from npudiff.model.implementation import Implementation, Target
from npudiff.model.ranks import Ranks
from npudiff.reference.bounds import Expected
from npudiff.run.ranks import with_ranks


@dataclass(frozen=True)
class RowsCase(Case):
    """Rows of whole numbers."""

    ranks: int = axis("ranks", range(1, 9), 1, drawn=(1, 2, 3, 4))
    width: int = axis("numbers of a row", range(1, 101), 1, drawn=(1, 2, 5))
    first: int = axis("what the first number of a row is", range(1000), 0, drawn=(0, 7))
    seed: int = seed()


@dataclass(frozen=True)
class Rows:
    """A row of each rank, float32 ``[ranks, width]``; of one rank, ``[1, width]``."""

    rows: torch.Tensor


def _inputs(case):
    whole = torch.arange(case.ranks * case.width, dtype=torch.float32).view(case.ranks, case.width)
    return Rows(whole + case.first)


def _reference(inputs):
    total = inputs.rows.to(torch.float64).sum(dim=0).expand(len(inputs.rows), -1).contiguous()
    return {"total": Expected(total, torch.zeros_like(total), torch.float32)}


COMPONENT = Component(
    name="sums",
    summary="the sum of rows",
    case_type=RowsCase,
    outputs=("total",),
    inputs=_inputs,
    reference=_reference,
    ranks=Ranks(
        count=lambda inputs: len(inputs.rows),
        part=lambda inputs, rank: Rows(inputs.rows[rank : rank + 1]),
        rows=lambda inputs, _: (1,) * len(inputs.rows),
    ),
)


def total(part, target):
    """Add rows as they should be."""
    row = part.rows.to(target.device, copy=True)
    dist.all_reduce(row)
    return row


@pytest.fixture
def ranked():
    """The component, and ``subject(function, seconds)``."""
    made = []

    def subject(function=total, seconds=20.0, devices=None, target=None, kept=True):
        target = target or Target("here", "cpu", "0", contextlib.nullcontext, devices=devices)
        target = with_ranks(target, seconds)
        made.extend([target] if kept else [])
        return Subject(COMPONENT, Implementation("sums", "mine", function), target)

    def inputs(ranks, width=3):
        return _inputs(RowsCase(ranks, width))

    yield SimpleNamespace(component=COMPONENT, subject=subject, total=total, inputs=inputs, Case=RowsCase, Rows=Rows)
    for target in made:
        target.on_ranks.close()
