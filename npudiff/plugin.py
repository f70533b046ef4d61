"""The pytest plugin: the same engine, the same findings, one test per property of each implementation.

Importing this module imports neither torch nor Hypothesis; a test run that does not use npudiff pays for a few options.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from npudiff.commands.arguments import positive
from npudiff.errors import UsageError
from npudiff.model.target import TargetUnavailable

if TYPE_CHECKING:
    from npudiff.findings.finding import Finding
    from npudiff.model.outcome import Outcome
    from npudiff.run.isolation.supervisor import Supervisor
    from npudiff.run.plan import Plan

_PLAN = pytest.StashKey["Plan"]()
_SCOUTING = pytest.StashKey["Supervisor"]()
_FIXTURES = {"npudiff_job": "jobs", "npudiff_mutant": "mutants"}
_PROFILES = ("dev", "ci", "nightly")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add npudiff's options."""
    group = parser.getgroup("npudiff", "differential testing of NPU implementations")
    group.addoption("--target", metavar="NAME", help="sim, virtual or npu; by default npu")
    group.addoption("--impl", action="append", default=[], metavar="NAME|MODULE|FILE", help="implementations to test")
    group.addoption("--cann", metavar="VERSION", help="CANN profile of the simulator, such as 8.5")
    group.addoption("--examples", type=positive, metavar="N", help="cases of equivalence per implementation")
    group.addoption(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run cases in a process that may die of them; by default on a device",
    )
    group.addoption("--npudiff-output", default=".npudiff", metavar="DIR", help="where findings go (.npudiff)")
    group.addoption("--npudiff-shared", metavar="DIR", help="an output folder of others: what failed there comes first")


def pytest_load_initial_conftests() -> None:
    """Set what torch reads when it is imported, before a conftest imports it."""
    from npudiff.run.environment import autoload_would_fail  # noqa: PLC0415 - a few file look-ups, on a real run only

    if autoload_would_fail():
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and Hypothesis profiles, and refuse ``-m npu`` without a device."""
    config.addinivalue_line("markers", "npu: runs implementations on a target; with -m npu, on a device only")
    if config.getoption("hypothesis_profile", None) in _PROFILES:
        from npudiff.draw.presets import register_profiles  # noqa: PLC0415 - imports Hypothesis, which was asked for

        register_profiles()
    if wants_device(config.getoption("markexpr", "")):
        _require_device(config)
    if any(config.getoption(option) for option in ("--impl", "--target", "--cann")):
        _plan(config)  # a wrong name is refused before anything is collected


def wants_device(expression: str) -> bool:
    """Whether a mark expression selects tests for being marked ``npu``: whether some test would be left out without."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:  # nothing was asked for, or pytest will say what is wrong with it
        return False
    words = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"npu"})[:8]
    others = itertools.chain.from_iterable(itertools.combinations(words, count) for count in range(len(words) + 1))
    return any(_selects(tree, {*some, "npu"}) and not _selects(tree, set(some)) for some in others)


def _selects(tree: ast.expr, marks: set[str]) -> bool:
    """Whether a test with these marks is selected; mark expressions are Python's names with and, or and not."""
    if isinstance(tree, ast.BoolOp):
        combine = all if isinstance(tree.op, ast.And) else any
        return combine(_selects(value, marks) for value in tree.values)
    if isinstance(tree, ast.UnaryOp):
        return not _selects(tree.operand, marks)
    return isinstance(tree, ast.Name) and tree.id in marks


def _require_device(config: pytest.Config) -> None:
    from npudiff.run.discovery import load_target  # noqa: PLC0415 - the run needs torch from here on

    target = config.getoption("--target") or "npu"
    if target == "sim":
        raise pytest.UsageError("-m npu asks for a device, and --target sim is a simulator: leave out one of them")
    try:
        load_target(target, config.getoption("--cann"))
    except (TargetUnavailable, UsageError) as error:
        raise pytest.UsageError(f"-m npu needs a device, and there is none: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for ``npudiff_job`` or ``npudiff_mutant`` one instance per job of the plan."""
    for fixture, kind in _FIXTURES.items():
        if fixture in metafunc.fixturenames:
            jobs = getattr(_plan(metafunc.config), kind)
            parameters = [pytest.param(job, id=job.name.replace(".", "-"), marks=pytest.mark.npu) for job in jobs]
            metafunc.parametrize(fixture, parameters)


def _plan(config: pytest.Config) -> Plan:
    """The plan of this run, made when the first test asks for it."""
    if _PLAN not in config.stash:
        from npudiff.findings.shared import plan_with_shared  # noqa: PLC0415
        from npudiff.run.plan import Request  # noqa: PLC0415 - imports torch and Hypothesis, now needed

        profile = config.getoption("hypothesis_profile", None)
        request = Request(
            workers=1,  # pytest-xdist makes several
            implementations=tuple(config.getoption("--impl")),
            target=config.getoption("--target") or ("npu" if wants_device(config.getoption("markexpr", "")) else None),
            cann=config.getoption("--cann"),
            examples=config.getoption("--examples"),
            hypothesis_profile=profile if profile in _PROFILES else "dev",
            example_database=_output(config) / "examples",
            isolate=config.getoption("--isolate"),
            journal=_output(config) / "journal",
            shared=_shared(config),
        )
        try:
            config.stash[_PLAN] = plan_with_shared(request)
        except (UsageError, TargetUnavailable) as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_PLAN]


