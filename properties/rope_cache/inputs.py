"""From a case to positions and offsets, and what each element of an output is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.properties.rope_cache.case import DTYPES, RopeCacheCase
from npudiff.reference.rope_cache import RopeCacheInputs
from npudiff.reference.rope_scaling import RopeConfig


def build_inputs(case: RopeCacheCase) -> RopeCacheInputs:
    """Build the inputs of a case."""
    rows = _rows(case)
    offsets = None if case.offsets == "none" else _offsets(case, rows)
    return RopeCacheInputs(
        positions=rows if offsets is None else rows - offsets.to(torch.int64),
        offsets=offsets,
        config=case.config,
        other=_other(case),
        lengths=case.lengths,
        first_row=case.first_row,
        dtype=DTYPES[case.dtype],
    )


def _rows(case: RopeCacheCase) -> torch.Tensor:
    """Rows of the table that the tokens ask for."""
    stream = Stream(case.seed, "rows")
    first, count = case.first_row, case.lengths[-1] - case.first_row
    if case.positions == "scattered":
        return torch.tensor(stream.integers(first, first + count, case.tokens))
    start = count - case.tokens if case.positions == "last" else stream.integers(0, count, 1)[0]
    return first + (start + torch.arange(case.tokens)) % count


def _offsets(case: RopeCacheCase, rows: torch.Tensor) -> torch.Tensor:
    """Offsets up to the row: where the row's section starts, or anywhere, of each token its own; seldom 0."""
    dtype = {"int64": torch.int64, "int32": torch.int32}[case.offsets]
    if case.config.sections:
        ends = torch.tensor(case.config.sections).cumsum(0)
        starts = ends - torch.tensor(case.config.sections)
        return starts[torch.searchsorted(ends, rows, right=True)].to(dtype)
    words = torch.tensor(Stream(case.seed, "offsets").integers(0, 2**31, case.tokens))
    return (rows - words % rows.clamp(min=1)).to(dtype)


def _other(case: RopeCacheCase) -> RopeConfig | None:
    """The rope of other layers, different from that of this one in what the case says."""
    config, base = case.config, 10_000.0 if case.config.base != 10_000.0 else 1_000_000.0
    if case.other == "theta":
        return replace(config, base=base)
    if case.other == "none":
        return None
    plain = RopeConfig("base", config.width, max(config.width, config.head_dim), base, config.max_positions)
    if case.other == "plain":
        return plain
    return replace(plain, kind="yarn", base=config.base, max_positions=max(64, config.max_positions), factors=(24.0,))


def coordinates(inputs: RopeCacheInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, row of the table, and pair or column."""
    if output == "softmax_scale":
        return {}
    shape = [-1, 1] if output == "table" else [-1, 1, 1, 1]
    column = torch.arange(inputs.config.width).reshape([1] * (len(shape) - 1) + [-1])
    return {
        "token": torch.arange(len(inputs.positions)).reshape(shape),
        "row": inputs.rows.reshape(shape),
        "pair": column % (inputs.config.width // 2),
        "half": column // (inputs.config.width // 2),
    }
