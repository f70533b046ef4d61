"""The plan of a run: its implementations, their properties, the number of cases of each, and what this host can do."""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from npudiff.draw.options import with_options
from npudiff.draw.presets import DEFAULT_RUN_PRESET, RUN_PRESETS, run_preset
from npudiff.errors import UsageError, unknown
from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE, STATEFUL_EXAMPLE_RATIO, property_of_mutant
from npudiff.judge.others import properties_with_others
from npudiff.model.backend import EVERY, wished
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Constraints, parse_where
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import TIMEOUT, Budget, Isolation, Job
from npudiff.run.backends import load_backend, room_of
from npudiff.run.discovery import (
    Provide,
    add_own,
    built_in_implementations,
    component_names,
    default_target,
    given_implementations,
    load_component,
    load_components,
    load_target,
    own_files,
    select_implementations,
)
from npudiff.run.messages import Keep, Task
from npudiff.run.model_sizes import left_out_by, sizes_of
from npudiff.run.ranks import with_ranks

CAUSES_OF_A_BACKEND = 4
"""Defects of one function that ships for which a run looks: nobody knows yet which of them is known."""

DEFAULT_EXAMPLES = RUN_PRESETS[DEFAULT_RUN_PRESET].examples
"""Cases of equivalence within which every mutant has to be found."""

SMALLER = 10
"""Cases that are tried in place of a mutant's, where one stands for all of a component: that it is found is asked, and
the smallest case of all took a tenth of the time of a run."""


@dataclass(frozen=True)
class Request:
    """The request of a user, from the command line or from pytest."""

    components: tuple[str, ...] = ()
    """Component names; empty for all."""
    implementations: tuple[str, ...] = ()
    """Names, modules or files; empty for all built-in ones."""
    target: str | None = None
    """Target name; None for a visible NPU, else the simulator."""
    cann: str | None = None
    """CANN profile of the simulator."""
    examples: int | None = None
    """Cases of equivalence per implementation; None for those of the Hypothesis profile."""
    seconds: float | None = None
    """Time for the whole run, instead of a number of examples."""
    seed: int | None = None
    """Seed of the draws."""
    model: str | None = None
    """Model within whose production sizes cases are drawn."""
    where: tuple[str, ...] = ()
    """``axis=values`` restrictions."""
    hypothesis_profile: str = DEFAULT_RUN_PRESET
    """``dev``, ``ci`` or ``nightly``."""
    example_database: Path | None = None
    """Folder in which failing cases are remembered."""
    workers: int | None = None
    """Processes in which jobs run; None for as many as the target and the machine are good for."""
    isolate: bool | None = None
    """Whether cases run in processes that may die of them; None for where a device is shared, or an implementation is
    not built in."""
    untrusted: bool = False
    """Whether files and modules of ``implementations`` may deceive: they run in processes that know no reference."""
    journal: Path | None = None
    """Folder in which a case is written down before it is run."""
    timeout: float = TIMEOUT
    warm_up: float = 300.0
    """Seconds that a case may take, and a process until it has a known answer from its device."""
    shared: Path | None = None
    """Output folder of others, whose findings come first."""
    mutants: int | None = None
    """Mutants of each component that run; None for all."""
    causes: int | None = None
    """Defects of an implementation that are looked for, one beside the other; None for a few in a backend, and else
    one."""
    own: tuple[str, ...] = ()
    """Files or modules with components and properties of the user's."""
    at_first: int | None = None
    """Cases of equivalence of what is built in, on this host, where nobody says how many; None for a part of
    them."""
    given: tuple[Implementation, ...] = ()
    """Implementations as they are, in place of what names find."""

    @property
    def named(self) -> bool:
        """Whether the user said which implementations; what is wrong on purpose is an ordinary one then."""
        return bool(self.implementations or self.given)

    @property
    def most_causes(self) -> int:
        """Defects of an implementation after which nobody looks any further."""
        if self.causes is not None:
            return self.causes
        return CAUSES_OF_A_BACKEND if self.implementations and wished(self.implementations) else 1


