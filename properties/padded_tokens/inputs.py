"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.padded_tokens.case import DTYPES, PaddedTokensCase
from npudiff.reference.padded_tokens import PaddedTokensInputs, real_rows

POISON = {"large": 4096.0, "nan": math.nan, "infinite": math.inf}


def build_inputs(case: PaddedTokensCase) -> PaddedTokensInputs:
    """Build the inputs of a case: all rows are made alike, then padded ones are poisoned, but for their experts."""
    dtype, count = DTYPES[case.dtype], case.all_rows
    states = Stream(case.seed, "states").normal((count, case.width), torch.float32)
    weights = Stream(case.seed, "weights").normal((count, case.chosen), torch.float32).abs() + 0.125
    totals = torch.tensor([batch.total for batch in case.batches])
    offsets = torch.tensor([batch.offset for batch in case.batches])
    inputs = PaddedTokensInputs(
        states=states.to(dtype),
        experts=_experts(case),
        weights=(weights / weights.sum(dim=1, keepdim=True)).to(dtype),
        factors=torch.tensor([_factor(expert) for expert in range(case.experts)], dtype=dtype),
        totals=totals,
        offsets=offsets,
        earlier=offsets + case.chunk if case.earlier == "all" else torch.zeros_like(totals),
    )
    padded = ~real_rows(inputs)
    if case.poison in POISON:
        inputs.states[padded] = POISON[case.poison]
        inputs.weights[padded] = POISON[case.poison]
    return PaddedTokensInputs(**{**vars(inputs), "states": with_row_stride(inputs.states, case.rows)})


def _experts(case: PaddedTokensCase) -> torch.Tensor:
    """Different experts for each row: the first of an order of its own."""
    words = torch.from_numpy(Stream(case.seed, "experts").random_uint64(case.all_rows * case.experts) >> 2).to(
        torch.int64
    )
    order = words.reshape(case.all_rows, case.experts).argsort(dim=1, stable=True)
    return order[:, : case.chosen].to(torch.int32)


def _factor(expert: int) -> float:
    """A power of two for each expert, unlike those of the nine before and behind it."""
    return (1, -1)[expert // 5 % 2] * (1.0, 2.0, 0.5, 4.0, 0.25)[expert % 5]


def coordinates(inputs: PaddedTokensInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, row of its chunk, and choice or column; or expert."""
    if output == "counts":
        return {"expert": torch.arange(len(inputs.factors))}
    place = torch.arange(len(inputs.states)).unsqueeze(1)
    last = {"column": inputs.states.shape[1]} if output == "output" else {"choice": inputs.experts.shape[1]}
    along = {name: torch.arange(count).unsqueeze(0) for name, count in last.items()}
    return {"rank": place // inputs.chunk, "row": place % inputs.chunk, **along}
