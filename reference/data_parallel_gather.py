"""Tokens of data-parallel ranks that are gathered for what all ranks compute together, and scattered again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, exactly, underflow_step, unit_roundoff
from npudiff.reference.views import moved_inputs

MODES = ("sum", "maximum", "chunks")
"""sum: the gathered buffer has the tokens of all, one after the other, and every rank computes a part of each. maximum:
every data-parallel rank is padded to the longest one. chunks: nothing is gathered; each rank computes the whole of its
chunk of its own group's rows, as where experts get tokens by all-to-all."""


@dataclass(frozen=True)
class DataParallelGatherInputs:
    """Tokens of all ranks, around a layer that all of them compute together.

    Rank ``group * attention_ranks + place`` is one of those that attend to the tokens of a data-parallel group.
    """

    states: torch.Tensor
    """``[rows, width]``, bfloat16, float16, float32 or int32 (ids travel as states do): for each rank, one after the
    other, as many rows as ``lengths`` has for its group. Rows behind its ``counts`` are padding, and hold anything."""
    factors: torch.Tensor
    """``[ranks, width]`` of the same dtype: what a rank multiplies each row by; the layer is the sum over ranks."""
    counts: tuple[int, ...]
    """Tokens of each group."""
    lengths: tuple[int, ...]
    """Rows of the buffer of each rank of a group, padding included. All are equal in mode "maximum", and divide by
    ``attention_ranks`` where rows are split over the ranks of a group."""
    attention_ranks: int
    """Ranks of a group."""
    mode: str
    """One of ``MODES``."""
    replicated: bool
    """Whether the ranks of a group have the same rows; else their rows add up to those of the tokens."""

    @property
    def ranks(self) -> int:
        """Ranks of all groups."""
        return len(self.counts) * self.attention_ranks


@dataclass(frozen=True)
class DataParallelPart:
    """What one rank has of it."""

    states: torch.Tensor
    """``[length, width]``."""
    factors: torch.Tensor
    """``[ranks, width]``."""
    rank: int
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    attention_ranks: int
    mode: str
    replicated: bool
    """As of ``DataParallelGatherInputs``."""

    def to(self, device: str | torch.device) -> DataParallelPart:
        """Return the same on ``device``."""
        return moved_inputs(self, device, copies=())