@dataclass(frozen=True)
class Shared:
    """Failures that others have shared."""

    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a job to the cases that failed for somebody, as JSON."""
    examples: Path | None = None
    """Folder of what others' Hypothesis remembers, for each job by its name."""
    unread: tuple[str, ...] = ()
    """Why findings could not be read, a line each."""

    @property
    def line(self) -> str:
        """The shared failures in one line."""
        cases = sum(map(len, self.cases.values()))
        unread = f"; not read {len(self.unread)}: {self.unread[0]}" if self.unread else ""
        return f"{cases} cases of shared findings come first{unread}"


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    target: Target
    """Where everything runs."""
    jobs: tuple[Job, ...]
    """Properties of implementations that are expected to hold."""
    mutants: tuple[Job, ...]
    """One property of each implementation that is wrong on purpose, and is expected to be found: equivalence, or that
    earlier calls change nothing if it keeps something between calls."""
    request: Request = field(default_factory=Request)
    """What was asked for."""
    shared: Shared = field(default_factory=Shared)
    """Cases that failed for others."""
    without_sizes: Mapping[str, str] = field(default_factory=dict)
    """Components that are not run since ``--model`` has nothing for them, and why."""
    model_sizes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Sizes of ``--model`` within which each component's cases are drawn, a line per kind of layer."""
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Implementations that need what is not here, by component and name, and what that is. A module of a backend's
    adapters that does not import stands for all of it: its own name, and ``EVERY``."""

    @property
    def left_out_lines(self) -> list[str]:
        """What is left out, and why, a line each."""
        return [f"{'.'.join(name for name in names if name != EVERY)}: {why}" for names, why in self.left_out.items()]

    @property
    def unimported(self) -> dict[tuple[str, str], str]:
        """The modules among them that this run is about: nothing of them can be judged."""
        others = set(component_names()) - set(self.request.components or component_names())
        return {names: why for names, why in self.left_out.items() if names[1] == EVERY and names[0] not in others}

    def is_mutant(self, job: Job) -> bool:
        """Whether a job is one of ``mutants``."""
        return job.name in self._mutants

    @functools.cached_property
    def _mutants(self) -> frozenset[str]:
        return frozenset(job.name for job in self.mutants)

    @functools.cached_property
    def _all_ratios(self) -> float:
        """Cases of all jobs, per case of equivalence of each."""
        return sum(job.prop.example_ratio for job in (*self.jobs, *self.mutants))

    @property
    def workers(self) -> int:
        """Processes in which jobs run."""
        return self.request.workers or default_workers(self.target)

    @property
    def judges_mutants(self) -> bool:
        """Whether the run fails if a mutant is not found: not if the user narrowed or shortened it."""
        request = self.request
        fewer = request.mutants is None and (request.examples or DEFAULT_EXAMPLES) < DEFAULT_EXAMPLES
        return not (request.where or request.model or request.seconds is not None or fewer)

    @property
    def isolation(self) -> Isolation | None:
        """How cases are run in processes that may die of them; None if they are not.

        Without a wish, they are where a device is shared, and as soon as one implementation is not built in: it may
        end its process, with exit code 0 too.

        Raises
        ------
        UsageError
            If that was asked for where it cannot be done.
        """
        return self._isolation(may_end=self._may_end)

    @functools.cached_property
    def _may_end(self) -> bool:
        """Whether one of the jobs may end its process."""
        return any(may_end_its_process(job.subject) for job in self.jobs)

    def _isolation(self, *, may_end: bool) -> Isolation | None:
        request = self.request
        if request.isolate and not can_isolate():
            raise UsageError("--isolate needs Linux")
        wanted = request.isolate
        if wanted is None:
            wanted = can_isolate() and may_end
        return self._isolated if wanted else None

    @property
    def _isolated(self) -> Isolation:
        request = self.request
        return Isolation(request.journal, request.warm_up, request.timeout + _ANSWER * request.untrusted)

    @property
    def _second_look(self) -> Isolation | None:
        """How what fails in a process of this run is run once more; None where nobody wants isolation, or has it."""
        return replace(self._isolated, journal=None) if self.request.isolate is None and can_isolate() else None

    @property
    def only_begins(self) -> bool:
        """Whether all that is built in runs on this host, and nobody says how long.

        It has had thousands of cases there, and who begins wants to see soon that all is well: it gets fewer.
        """
        request = self.request
        asks = request.named or request.components or request.own or request.examples or request.seconds is not None
        return not asks and request.hypothesis_profile == DEFAULT_RUN_PRESET and on_this_host(self.target)

    @property
    def usual_examples(self) -> int:
        """Cases of equivalence per implementation, of which costly components get a part."""
        preset = run_preset(self.request.hypothesis_profile).examples
        first = self.request.at_first or round(preset * AT_FIRST)
        return self.request.examples or (first if self.only_begins else preset)

    def budget(self, job: Job) -> Budget:
        """Return how long one job may look."""
        profile = run_preset(self.request.hypothesis_profile)
        examples = self.usual_examples
        is_mutant = self.is_mutant(job)
        if is_mutant and (self.request.mutants is not None or self.request.examples is None):
            examples = max(examples, DEFAULT_EXAMPLES)  # a few stand for all: they have to be found in a short run too
        seconds = None
        if self.request.seconds is not None:
            seconds = self.request.seconds * self.workers * job.prop.example_ratio / self._all_ratios
        processes = job.subject.component.ranks is not None  # its calls are made in processes of ranks already
        may_end = self._may_end or may_end_its_process(job.subject)  # a test may make a job beside the plan
        isolation = None if processes else self._isolation(may_end=may_end)
        return Budget(
            examples=None if seconds is not None else max(1, round(examples * self._share(job))),
            seconds=seconds,
            seed=self.request.seed,
            deterministic=profile.deterministic,
            smaller=SMALLER if is_mutant and self.request.mutants is not None else None,
            example_database=None if is_mutant else self.request.example_database,
            isolation=isolation,
            explains=self.request.most_causes > 1 and not is_mutant,
            second_look=None if processes else self._second_look,
            explicit_cases=self.shared.cases.get(job.name, ()),
            shared_database=self.shared.examples,
            together=not (self.request.named or is_mutant or seconds is not None or isolation),
        )

    def tasks(self, keep: Keep) -> list[Task]:
        """Return all jobs and then all mutants, with their budgets; ``keep`` writes the findings of jobs."""
        tasks = [
            *(Task(job, self.budget(job), keep) for job in self.jobs),
            *(Task(job, self.budget(job), None) for job in self.mutants),
        ]
        if self.request.seconds is None:
            return tasks
        # Who has a time for all of it sees something of every implementation before more of the first ones.
        return sorted(tasks, key=lambda task: task.job.prop is not EQUIVALENCE)

    def _share(self, job: Job) -> float:
        """Cases of a job per example: what its property says, and what its component does."""
        component = job.subject.component
        runs = 1.0 if component.history is None else component.history.runs
        named = self.request.named  # whoever asks for one implementation gets all its cases
        is_mutant = self.is_mutant(job)
        keeps = job.prop is CALL_INDEPENDENCE and job.subject.implementation.factory is not None and not is_mutant
        share = STATEFUL_EXAMPLE_RATIO if keeps else job.prop.example_ratio
        return share * runs * (1.0 if named or is_mutant else component.example_ratio)


AT_FIRST = 0.2
"""Part of the usual cases that all which is built in gets on a host: then a check takes about a minute on two cores. It
was 0.4 for half as many components."""

_ANSWER = 2.0
"""Seconds beyond the time of a call: who waits for a candidate's process says first that it hangs, and where."""

