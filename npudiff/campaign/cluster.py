"""The workers of a campaign on a Ray cluster: an actor for each core or card, placed, restarted and retried by Ray.

What goes between is text. An actor gets the request of the user and rounds as JSON, makes the same plan, and gives
outcomes and the files of findings back, which only this process writes; so nodes need no folder in common. The files
that ``--impl`` names have to be where they are here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from npudiff.campaign.causes import Causes
from npudiff.campaign.rounds import CardLost, Ended, Failed, Restarted, Round, is_cut, task_of
from npudiff.campaign.team import VISIBLE, Told, Turns
from npudiff.errors import DeviceLost, UsageError
from npudiff.files.writing import file_name, write_file
from npudiff.findings.finding import FINDING_FILE, finding_of_plain
from npudiff.model.case import to_plain
from npudiff.model.job import Job
from npudiff.run.messages import Kept, Task, outcome_from_message, outcome_to_message
from npudiff.run.plan import Plan, Request, make_plan
from npudiff.run.workers import TaskRunner
from npudiff.show.finding import PAGE_FILE, keeper
from npudiff.text import counted

RESOURCE = "NPU"
"""What Ray calls an Ascend card; an actor that has one sees no other."""

RESTARTS, RETRIES = 3, 2
"""How often Ray starts an actor anew whose process or node is gone, and runs its rounds again, which are the same."""

HERE = "auto"
"""The address of a cluster that runs already, as Ray finds it, or of a new one on this machine."""

LOOKS_EVERY = 5.0
"""Seconds after which machines are looked for that are gone."""

_PATHS = ("example_database", "journal", "shared")


@dataclass(eq=False)
class _Actor:
    """An actor, and where it answered last."""

    handle: Any
    node: str = ""
    where: str = "a worker that has not begun"

    def moved(self, answer: Mapping[str, Any]) -> str | None:
        """Take where an answer comes from; return where the actor was before if its process is another one."""
        before, known = self.where, bool(self.node)
        self.node, self.where = answer["node"], f"process {answer['process']} on {answer['address']}"
        return before if known and before != self.where else None


class RayTeam:
    """Actors of a Ray cluster; a context manager.

    Parameters
    ----------
    plan : Plan
        What the rounds are of.
    address : str
        Address of the cluster, or ``auto``.
    workers : int or None
        Actors; None for the processors of the cluster.
    cards : int
        Cards, each of which gets an actor; 0 for actors without one.

    Raises
    ------
    UsageError
        If Ray is not installed, there is no such cluster, or it has fewer cards.
    """

    def __init__(self, plan: Plan, address: str, workers: int | None, cards: int) -> None:
        self._ray = _ray(address)
        self._request = request_to_text(plan.request)
        self._cards = cards
        try:
            self._count = self._counted(workers)
        except UsageError:
            self._ray.shutdown()
            raise
        self._actors: list[_Actor] = []
        self._lost: list[_Actor] = []
        """Actors on cards that are lost: as long as they are there, nobody else gets these cards."""

    def _counted(self, workers: int | None) -> int:
        """Return how many actors there are; raises ``UsageError`` if the cluster has fewer places."""
        have = self._ray.cluster_resources()
        if self._cards > have.get(RESOURCE, 0):
            raise UsageError(
                f"--cards {self._cards}: this cluster has {have.get(RESOURCE, 0):g} of the resource {RESOURCE!r}"
            )
        processors = max(1, int(have.get("CPU", 1)))
        if not self._cards and (workers or 1) > processors:
            raise UsageError(f"--workers {workers}: this cluster has {counted(processors, 'processor')}")
        return self._cards or workers or processors

    def __enter__(self) -> RayTeam:
        """Have Ray start the actors, and wait until they have made the plan."""
        self._actors = [self._started() for _ in range(self._count)]
        try:
            found = self._ray.get([one.handle.prepare.remote(self._request) for one in self._actors])
        except self._ray.exceptions.RayError as error:
            self.__exit__()
            raise UsageError(f"--ray: what is here cannot be run there: {_last_line(error)}") from None
        for actor, answer in zip(self._actors, found, strict=True):
            actor.moved(json.loads(answer))
        return self

    def _started(self) -> _Actor:
        """Return a new actor, for which Ray looks for a place."""
        options: dict[str, Any] = {"max_restarts": RESTARTS, "max_task_retries": RETRIES}
        options |= {"num_cpus": 0, "resources": {RESOURCE: 1}} if self._cards else {"num_cpus": 1}
        environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
        return _Actor(self._ray.remote(**options)(Worker).remote(str(Path.cwd()), environment))

    def __exit__(self, *error: object) -> None:
        """Leave the cluster as it was."""
        for actor in (*self._actors, *self._lost):
            self._ray.kill(actor.handle)
        self._ray.shutdown()

    @property
    def size(self) -> int:
        """As of ``Team``."""
        return len(self._actors)

    @property
    def where(self) -> str:
        """As of ``Team``."""
        return f"{counted(self.size, 'card' if self._cards else 'worker')} of Ray"

    def run(self, turns: Turns, causes: Causes, until: float | None) -> Iterator[Told]:
        """As of ``Team``; a card that is lost keeps its actor, which is given nothing any more."""
        waiting: deque[Round] = deque()
        free = list(self._actors)
        running: dict[Any, tuple[_Actor, Round]] = {}
        looked = time.monotonic()
        try:
            while free or running:
                while free:
                    if not waiting:
                        waiting.extend(next(turns, ()))
                    if not waiting:
                        break
                    actor, one = free.pop(), waiting.popleft()
                    seconds = None if until is None else until - time.monotonic()
                    running[actor.handle.run.remote(self._request, round_to_text(one), seconds)] = actor, one
                if not running:
                    return
                ended, _ = self._ray.wait(list(running), num_returns=1, timeout=LOOKS_EVERY)
                for ready in ended:
                    actor, one = running.pop(ready)
                    told = self._told(ready, actor, one, causes, until)
                    free += [one for one in self._actors if one is actor]
                    yield from told
                if time.monotonic() - looked > LOOKS_EVERY:
                    yield from self._without_a_place(free, running, until)
                    looked = time.monotonic()
        finally:
            for ready in running:
                self._ray.cancel(ready)

    def _told(
        self,
        ready: Any,  # noqa: ANN401 - of Ray
        actor: _Actor,
        one: Round,
        causes: Causes,
        until: float | None,
    ) -> list[Told]:
        """Return what comes of a round, after what has happened to its actor."""
        errors = self._ray.exceptions
        try:
            answer: dict[str, Any] = json.loads(self._ray.get(ready))
        except errors.RayError as error:  # the process or the node was gone more often than Ray tries again
            if isinstance(error, errors.ActorDiedError):
                self._actors[self._actors.index(actor)] = self._started()
            return [Failed(one, f"{type(error).__name__}: {error}")]
        before = actor.moved(answer["here"])
        told: list[Told] = [] if before is None else [Restarted(before, f"Ray went on with {actor.where}")]
        if "lost" in answer:
            if not self._cards:
                raise DeviceLost(answer["lost"])
            self._actors.remove(actor)
            self._lost.append(actor)
            return [*told, CardLost(answer["card"], answer["lost"], one)]
        if "defect" in answer:
            return [*told, Failed(one, answer["defect"])]
        outcome, kept = outcome_from_message(one.job, answer["outcome"])
        mine = tuple(self._written(found, answer["files"], causes) for found in kept)
        return [*told, Ended(one, outcome, mine, is_cut(outcome, until))]

    def _without_a_place(
        self,
        free: list[_Actor],
        running: dict[Any, tuple[_Actor, Round]],
        until: float | None,
    ) -> Iterator[Told]:
        """Take out actors of machines that are gone, for which the others have no place: Ray would wait for one.

        Whatever they ran is told, to be run by others. Ray finds a place for the rest.
        """
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        for actor in [one for one in self._lost if one.node not in alive]:
            self._lost.remove(actor)
            self._ray.kill(actor.handle)
        gone = [one for one in self._actors if one.node not in alive]
        places = int(self._ray.cluster_resources().get(RESOURCE if self._cards else "CPU", 0))
        over = until is not None and time.monotonic() > until
        more = len(gone) if over else max(0, len(self._actors) + len(self._lost) - places)
        for actor in gone[:more]:
            self._actors.remove(actor)
            self._ray.kill(actor.handle)
            free[:] = [one for one in free if one is not actor]
            ready = next((ready for ready, (one, _) in running.items() if one is actor), None)
            one = None if ready is None else running.pop(ready)[1]
            yield Restarted(actor.where, "its machine is gone, and no other one has a place for it", one)

    def _written(self, kept: Kept, files: Mapping[str, Mapping[str, str]], causes: Causes) -> Kept:
        """Write the folder of a finding, if its cause is new."""
        finding = finding_of_plain(kept.content)
        here = replace(kept, folder=causes.root / finding.key)
        if causes.cause_of(finding) is not None:
            return replace(here, written=False)
        command = finding.replay_command(here.folder)
        for name, text in files.get(finding.key, {}).items():
            data = base64.b64decode(text)
            if name in (FINDING_FILE, PAGE_FILE):
                data = data.replace(os.fsencode(kept.folder), os.fsencode(here.folder))
            write_file(here.folder / file_name(name), data, within=causes.root)
        return replace(here, content={**kept.content, "command": command})


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


_ENVIRONMENT = ("OMP_NUM_THREADS", "TORCH_DEVICE_BACKEND_AUTOLOAD", "PYTHONPATH")


def _ray(address: str) -> Any:  # noqa: ANN401 - a module that need not be there
    """Return Ray, which has joined a cluster."""
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'npudiff[ray]'") from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # who asks for no card sees what is visible here
    try:
        ray.init(address=None if address == HERE and not _is_running() else address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: {error}") from None
    return ray


def _is_running() -> bool:
    """Whether Ray knows of a cluster: one that the environment names, or that was started on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    from ray._private.services import find_gcs_addresses  # noqa: PLC0415 - an extra

    return bool(find_gcs_addresses())


