"""What a run does: which implementations, which properties, how many cases of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npudiff.component import Component, Subject
from npudiff.constraints import Constraints, parse_where
from npudiff.discovery import default_target, load_components, load_target, select_implementations
from npudiff.engine import EQUIVALENCE
from npudiff.errors import UsageError, unknown
from npudiff.implementation import Implementation
from npudiff.outcome import Budget, Job
from npudiff.profiles import DEFAULT_RUN_PROFILE, RUN_PROFILES, run_profile
from npudiff.property import Property
from npudiff.target import Target

DEFAULT_EXAMPLES = RUN_PROFILES[DEFAULT_RUN_PROFILE].examples
"""Cases of equivalence within which every mutant has to be found."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; the same from the command line and from pytest.

    Attributes
    ----------
    components : tuple of str
        Component names; empty for all.
    implementations : tuple of str
        Names, modules or files; empty for all built-in ones.
    target : str or None
        Target name; None for a visible NPU, else the simulator.
    cann : str or None
        CANN profile of the simulator.
    examples : int or None
        Cases of equivalence per implementation; None for those of the Hypothesis profile.
    seconds : float or None
        Time for the whole run, instead of a number of examples.
    seed : int or None
        Seed of the draws.
    model : str or None
        Model profile: production sizes to draw within.
    where : tuple of str
        ``axis=values`` restrictions.
    hypothesis_profile : str
        ``dev``, ``ci`` or ``nightly``.
    memory : pathlib.Path or None
        Folder in which failing cases are remembered.
    """

    components: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    target: str | None = None
    cann: str | None = None
    examples: int | None = None
    seconds: float | None = None
    seed: int | None = None
    model: str | None = None
    where: tuple[str, ...] = ()
    hypothesis_profile: str = DEFAULT_RUN_PROFILE
    memory: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes
    ----------
    target : Target
        Where everything runs.
    jobs : tuple of Job
        Properties of implementations that are expected to hold.
    mutants : tuple of Job
        Equivalence of implementations that are wrong on purpose, and are expected to be found.
    request : Request
        What was asked for.
    """

    target: Target
    jobs: tuple[Job, ...]
    mutants: tuple[Job, ...]
    request: Request = field(default_factory=Request)

    @property
    def judges_mutants(self) -> bool:
        """Whether a mutant that is not found is the run's fault: not if the user narrowed or shortened the run."""
        request = self.request
        fewer = request.seconds is not None or (request.examples or DEFAULT_EXAMPLES) < DEFAULT_EXAMPLES
        return not (request.where or request.model or fewer)

    def budget(self, job: Job) -> Budget:
        """Return how long one job may look."""
        profile = run_profile(self.request.hypothesis_profile)
        examples = self.request.examples or profile.examples
        seconds = None
        if self.request.seconds is not None:
            total = sum(other.prop.share for other in (*self.jobs, *self.mutants))
            seconds = self.request.seconds * job.prop.share / total
        return Budget(
            examples=None if seconds is not None else max(1, round(examples * _share(job))),
            seconds=seconds,
            seed=self.request.seed,
            deterministic=profile.deterministic,
            memory=None if job in self.mutants else self.request.memory,
        )


def _share(job: Job) -> float:
    """Cases of a job per example: what its property says, and for runs with many steps each, the component."""
    history = job.subject.component.history
    return job.prop.share * (1.0 if history is None else history.runs)


def make_plan(request: Request) -> Plan:
    """Turn what the user asked for into jobs.

    An implementation that is wrong on purpose is a mutant when it came along with all the others, and an ordinary
    implementation when the user named it.

    Raises
    ------
    UsageError
        If a name is not known, or nothing would run.
    TargetUnavailable
        If the target cannot run here.
    """
    run_profile(request.hypothesis_profile)
    components = load_components(request.components)
    restriction = _restriction(request, components)
    target = load_target(request.target, request.cann) if request.target else default_target(request.cann)
    by_name = {component.name: component for component in components}
    jobs: list[Job] = []
    mutants: list[Job] = []
    for item in select_implementations(components, request.implementations):
        component = by_name[item.component]
        is_mutant = item.wrong is not None and not request.implementations
        properties = (EQUIVALENCE,) if is_mutant else (EQUIVALENCE, *component.relations)
        destination = mutants if is_mutant else jobs
        destination.extend(_jobs(component, item, target, properties, restriction, request))
    if not jobs and not mutants:
        raise UsageError("no implementation supports a case that --where and --profile allow: nothing to run")
    return Plan(target, tuple(jobs), tuple(mutants), request)


def _jobs(
    component: Component,
    item: Implementation,
    target: Target,
    properties: Sequence[Property],
    restriction: Constraints,
    request: Request,
) -> list[Job]:
    """The properties that say something about what the implementation supports, and the model has."""
    model = Constraints.of(component.profiles.get(request.model or "", {}))
    constraints = item.constraints.within(restriction.legal(component.axes)).within(model)
    subject = Subject(component, item, target)
    jobs = [Job(subject, prop, constraints) for prop in properties]
    return [job for job in jobs if job.applies]


def _restriction(request: Request, components: Sequence[Component]) -> Constraints:
    axes = {name: axis for component in components for name, axis in component.axes.items()}
    models = sorted({model for component in components for model in component.profiles})
    if request.model is not None and request.model not in models:
        raise unknown("model profile", request.model, models)
    return parse_where(request.where).checked(axes, "--where")