_NOTHING = "no implementation supports a case that --where and --model allow: nothing to run"


def make_plan(request: Request, provide: Provide | None = None) -> Plan:
    """Turn what the user asked for into jobs.

    An implementation that is wrong on purpose is a mutant when it came along with all the others, and an ordinary
    implementation when the user named it.

    Parameters
    ----------
    request : Request
        What was asked for.
    provide : callable or None
        Asked for what is not built in; None to import it here, or what the request says of trust.

    Raises
    ------
    UsageError
        If a name is not known, or nothing would run.
    TargetUnavailable
        If the target cannot run here.
    """
    run_preset(request.hypothesis_profile)
    added = [name for selector in request.own for name in add_own(selector)]
    components = load_components(request.components or tuple(dict.fromkeys(added)))
    target = with_ranks(_target(request), request.timeout, built_in_implementations, load_component)
    by_name = {component.name: component for component in components}
    jobs: list[Job] = []
    mutants: list[Job] = []
    chosen: Counter[str] = Counter()
    left_out: dict[tuple[str, str], str] = {}
    if request.untrusted and own_files():
        raise UsageError("--untrusted judges components of npudiff: a candidate's process has no inputs of other files")
    if provide is None and request.untrusted:
        provide = untrusted_provider(request, target)
    items = given_implementations(components, request.given) or select_implementations(
        components, request.implementations, provide
    )
    drawn = [with_options(by_name[item.component], item.options) for item in items]
    restrictions = _restrictions(request, list({id(one): one for one in (*components, *drawn)}.values()))
    for item, component in zip(items, drawn, strict=True):
        if (restriction := restrictions.get(id(component))) is None:
            continue
        if missing := item.requires() if item.requires is not None else "":
            left_out[item.component, item.name] = missing
            continue
        if item.wrong is None or request.named:
            jobs += _jobs(component, item, target, properties_with_others(component, item), restriction)
        elif request.mutants is None or chosen[item.component] < request.mutants:
            found = _jobs(component, item, target, (property_of_mutant(item),), restriction)
            chosen[item.component] += len(found)
            mutants += found
    for wish in wished(request.implementations):
        left_out |= {(module, EVERY): why for module, why in room_of(wish).left_out.items()}
    plan = Plan(target, tuple(jobs), tuple(mutants), request, left_out=left_out)
    if request.model is not None:
        without, taken = left_out_by(request.model, components), sizes_of(request.model, components)
        sizes = {one.name: tuple(taken[id(one)].summary()) for one in components if id(one) in taken}
        plan = replace(plan, without_sizes=without, model_sizes=sizes)
    if not jobs and not mutants:
        lines = [*plan.left_out_lines, *(f"{name}: {request.model}: {why}" for name, why in plan.without_sizes.items())]
        raise UsageError(f"nothing to run is here: {lines[0]}" if lines else _NOTHING)
    _ = plan.isolation  # refused before anything is run
    return plan


