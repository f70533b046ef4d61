"""Ranks: processes that compute one answer together, and live on between cases.

``group.py`` is the side of the judge, ``rank.py`` that of a rank; ``mesh.py`` has the lines between ranks, and
``collectives.py`` what goes over them where the device has no collectives of its own. Ranks are forked from a process
that has not used its device; ``standby.py`` is such a one for those that have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from npudiff.model.anything import AnyInputs
from npudiff.model.component import NotApplicable, Subject
from npudiff.model.implementation import Implementation, Target

if TYPE_CHECKING:
    import torch

    from npudiff.run.ranks.group import RankGroups
    from npudiff.run.ranks.standby import Standby


def with_ranks(
    target: Target,
    seconds: float,
    installed: Callable[[], Sequence[Implementation]] = list,
    components: Callable[[str], Any] | None = None,
) -> Target:
    """Return a target on which components of several ranks run.

    Parameters
    ----------
    target : Target
        Without ranks, or with ones of another time limit.
    seconds : float
        That a call may take.
    installed : callable
        Says which implementations are there from the beginning: ranks know them, and others are made anew for one.
    components : callable
        Name of a component to the component, for ranks that a process makes which stands by; None for no such process.
    """
    if isinstance(target.on_ranks, LateRanks):
        target = target.on_ranks.without
    ranks = LateRanks(target, seconds, installed, components)
    if target.collectives is None or not target.on_host or components is None:
        return replace(target, on_ranks=ranks)

    def activate() -> AbstractContextManager[object]:
        ranks.stand_by()
        return target.activate()

    return replace(target, on_ranks=ranks, activate=activate)


class LateRanks:
    """Ranks that are made when the first call is begun: most runs need none, nor what they are made with.

    Attributes
    ----------
    without : Target
        The target without them.
    """

    def __init__(
        self,
        target: Target,
        seconds: float,
        installed: Callable[[], Sequence[Implementation]],
        components: Callable[[str], Any] | None,
    ) -> None:
        self.without, self._seconds, self._installed, self._components = target, seconds, installed, components
        self._groups: RankGroups | None = None

    def __call__(self, subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Begin a call, as ``RankGroups.begin`` does.

        Raises
        ------
        NotApplicable
            If this process has used its device, and nothing that is installed is called.
        """
        if self.without.on_host and _has_used(self.without):
            return self._by_another(subject, inputs)
        if self._groups is None:
            from npudiff.run.ranks.group import RankGroups  # noqa: PLC0415 - torch.distributed, where it is needed

            self._groups = RankGroups(self.without, self._seconds, self._installed)
        return self._groups.begin(subject, inputs)

    def _by_another(self, subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        other = _standing_by.get(os.getpid())
        known = any(one.function is subject.implementation.function for one in self._installed())
        if other is None or other.gone or not known:
            raise NotApplicable("ranks cannot be forked from a process that has used its device: run it by itself")
        return other.begin(subject, inputs)

    def stand_by(self) -> None:
        """Have a process stand by for ranks, if this one has none and has not used its device."""
        if os.getpid() not in _standing_by and self._components is not None and not _has_used(self.without):
            from npudiff.run.ranks.standby import Standby  # noqa: PLC0415 - as above

            _standing_by[os.getpid()] = Standby(self.without, self._seconds, self._installed, self._components)

    def close(self) -> None:
        """End all ranks."""
        if self._groups is not None:
            self._groups.close()


_standing_by: dict[int, Standby] = {}
"""Process to the one that stands by for it; a fork has none of its own at first."""


def _has_used(target: Target) -> bool:
    """Whether this process, or one that it was forked from, has used the device."""
    kind = target.device.partition(":")[0]
    if kind == "cpu":
        return False
    import torch  # noqa: PLC0415 - of a target that is there

    module: Any = torch.get_device_module(kind)
    return bool(module.is_initialized()) or bool(getattr(module, "_is_in_bad_fork", bool)())
