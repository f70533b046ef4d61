"""Components of several ranks: how the inputs of all are split, and how what each returns is put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.model.anything import AnyInputs

if TYPE_CHECKING:
    import torch


RANK_TIMEOUT = "NPUDIFF_VIRTUAL_RANK_TIMEOUT"
"""Variable: seconds after which a rank of the virtual device that waits for others gives up."""


class RankAnswer(ValueError):
    """What a rank returned does not go together with what it should, or with what others did; the message says how."""


@dataclass(frozen=True)
class Ranks:
    """What a component of several ranks has besides.

    Its ``inputs`` are those of all ranks, and its outputs those of one rank after the other along the first axis. Each
    implementation is what one rank runs, with ``torch.distributed`` initialised among the ranks of the case.
    """

    count: Callable[[AnyInputs], int]
    """Inputs to the number of ranks."""
    part: Callable[[AnyInputs, int], AnyInputs]
    """Inputs and the number of a rank to what that rank is given: a frozen dataclass of ``npudiff.reference``."""
    rows: Callable[[AnyInputs, str], Sequence[int]]
    """Inputs and the name of an output to the rows of it that each rank has to return."""


def put_together(
    ranks: Ranks, inputs: AnyInputs, answers: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return the outputs of all ranks, one rank after the other.

    Raises
    ------
    RankAnswer
        If a rank leaves out an output that another one returns, or returns another number of rows than it has to, or
        rows of another shape or dtype than the others.
    """
    import torch  # noqa: PLC0415 - the engine's words do not need it

    made = {}
    for name in dict.fromkeys(name for answer in answers for name in answer):
        for rank, (answer, rows) in enumerate(zip(answers, ranks.rows(inputs, name), strict=True)):
            if name not in answer:
                raise RankAnswer(f"rank {rank} of {len(answers)} does not return {name}, and others do")
            wanted, given = list(answers[0][name].shape[1:]), answer[name]
            if given.dim() == 0 or len(given) != rows:
                shape = list(given.shape)
                raise RankAnswer(f"rank {rank} of {len(answers)} has to return {rows} rows of {name}, got {shape}")
            if list(given.shape[1:]) != wanted or given.dtype != answers[0][name].dtype:
                first = f"{list(answers[0][name].shape)} of {answers[0][name].dtype}"
                here = f"{list(given.shape)} of {given.dtype}"
                raise RankAnswer(f"rank {rank} of {len(answers)} returns {name} of shape {here}, and rank 0 {first}")
        made[name] = torch.cat([answer[name] for answer in answers])
    return made