def starts_of_ranks(inputs: DataParallelGatherInputs) -> list[int]:
    """Return where the rows of each rank begin, and where those of the last one end."""
    starts = [0]
    for rank in range(inputs.ranks):
        starts.append(starts[-1] + inputs.lengths[rank // inputs.attention_ranks])
    return starts


def rank_part(inputs: DataParallelGatherInputs, rank: int) -> DataParallelPart:
    """Return the inputs of one rank."""
    starts = starts_of_ranks(inputs)
    return DataParallelPart(
        states=inputs.states[starts[rank] : starts[rank + 1]], factors=inputs.factors, rank=rank,
        counts=inputs.counts, lengths=inputs.lengths, attention_ranks=inputs.attention_ranks, mode=inputs.mode,
        replicated=inputs.replicated,
    )  # fmt: skip


def rows_of_ranks(inputs: DataParallelGatherInputs, output: str) -> list[int]:
    """Return how many rows of an output each rank returns."""
    if output == "real":
        return [1] * inputs.ranks
    return [inputs.lengths[rank // inputs.attention_ranks] for rank in range(inputs.ranks)]


def data_parallel_gather(inputs: DataParallelGatherInputs) -> dict[str, Expected]:
    """Return what the layer makes of each token, on every rank of its group.

    The layer is ``sum_r token * factors[r]``, whose terms are exact where factors are powers of two. It stands for any
    layer that works row by row and is split over ranks: whatever the rows of others or padding have to do with a token
    is wrong.

    Returns
    -------
    dict
        ``output``: ``[rows, width]``, as the states are laid out. Padding is 0 in mode "sum"; in others it is not said.
        ``real``: int32 ``[ranks]``, how many rows of each rank are no padding: of the whole group, and in mode "chunks"
        of the rank's chunk, ``min(max(count - place * chunk, 0), chunk)``.

    Raises
    ------
    ValueError
        If shapes contradict each other.

    Notes
    -----
    A correct device may round to float32 and to the dtype after each addition, over the ranks of a group where rows add
    up, and over all ranks; in any order, so that every sum on the way is at most the sum of absolute values. Zeros add
    nothing.
    """
    _validate(inputs)
    dtype, starts = inputs.states.dtype, starts_of_ranks(inputs)
    value = torch.zeros(inputs.states.shape, dtype=torch.float64)
    bound = torch.full_like(value, 0.0 if inputs.mode == "sum" else torch.inf)
    for group, count in enumerate(inputs.counts):
        first = group * inputs.attention_ranks
        blocks = [
            inputs.states[starts[rank] : starts[rank] + count].to(torch.float64)
            for rank in range(first, first + inputs.attention_ranks)
        ]
        token, error = _added(torch.stack(blocks[:1] if inputs.replicated else blocks), None, dtype)
        result, error = _layer(token, error, inputs.factors.to(torch.float64), dtype)
        for rank in range(first, first + inputs.attention_ranks):
            value[starts[rank] : starts[rank] + count] = result
            bound[starts[rank] : starts[rank] + count] = error
    return {"output": Expected(value, bound, dtype), "real": exactly(_real_rows(inputs))}


def _added(terms: torch.Tensor, errors: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of ``[terms, ...]`` and its error: added in float32, and rounded, in any order.

    Each addition multiplies what is there by at most ``(1 + u)``, for float32 and for the dtype.
    """
    size = terms.abs().sum(dim=0)
    error = torch.zeros_like(size) if errors is None else errors.sum(dim=0)
    if dtype.is_floating_point:
        once = (1 + unit_roundoff(dtype)) * (1 + FLOAT32_ROUNDOFF)
        error = error + (size + error) * (once ** (len(terms) - 1) - 1)
    return terms.sum(dim=0), error


def _layer(
    token: torch.Tensor, error: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the products with every rank's factors, each of which is rounded, and its error."""
    terms = token.unsqueeze(0) * factors.unsqueeze(1)
    errors = error.unsqueeze(0) * factors.abs().unsqueeze(1)
    if dtype.is_floating_point:
        rounded = (terms.to(dtype).to(torch.float64) != terms) | (errors > 0)
        own = (terms.abs() + errors) * unit_roundoff(dtype) + underflow_step(dtype)
        errors = errors + own * rounded
    return _added(terms, errors, dtype)


def _real_rows(inputs: DataParallelGatherInputs) -> torch.Tensor:
    real = []
    for rank in range(inputs.ranks):
        group, place = divmod(rank, inputs.attention_ranks)
        count = inputs.counts[group]
        if inputs.mode == "chunks":
            chunk = inputs.lengths[group] // inputs.attention_ranks
            count = min(max(count - place * chunk, 0), chunk)
        real.append(count)
    return torch.tensor(real, dtype=torch.int32)


def _validate(inputs: DataParallelGatherInputs) -> None:
    if inputs.mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {inputs.mode!r}")
    if len(inputs.lengths) != len(inputs.counts):
        raise ValueError(f"there are {len(inputs.counts)} groups, and lengths of {len(inputs.lengths)}")
    for count, length in zip(inputs.counts, inputs.lengths, strict=True):
        if not 0 <= count <= length:
            raise ValueError(f"counts must lie in 0..lengths, got {inputs.counts} and {inputs.lengths}")
        if inputs.mode != "sum" and length % inputs.attention_ranks:
            raise ValueError(f"lengths {inputs.lengths} do not divide by {inputs.attention_ranks} ranks")
    if inputs.mode == "maximum" and len(set(inputs.lengths)) > 1:
        raise ValueError(f'lengths must be equal in mode "maximum", got {inputs.lengths}')
    rows = sum(inputs.lengths) * inputs.attention_ranks
    if len(inputs.states) != rows:
        raise ValueError(f"states must have {rows} rows, got {len(inputs.states)}")
    if tuple(inputs.factors.shape) != (inputs.ranks, inputs.states.shape[1]):
        raise ValueError(f"factors must be {[inputs.ranks, inputs.states.shape[1]]}, got {list(inputs.factors.shape)}")