def _shared(config: pytest.Config) -> Path | None:
    folder = config.getoption("--npudiff-shared")
    return None if folder is None else config.invocation_params.dir / str(folder)


def _scouting(config: pytest.Config) -> Supervisor:
    """What runs the jobs of this run where they are isolated: one process for the jobs of all tests, while it lives."""
    if _SCOUTING not in config.stash:
        from npudiff.run.isolation.supervisor import Supervisor  # noqa: PLC0415 - the parts that are not on every system
        from npudiff.show.finding_page import keeper  # noqa: PLC0415

        config.stash[_SCOUTING] = Supervisor(_plan(config).tasks(keeper(_output(config) / "findings")))
    return config.stash[_SCOUTING]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what was started."""
    if _SCOUTING in config.stash:
        config.stash[_SCOUTING].close()


def _output(config: pytest.Config) -> Path:
    return config.invocation_params.dir / str(config.getoption("--npudiff-output"))


class Runner:
    """Runs jobs for tests: a finding is written to its folder and fails the test."""

    def __init__(self, config: pytest.Config, record: Any) -> None:  # noqa: ANN401 - pytest's record_property
        self._config, self._record = config, record
        self._kept: list[tuple[Finding, Path]] = []

    @property
    def judges_mutants(self) -> bool:
        """Whether every mutant has to be found; not in a run that was shortened."""
        return _plan(self._config).judges_mutants

    def run(self, job: Any) -> Outcome:  # noqa: ANN401 - a Job; naming it would import the engine
        """Run a job and record its figures in the test report."""
        plan = _plan(self._config)
        outcome = self._run(job, plan) if plan.isolation is None else self._isolated(job, plan)
        figures = {
            "target": f"{job.subject.target.name}, CANN {job.subject.target.cann}",
            "cases": outcome.cases,
            "steps": outcome.steps,
            "not_applicable": outcome.not_applicable.total(),
            "worst": outcome.worst_ratio,
        }
        self._record("npudiff", figures)
        return outcome

    @staticmethod
    def _run(job: Any, plan: Plan) -> Outcome:  # noqa: ANN401 - as above
        from npudiff.run.engine import run_job  # noqa: PLC0415 - imported when the first job runs

        return run_job(job, plan.budget(job))

    def _isolated(self, job: Any, plan: Plan) -> Outcome:  # noqa: ANN401 - as above
        """Run a job elsewhere; its findings are written there."""
        from npudiff.findings.finding import read_finding  # noqa: PLC0415 - imported when the first job runs
        from npudiff.run.messages import outcome_from_message  # noqa: PLC0415

        jobs = (*plan.jobs, *plan.mutants)
        if job not in jobs:  # a test's own
            return self._run(job, plan)
        outcome, folders = outcome_from_message(job, _scouting(self._config).run(jobs.index(job)))
        self._kept = [(read_finding(folder), folder) for folder in folders]
        return outcome

    def fail(self, outcome: Outcome) -> None:
        """Write what an outcome has to report, and fail the test with it."""
        from npudiff.show.finding_page import keep_findings  # noqa: PLC0415 - needed for a finding only
        from npudiff.show.report import finding_lines  # noqa: PLC0415

        lines = []
        for finding, folder in self._kept or keep_findings(outcome, _output(self._config) / "findings"):
            lines.append(f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}")
            lines += [f"{label:10} {text}" for label, text in finding_lines(finding, folder)]
        if not lines:
            raise ValueError(f"{outcome.job.name} has nothing to report")
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.fixture
def npudiff_runner(request: pytest.FixtureRequest, record_property: Any) -> Runner:  # noqa: ANN401 - untyped in pytest
    """Return what runs jobs."""
    return Runner(request.config, record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases were run where, and how close they came to their bounds."""
    figures = list(_figures(terminalreporter))
    if figures:
        cases = sum(figure["cases"] for figure in figures)
        worst = max(figure["worst"] for figure in figures)
        skipped = sum(figure["not_applicable"] for figure in figures)
        targets = ", ".join(sorted({figure["target"] for figure in figures}))
        line = f"npudiff: {cases} cases on {targets}; {skipped} draws not applicable; worst error/bound {worst:.2f}"
        terminalreporter.write_line(line)


def _figures(terminalreporter: pytest.TerminalReporter) -> Iterator[dict[str, Any]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield from (value for name, value in report.user_properties if name == "npudiff")
