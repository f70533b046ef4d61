"""What must hold between runs of one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties.padded_tokens.case import PaddedTokensCase
from npudiff.properties.padded_tokens.inputs import build_inputs
from npudiff.reference.padded_tokens import PaddedTokensInputs, real_rows

OF_ROWS = ("weights", "experts", "output")
"""Outputs that have a row for each row of the buffer."""

MORE = 3
"""Rows by which every chunk is padded further."""


def _what_padding_holds(subject: Subject, case: PaddedTokensCase) -> Comparison:
    inputs = build_inputs(case)
    padded = ~real_rows(inputs).unsqueeze(1)
    states, weights = inputs.states.masked_fill(padded, 0.0), inputs.weights.masked_fill(padded, 0.0)
    other = replace(inputs, states=states, weights=weights)
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(other), "padding that holds zeros"
    )


def _more_padding(subject: Subject, case: PaddedTokensCase) -> Comparison:
    """Every chunk gets more rows, which are copies of its first one and not real."""
    inputs = build_inputs(case)
    states, experts, weights = (_longer(inputs, part) for part in (inputs.states, inputs.experts, inputs.weights))
    outputs = subject.run(replace(inputs, states=states, experts=experts, weights=weights))
    added = _chunks(inputs, experts)[:, case.chunk :]
    others = {name: _cut(outputs[name], inputs) for name in OF_ROWS}
    others["counts"] = outputs["counts"] - torch.bincount(added.flatten().to(torch.int64), minlength=case.experts)
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), others, f"{MORE} more padded rows in every chunk"
    )


def _chunks(inputs: PaddedTokensInputs, rows: torch.Tensor) -> torch.Tensor:
    """Rows by chunk, ``[chunks, rows of one, columns]``."""
    return rows.reshape(len(inputs.totals), -1, rows.shape[1])


def _longer(inputs: PaddedTokensInputs, rows: torch.Tensor) -> torch.Tensor:
    chunks = _chunks(inputs, rows)
    return torch.cat([chunks, chunks[:, :1].expand(-1, MORE, -1)], dim=1).flatten(0, 1)


def _cut(rows: torch.Tensor, inputs: PaddedTokensInputs) -> torch.Tensor:
    return _chunks(inputs, rows)[:, : inputs.chunk].flatten(0, 1)


def _every_rank_alone(subject: Subject, case: PaddedTokensCase) -> Comparison:
    """Chunks that were gathered give what each gives by itself; counts add up."""
    inputs = build_inputs(case)
    alone = [subject.run(_chunk_of(inputs, rank)) for rank in range(case.ranks)]
    others: Mapping[str, torch.Tensor] = {
        **{name: torch.cat([outputs[name] for outputs in alone]) for name in OF_ROWS},
        "counts": torch.stack([outputs["counts"] for outputs in alone]).sum(dim=0),
    }
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), others, "every chunk by itself")


def _chunk_of(inputs: PaddedTokensInputs, rank: int) -> PaddedTokensInputs:
    rows, one = slice(rank * inputs.chunk, (rank + 1) * inputs.chunk), slice(rank, rank + 1)
    return PaddedTokensInputs(
        states=inputs.states[rows],
        experts=inputs.experts[rows],
        weights=inputs.weights[rows],
        factors=inputs.factors,
        totals=inputs.totals[one],
        offsets=inputs.offsets[one],
        earlier=inputs.earlier[one],
    )


RELATIONS = (
    Property("what_padding_holds", "what padded rows hold does not matter", _what_padding_holds),
    Property("more_padding", "more padded rows change nothing but counts, by their own", _more_padding,
             within={"split": (False,)}),
    Property("every_rank_alone", "gathered chunks give what each gives by itself", _every_rank_alone,
             within={"ranks": range(2, 65)}),
)  # fmt: skip