def _target(request: Request) -> Target:
    """Return where a run happens: a backend has targets of its own, since it wants a device."""
    if request.target:
        return load_target(request.target, request.cann)
    wanted = [load_backend(wish.name).target for wish in wished(request.implementations)]
    return default_target(request.cann, wanted[0] if wanted else "sim")


def untrusted_provider(request: Request, target: Target) -> Provide:
    """Return what has the process of a candidate describe its file, which this process does not import.

    Raises
    ------
    UsageError
        If there is no candidate, or none can be judged here.
    """
    if not request.implementations:
        raise UsageError("--untrusted says how the files of --impl are judged, and needs one")
    if wished(request.implementations):
        raise UsageError("--untrusted judges the files of --impl; a backend is imported by the judge, which trusts it")
    if request.isolate is False or not can_isolate():
        raise UsageError("--untrusted needs isolation" + ("" if can_isolate() else ", and that needs Linux"))
    from npudiff.run.untrusted.remote import Nursery, untrusted_implementations  # noqa: PLC0415 - only where asked for

    nursery = Nursery(target, request.warm_up, request.timeout)
    return functools.partial(untrusted_implementations, nursery)


def _jobs(
    component: Component,
    item: Implementation,
    target: Target,
    properties: Sequence[Property],
    restriction: Constraints,
) -> list[Job]:
    """The properties that say something about what the implementation supports."""
    constraints = item.constraints.within(restriction)
    subject = Subject(component, item, target)
    jobs = [Job(subject, prop, constraints) for prop in properties]
    return [job for job in jobs if job.applies]


def _restrictions(request: Request, components: Sequence[Component]) -> dict[int, Constraints]:
    """The constraints of ``--where`` and ``--model`` by identity of a component; one without these axes is left out.

    A component without an axis that is named has no case that was asked for. Of several values, each component takes
    those that it has; one component at least must have them all, or one of them is a mistake. One of which the model
    says nothing is left out.
    """
    where = parse_where(request.where)
    having = [one for one in components if all(axis in one.axes for box in where.boxes for axis in box)]
    refusals = [refusal for one in having if (refusal := _refused(where, one)) is not None]
    if len(refusals) == len(having):
        raise refusals[0] if refusals else _without_axes(where, components)
    sizes = {id(one): Constraints() for one in having} if request.model is None else sizes_of(request.model, components)
    narrowed = {id(one): where.legal(one.axes).within(sizes[id(one)]) for one in having if id(one) in sizes}
    return {key: constraints for key, constraints in narrowed.items() if constraints}


def _refused(where: Constraints, component: Component) -> UsageError | None:
    """Why a component does not have all values, if so."""
    try:
        where.checked(component.axes, "--where")
    except UsageError as refusal:
        return refusal
    return None


def _without_axes(where: Constraints, components: Sequence[Component]) -> UsageError:
    """Why no component has all axes: one that there is not, or axes of different components."""
    axes = sorted({axis for component in components for axis in component.axes})
    named = [axis for box in where.boxes for axis in box]
    for axis in named:
        if axis not in axes:
            return UsageError(f"--where: {unknown('axis', axis, axes)}")
    return UsageError(f"--where: no component has all of these axes: {', '.join(named)}")


MOST_WORKERS = 4
"""Most workers of a run that does not say how many; each holds torch and the tensors of a case."""


def usable_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_this_host(target: Target) -> bool:
    """Whether memory and kernels of a target are the host's."""
    return target.on_host or target.device == "cpu"


def may_end_its_process(subject: Subject) -> bool:
    """Whether a call may end the process or spoil a device that is shared: what is not built in, or is not here."""
    return not (subject.implementation.built_in and on_this_host(subject.target))


def can_isolate() -> bool:
    """Whether isolation works here: it needs Linux's process groups and anonymous files."""
    return sys.platform == "linux"


def default_workers(target: Target) -> int:
    """Return how many processes to run jobs in: several on the host, one where a device is shared."""
    if not on_this_host(target) or sys.platform != "linux":  # elsewhere a fork of a process with torch is not safe
        return 1
    return max(1, min(MOST_WORKERS, usable_processors()))
