"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared import magnitudes
from npudiff.properties._shared.long_table import table_of_numbers
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.properties.rotary.case import DTYPES, RotaryCase
from npudiff.reference.rotary import RotaryInputs


def build_inputs(case: RotaryCase) -> RotaryInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    states = {
        name: with_row_stride(_states(case, name, heads), case.rows, gap)
        for name, heads, gap in (("query", case.heads, GAPS[0]), ("key", case.kv_heads, GAPS[1]))
    }
    return RotaryInputs(
        states["query"],
        states["key"],
        with_row_stride(_positions(case), case.rows),
        with_row_stride(_stored_table(case, dtype), case.rows),
        case.style,
        case.section_sizes,
    )


def _states(case: RotaryCase, name: str, heads: int) -> torch.Tensor:
    """Queries or keys, ``[tokens, heads, head_dim]``."""
    dtype = DTYPES[case.dtype]
    shape = (case.tokens, heads, case.head_dim)
    if case.magnitude == "usual":
        return Stream(case.seed, name).normal(shape, dtype)
    numbers = Stream(case.seed, name).normal(shape, torch.float32)
    make = magnitudes.large if case.magnitude == "large" else magnitudes.small
    return make(numbers, dtype).to(dtype)


def _stored_table(case: RotaryCase, dtype: torch.dtype) -> torch.Tensor:
    if case.data == "cosines":
        return exact_table(case).to(dtype)
    return table_of_numbers(case.seed, case.table, case.rotary_dim, dtype)


def exact_table(case: RotaryCase) -> torch.Tensor:
    """The table before it is rounded to its dtype: float64 cosines and sines, or the numbers."""
    if case.data == "numbers":
        return table_of_numbers(case.seed, case.table, case.rotary_dim, torch.float64)
    exponents = torch.arange(0, case.rotary_dim, 2, dtype=torch.float64) / case.rotary_dim
    angles = torch.outer(torch.arange(case.table, dtype=torch.float64), 10_000.0**-exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _positions(case: RotaryCase) -> torch.Tensor:
    """Positions ``[tokens]``, or of each section ``[sections, tokens]``."""
    kinds = [_positions_of(case, f"positions {section}") for section in range(len(case.section_sizes))]
    return torch.stack(kinds) if kinds else _positions_of(case, "positions")


def _positions_of(case: RotaryCase, name: str) -> torch.Tensor:
    stream = Stream(case.seed, name)
    if case.positions == "scattered":
        return torch.tensor(stream.integers(0, case.table, case.tokens))
    start = case.table - case.tokens if case.positions == "last" else stream.integers(0, case.table, 1)[0]
    return (torch.arange(case.tokens) + start) % case.table


def coordinates(inputs: RotaryInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, position, head and element."""
    states = inputs.query if output == "query" else inputs.key
    return {
        "token": torch.arange(states.shape[0])[:, None, None],
        "position": inputs.positions.reshape(-1, len(states))[0][:, None, None],
        "head": torch.arange(states.shape[1])[None, :, None],
        "element": torch.arange(states.shape[2])[None, None, :],
    }
