"""A process that stands by: it makes ranks for one that has used its device, from which no rank can be forked any more.

It is forked before the device is used, and knows what is installed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from npudiff.model.anything import AnyInputs
from npudiff.model.component import ImplementationRaised, NotApplicable, Subject
from npudiff.model.faults import Faulted, Kind, RemoteError
from npudiff.model.implementation import Implementation, Target
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.process import WorkerProcess
from npudiff.run.isolation.worker import serve
from npudiff.run.ranks.group import RankGroups
from npudiff.run.untrusted.wire import pack, unpack

_LATER = 10.0
"""Seconds beyond the time of a call in which it says what has become of the call."""


class Standby(WorkerProcess):
    """The process that stands by.

    Parameters
    ----------
    target : Target
        Where ranks run.
    seconds : float
        That a call may take.
    installed : callable
        Says which implementations are there.
    components : callable
        Name of a component to the component.
    """

    def __init__(
        self,
        target: Target,
        seconds: float,
        installed: Callable[[], Sequence[Implementation]],
        components: Callable[[str], Any],
    ) -> None:
        self._given = os.memfd_create("npudiff-inputs", os.MFD_CLOEXEC)
        self._seconds = seconds
        self._asks = False

        def life(connection: Connection, shared: SharedTensors) -> NoReturn:
            groups = RankGroups(target, seconds, installed)

            def answer(question: dict[str, Any]) -> dict[str, Any]:
                item = next(one for one in installed() if [one.component, one.name] == question["names"])
                subject = Subject(components(item.component), item, target)
                return _said(groups, subject, unpack(question["inputs"], self._given, trusted=True), shared)

            serve(connection, answer)

        super().__init__(life)

    def begin(self, subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Begin a call, as ``RankGroups.begin`` does; an earlier one that nobody has waited for is waited for first."""
        if self._asks:
            with contextlib.suppress(ImplementationRaised):  # it is no answer to anything else
                self._answer()
        self._asks = True
        self.tell({"names": list(subject.names), "inputs": pack(inputs, self._given, trusted=True)})
        return lambda: self._outputs(self._answer())

    def _answer(self) -> dict[str, Any]:
        self._asks = False
        try:
            self._await(self._seconds + _LATER)
            return self.hear()
        except Faulted as fault:
            error = RemoteError(fault.kind.value, str(fault), fault.kind, fault.frames)
            raise ImplementationRaised(f"{type(error).__name__}: {error}") from error

    def _outputs(self, reply: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if reply["verdict"] == "not applicable":
            raise NotApplicable(reply["text"])
        if reply["verdict"] == "raised":
            error = RemoteError(reply["name"], reply["text"], Kind[reply["kind"]], tuple(reply["frames"]))
            raise ImplementationRaised(f"{type(error).__name__}: {error}") from error
        return dict(zip(reply["names"], self.shared.read(reply["tensors"]), strict=True))


def _said(groups: RankGroups, subject: Subject, inputs: AnyInputs, shared: SharedTensors) -> dict[str, Any]:
    try:
        outputs = groups.begin(subject, inputs)()
    except NotApplicable as error:
        return {"verdict": "not applicable", "text": str(error)}
    except ImplementationRaised as error:
        remote = RemoteError.of(error.__cause__ or error)
        said = {"name": remote.name, "text": remote.text, "kind": remote.kind.name, "frames": remote.frames}
        return {"verdict": "raised", **said}
    return {"verdict": "returned", "names": list(outputs), "tensors": shared.write(list(outputs.values()))}
