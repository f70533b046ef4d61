"""One rank: a process that makes its part of calls until the judge closes the connection."""

from __future__ import annotations

import datetime as dt
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from npudiff.model.component import ImplementationRaised, NotApplicable, Returned, Subject
from npudiff.model.faults import RemoteError
from npudiff.model.ranks import RANK_TIMEOUT
from npudiff.model.returned import outputs_of, owned_tensor
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.worker import serve
from npudiff.run.ranks import collectives
from npudiff.run.ranks.mesh import Mesh, RankMissing, RanksDiffer
from npudiff.run.untrusted.wire import unpack

_OF_RANKS = "HCCL, communicator "
"""How a message of the virtual device begins that is about other ranks."""

_OF_CALLS = ("not the same on all ranks", "does not fit")
"""What stands in one that says that ranks do not call the same; any other says that a rank did not come."""


def rank_main(
    subjects: Sequence[Subject], mesh: Mesh, size: int, given: int, meeting: int, seconds: float,
    connection: Connection, shared: SharedTensors,
) -> NoReturn:  # fmt: skip
    """Make calls until the other side is gone.

    Parameters
    ----------
    subjects : sequence of Subject
        Whose implementations may be called.
    mesh : Mesh
        Lines to the other ranks.
    size : int
        Number of ranks.
    given : int
        File into which the judge writes tensors.
    meeting : int
        Open file through which ranks of a device with collectives of its own find each other.
    seconds : float
        After which a rank gives up waiting for another one.
    connection, shared
        Questions come in, and where tensors of answers go.
    """
    target = subjects[0].target
    if target.devices is not None:  # each rank has one of its own
        target = replace(target, device=f"{target.device.partition(':')[0]}:{mesh.rank}")
        torch.get_device_module(target.device).set_device(target.device)
        subjects = [replace(subject, target=target) for subject in subjects]
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # of functions' new names
    with target.activate():
        if target.collectives is None:
            collectives.join(mesh, mesh.rank, size)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch_npu's allocator, once in each process
                torch.empty(1, device=target.device)
            os.environ[RANK_TIMEOUT] = f"{seconds:g}"
            store = FileStore(f"/proc/self/fd/{meeting}", size)
            dist.init_process_group(
                target.collectives, store=store, rank=mesh.rank, world_size=size, timeout=dt.timedelta(hours=1)
            )
        serve(connection, lambda question: _answer(question, subjects, mesh, given, seconds, shared))


def _answer(
    question: dict[str, Any], subjects: Sequence[Subject], mesh: Mesh, given: int, seconds: float,
    shared: SharedTensors,
) -> dict[str, Any]:  # fmt: skip
    mesh.begin(question["call"], time.monotonic() + seconds)
    try:
        return _called(subjects[question["subject"]], unpack(question["inputs"], given, trusted=True), shared)
    finally:
        mesh.end()


def _called(subject: Subject, part: Any, shared: SharedTensors) -> dict[str, Any]:  # noqa: ANN401 - of any component
    item, names = subject.implementation, subject.component.outputs
    try:
        outputs = subject.call_guarded(
            lambda: Returned(outputs_of(item(part, subject.target), names, owned_tensor)), part
        )
    except NotApplicable as error:
        return {"verdict": "not applicable", "text": str(error)}
    except ImplementationRaised as error:
        remote = RemoteError.of(error.__cause__ or error)
        said = {"name": remote.name, "text": remote.text, "kind": remote.kind.name, "frames": remote.frames}
        return {"verdict": "raised", **said, "waited": _waited(error.__cause__), "differs": _differs(error.__cause__)}
    return {"verdict": "returned", "names": list(outputs), "tensors": shared.write(list(outputs.values()))}


def _waited(error: BaseException | None) -> bool:
    """Whether a rank gave up since another one was not there."""
    return isinstance(error, RankMissing) or (_OF_RANKS in str(error) and not _differs(error))


def _differs(error: BaseException | None) -> bool:
    """Whether ranks do not call the same."""
    text = str(error)
    return isinstance(error, RanksDiffer) or (_OF_RANKS in text and any(said in text for said in _OF_CALLS))