class Worker:
    """What an actor does.

    Parameters
    ----------
    folder : str
        The folder in which the command was started, where there is one of this name.
    environment : dict
        Variables that it had.
    """

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def prepare(self, request: str) -> str:
        """Import what a request is about, and return where this is."""
        _planned(request)
        return json.dumps(_here())

    def run(self, request: str, text: str, seconds: float | None) -> str:
        """Run a round, and return its outcome, the files of its findings, and where this is, as JSON."""
        import traceback  # noqa: PLC0415 - of what should not be

        try:
            answer = _run(request, text, seconds)
        except DeviceLost as error:
            answer = {"lost": str(error), "card": os.environ.get(VISIBLE, "its only one")}
        except Exception:  # noqa: BLE001 - a defect, of whatever kind
            answer = {"defect": traceback.format_exc()}
        return json.dumps({**answer, "here": _here()})


def _here() -> dict[str, Any]:
    """Return the node and the process that this is."""
    import ray  # noqa: PLC0415 - an extra

    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "address": ray.util.get_node_ip_address(), "process": os.getpid()}


def _run(request: str, text: str, seconds: float | None) -> dict[str, Any]:
    plan, jobs = _planned(request)
    one = round_from_text(text, jobs)
    until = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "findings"
        task: Task = task_of(plan, one, keeper(root), until)
        with contextlib.closing(TaskRunner([task])) as runner:
            outcome, kept = runner.run(0)
        files = {found.folder.name: _files(found.folder) for found in kept}
        return {"outcome": outcome_to_message(outcome, kept), "files": files}


