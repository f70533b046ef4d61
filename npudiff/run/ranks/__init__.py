"""Ranks: processes that compute one answer together, and live on between cases.

``group.py`` is the side of the judge, ``rank.py`` that of a rank; ``mesh.py`` has the lines between ranks, and
``collectives.py`` what goes over them where the device has no collectives of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from npudiff.model.anything import AnyInputs
from npudiff.model.component import Subject
from npudiff.model.implementation import Implementation, Target

if TYPE_CHECKING:
    import torch

    from npudiff.run.ranks.group import RankGroups


def with_ranks(target: Target, seconds: float, installed: Callable[[], Sequence[Implementation]] = list) -> Target:
    """Return a target on which components of several ranks run.

    Parameters
    ----------
    target : Target
        Without ranks, or with ones of another time limit.
    seconds : float
        That a call may take.
    installed : callable
        Says which implementations are there from the beginning: ranks know them, and others are made anew for one.
    """
    return replace(target, on_ranks=LateRanks(target, seconds, installed))


class LateRanks:
    """Ranks that are made when the first call is begun: most runs need none, nor what they are made with."""

    def __init__(self, target: Target, seconds: float, installed: Callable[[], Sequence[Implementation]]) -> None:
        self._target, self._seconds, self._installed = target, seconds, installed
        self._groups: RankGroups | None = None

    def __call__(self, subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Begin a call, as ``RankGroups.begin`` does."""
        if self._groups is None:
            from npudiff.run.ranks.group import RankGroups  # noqa: PLC0415 - torch.distributed, where it is needed

            self._groups = RankGroups(self._target, self._seconds, self._installed)
        return self._groups.begin(subject, inputs)

    def close(self) -> None:
        """End all ranks."""
        if self._groups is not None:
            self._groups.close()
