"""A candidate's own process: it imports the file, describes what is in it, and answers calls."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from npudiff.errors import UsageError
from npudiff.model.faults import RemoteError
from npudiff.model.fingerprint import InputsChanged, changed_tensors, fingerprint
from npudiff.model.implementation import Implementation, Target
from npudiff.model.operators import OperatorWatch
from npudiff.model.red_zones import called_in_red_zones
from npudiff.model.returned import outputs_of, plain_error
from npudiff.run.discovery import own_implementations
from npudiff.run.untrusted.wire import pack_boxes, pack_outputs, unpack


def serve(connection: Connection, target: Target, selector: str, files: tuple[int, int]) -> None:
    """Answer until the other side is gone.

    Parameters
    ----------
    connection : Connection
        Questions come in, and answers go out.
    target : Target
        Where implementations run.
    selector : str
        File or module of the candidate.
    files : pair of int
        Memory in which inputs come in, and in which outputs go out.
    """
    try:
        answering = _Candidate(own_implementations(selector), target, files)
    except UsageError as error:
        connection.send_bytes(_message({"refused": str(error)}))
        return
    connection.send_bytes(_message({"implementations": answering.described()}))
    while True:
        question = json.loads(connection.recv_bytes())
        connection.send_bytes(_message(answering.answer(question)))


class _Candidate:
    def __init__(self, items: list[Implementation], target: Target, files: tuple[int, int]) -> None:
        self._items, self._target, self._files = items, target, files
        self._opened: dict[int, Callable[..., Any]] = {}
        self._operators: dict[int, dict[str, int]] = {}

    def described(self) -> list[dict[str, Any]]:
        """What there is to be judged."""
        return [
            {
                "component": item.component,
                "name": item.name,
                "summary": item.summary,
                "supports": pack_boxes(item.constraints.boxes),
                "stateful": item.factory is not None,
                "on_device": item.on_device,
                "checks": item.checks,
            }
            for item in self._items
        ]

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Make a call; whatever it raises is the answer."""
        inputs = unpack(question["inputs"], self._files[0])
        own = os.getpid()
        try:
            outputs = self._called(question, inputs)
            if os.getpid() != own:
                os._exit(1)  # before it writes over the answer of the other one
            return {"outputs": pack_outputs(outputs, self._files[1]), "operators": self._operators[question["call"]]}
        except BaseException as error:  # noqa: BLE001 - leaving the process is no verdict
            remote = RemoteError.of(plain_error(error))
            return {"raised": [remote.name, remote.text[:10_000], remote.kind.name, remote.frames]}
        finally:
            if os.getpid() != own:  # the implementation has forked, and this is the copy
                os._exit(1)

    def _called(self, question: dict[str, Any], inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - of any component
        item = self._items[question["call"]]
        before = fingerprint(inputs)
        function = self._function(item, question)
        if question.get("red_zones") is not None:
            function = functools.partial(called_in_red_zones, function, fill=question["red_zones"])
        if question["call"] not in self._operators:
            with OperatorWatch(self._target) as watch:
                result = function(inputs, self._target)
            self._operators[question["call"]] = dict(watch.operators)
        else:
            result = function(inputs, self._target)
        outputs = outputs_of(result, question["outputs"])
        self._target.synchronize()
        changed = [name or "a tensor" for name in changed_tensors(inputs, before)]
        if changed:
            raise InputsChanged(f"the implementation wrote into its inputs: {', '.join(changed)}")
        return outputs

    def _function(self, item: Implementation, question: dict[str, Any]) -> Callable[..., Any]:
        """What is called: of one that keeps something between calls, the object of a session."""
        session = question["session"]
        if session is None or item.factory is None:
            return item
        if session not in self._opened:
            self._opened[session] = item.factory()
        return self._opened[session]


def _message(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain).encode()
