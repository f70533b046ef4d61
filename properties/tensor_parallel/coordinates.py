"""Where an element of an output is, in words of layers and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.reference.sharded_linear import own_columns
from npudiff.reference.tensor_parallel import TensorParallelInputs, is_divided, rows_of_ranks


def coordinates(inputs: TensorParallelInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: rank, token, and column of the whole layer."""
    rows = rows_of_ranks(inputs, output)[0]
    if not rows:
        return {name: torch.zeros(0, 1, dtype=torch.int64) for name in ("rank", "token", "column")}
    row = torch.arange(rows * inputs.ranks)
    rank = row // rows
    token = row if is_divided(inputs, output) else row % rows
    layer = inputs.first if inputs.layer == "column" else inputs.second
    if output == "residual" or inputs.layer in ("row", "column_row") or layer is None:
        columns = len((inputs.second if inputs.layer == "column_row" and inputs.second else inputs.first).weight)
        column = torch.arange(columns).unsqueeze(0)
    else:
        each = torch.stack([own_columns(layer, one, inputs.ranks) for one in range(inputs.ranks)])
        column = each.repeat_interleave(rows, dim=0)
    return {"rank": rank.unsqueeze(1), "token": token.unsqueeze(1), "column": column}