def _files(folder: Path) -> dict[str, str]:
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.iterdir() if path.is_file()}


@cache
def _planned(request: str) -> tuple[Plan, dict[str, Job]]:
    plan = make_plan(request_from_text(request))
    return plan, {job.name: job for job in plan.jobs}


def request_to_text(request: Request) -> str:
    """Return what a user asked for as JSON."""
    plain = {one.name: getattr(request, one.name) for one in fields(request) if one.name != "given"}
    return json.dumps(
        {name: str(value) if isinstance(value, Path) else to_plain(value) for name, value in plain.items()}
    )


def request_from_text(text: str) -> Request:
    """Return the request that a text says; folders of the machine that wrote it are none here."""
    plain: dict[str, Any] = {**json.loads(text), **dict.fromkeys(_PATHS)}
    given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in plain.items()}
    return Request(**given)


def round_to_text(one: Round) -> str:
    """Return a round as JSON."""
    plain = {
        "job": one.job.name,
        "number": one.number,
        "seed": one.seed,
        "regions": [dict(region) for region in one.regions],
    }
    return json.dumps({**plain, "given": one.given, "corpus": one.corpus, "first": one.first})


def round_from_text(text: str, jobs: Mapping[str, Job]) -> Round:
    """Return the round that a text says; raises ``KeyError`` if there is no such job."""
    plain = json.loads(text)
    given, corpus = (None if plain[name] is None else tuple(plain[name]) for name in ("given", "corpus"))
    regions, first = tuple(plain["regions"]), tuple(plain["first"])
    return Round(jobs[plain["job"]], plain["number"], plain["seed"], regions, given, corpus, first)
