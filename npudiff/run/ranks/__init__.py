"""Ranks: processes that compute one answer together, and live on between cases.

``group.py`` is the side of the judge, ``rank.py`` that of a rank; ``mesh.py`` has the lines between ranks, and
``collectives.py`` what goes over them where the device has no collectives of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from npudiff.model.anything import AnyInputs
from npudiff.model.component import Subject
from npudiff.model.implementation import Target

if TYPE_CHECKING:
    import torch

    from npudiff.run.ranks.group import RankGroups


def with_ranks(target: Target, seconds: float) -> Target:
    """Return a target on which components of several ranks run.

    Parameters
    ----------
    target : Target
        Without ranks, or with ones of another time limit.
    seconds : float
        That a call may take.
    """
    groups: list[RankGroups] = []

    def begin(subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        if not groups:
            from npudiff.run.ranks.group import RankGroups  # noqa: PLC0415 - torch.distributed, where it is needed

            groups.append(RankGroups(target, seconds))
        return groups[0].begin(subject, inputs)

    return replace(target, on_ranks=begin)
