"""The pytest plugin: the same engine, the same findings, one test per property of each implementation.

Importing this module imports neither torch nor Hypothesis; a test run that does not use npudiff pays for a few options.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from npudiff.commands.arguments import positive
from npudiff.errors import UsageError
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import EXAMPLES, FINDINGS, JOURNALS, begin_output
from npudiff.model.implementation import TargetUnavailable
from npudiff.text import printable

if TYPE_CHECKING:
    from npudiff.model.job import Job, Outcome
    from npudiff.run.messages import Kept
    from npudiff.run.plan import Plan
    from npudiff.run.workers import TaskRunner

_PLAN = pytest.StashKey["Plan"]()
_RUNNER = pytest.StashKey["TaskRunner"]()
_SESSION = pytest.StashKey[pytest.Session]()
_outermost = True
"""Whether no run of pytest has begun in this process: one that a test makes has no guardian."""

RECORD = "npudiff record"
"""Name under which a test report carries the record of a job."""

_FIXTURES = {"npudiff_job": "jobs", "npudiff_mutant": "mutants"}
_PROFILES = ("dev", "ci", "nightly")

AT_FIRST = 10
"""Cases of equivalence of what is built in, on this host, where no option says how many: these tests are among others,
and ask whether anything is broken. ``npudiff check`` looks further."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add npudiff's options."""
    group = parser.getgroup("npudiff", "differential testing of NPU implementations")
    group.addoption("--target", metavar="NAME", help="sim, virtual or npu; by default npu")
    group.addoption("--impl", action="append", default=[], metavar="NAME|MODULE|FILE", help="implementations to test")
    group.addoption(
        "--npudiff-backend",
        action="append",
        default=[],
        metavar="NAME[=CHECKOUT]",
        help="shipping code to test, such as sglang",
    )
    group.addoption(
        "--npudiff-component",
        action="append",
        default=[],
        metavar="MODULE|FILE",
        help="components and properties of your own",
    )
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
    config.pluginmanager.register(_RecordCollector(config), "npudiff record")
    config.addinivalue_line("markers", "npu: runs implementations on a target; with -m npu, on a device only")
    if config.getoption("hypothesis_profile", None) in _PROFILES:
        from npudiff.draw.presets import register_profiles  # noqa: PLC0415 - imports Hypothesis, which was asked for

        register_profiles()
    if wants_device(config.getoption("markexpr", "")):
        _require_device(config)
    if any(
        config.getoption(option)
        for option in ("--impl", "--npudiff-backend", "--npudiff-component", "--target", "--cann")
    ):
        _plan(config)  # a wrong name is refused before anything is collected


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Leave a guardian where pytest is a program that runs implementations of others, which may end it at any time."""
    global _outermost
    outermost, _outermost = _outermost, False
    if not (outermost and _names_code_of_others(config) and _is_program()):
        return None
    from npudiff.run import guardian  # noqa: PLC0415 - a run that uses npudiff

    ended = guardian.end_of_child()
    if ended is None or ended.proper or ended.status > 0:  # a usage error is said by nobody, and is not green
        return None if ended is None else ended.status
    print(f"npudiff: {ended}", file=sys.stderr)
    return pytest.ExitCode.INTERNAL_ERROR


def _names_code_of_others(config: pytest.Config) -> bool:
    return bool(config.getoption("--impl") or config.getoption("--npudiff-backend"))


def _is_program() -> bool:
    """Whether this process is pytest's own: one that called ``pytest.main`` must not go on twice."""
    started = Path(sys.argv[0])
    own = started.stem in ("pytest", "py.test") or started.parts[-2:] == ("pytest", "__main__.py")
    return own and hasattr(os, "fork")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the session, whose exit code is known when all is over."""
    session.config.stash[_SESSION] = session


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
        from npudiff.model.backend import wish_of  # noqa: PLC0415
        from npudiff.run.environment import keep_freed_memory  # noqa: PLC0415
        from npudiff.run.plan import Request  # noqa: PLC0415 - imports torch and Hypothesis, now needed

        keep_freed_memory()
        profile = config.getoption("hypothesis_profile", None)
        request = Request(
            workers=1,  # pytest-xdist makes several
            at_first=AT_FIRST,
            mutants=1,  # of each component, as npudiff check; npudiff self-test runs all of them
            own=tuple(config.getoption("--npudiff-component")),
            implementations=(
                *config.getoption("--impl"),
                *(wish_of(text).selector for text in config.getoption("--npudiff-backend")),
            ),
            target=config.getoption("--target") or ("npu" if wants_device(config.getoption("markexpr", "")) else None),
            cann=config.getoption("--cann"),
            examples=config.getoption("--examples"),
            hypothesis_profile=profile if profile in _PROFILES else "dev",
            example_database=_output(config) / EXAMPLES,
            isolate=config.getoption("--isolate"),
            journal=_output(config) / JOURNALS,
            shared=_shared(config),
        )
        try:
            begin_output(_output(config))
            config.stash[_PLAN] = plan_with_shared(request)
        except (UsageError, TargetUnavailable) as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_PLAN]


def _shared(config: pytest.Config) -> Path | None:
    folder = config.getoption("--npudiff-shared")
    return None if folder is None else config.invocation_params.dir / str(folder)


def _task_runner(config: pytest.Config) -> TaskRunner:
    """What runs the jobs of the plan; where they are isolated, one process for the jobs of all tests while it lives."""
    if _RUNNER not in config.stash:
        from npudiff.run.workers import TaskRunner  # noqa: PLC0415 - imported when the first job runs
        from npudiff.show.finding import keeper  # noqa: PLC0415

        tasks = _plan(config).tasks(keeper(_output(config) / FINDINGS))
        config.stash[_RUNNER] = TaskRunner(tasks, _chosen(config, [task.job for task in tasks]))
    return config.stash[_RUNNER]


def _chosen(config: pytest.Config, jobs: list[Job]) -> set[int]:
    """Numbers of the jobs that tests of this session run."""
    names = {job.name: index for index, job in enumerate(jobs)}
    given = (getattr(item, "callspec", None) for item in config.stash[_SESSION].items)
    params = (one.params.get(fixture) for one in given if one is not None for fixture in _FIXTURES)
    return {names[job.name] for job in params if job is not None and job.name in names}


class _RecordCollector:
    """Leaves a record of the run for ``npudiff report``, from what test reports carry.

    Reports of pytest-xdist's workers reach the process above them, which writes one record for all.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._started = config, time.monotonic()
        self._records: list[Any] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what a test ran."""
        if report.when == "call":
            self._records += [value for name, value in report.user_properties if name == RECORD]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the record, if anything was run."""
        if not self._records or hasattr(self._config, "workerinput"):
            return
        from npudiff.model.case import from_plain  # noqa: PLC0415 - a run that used npudiff
        from npudiff.show.run_page.record import RunRecord  # noqa: PLC0415
        from npudiff.show.run_page.record_file import merged, write_record  # noqa: PLC0415

        whole = merged([from_plain(RunRecord, one) for one in self._records])
        ended: Any = "interrupted" if exitstatus == pytest.ExitCode.INTERRUPTED else "complete"
        seconds = round(time.monotonic() - self._started, 3)
        unwritten = Unwritten()
        with unwritten.trying("the record of the run"):
            write_record(dataclasses.replace(whole, ended=ended, seconds=seconds), _output(self._config))
        unwritten.tell()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End what was started, and say how the run ends."""
    if _RUNNER in config.stash:
        config.stash[_RUNNER].close()
    if _SESSION in config.stash and _names_code_of_others(config):
        from npudiff.run import guardian  # noqa: PLC0415 - a run that uses npudiff

        guardian.says(int(config.stash[_SESSION].exitstatus))


def _output(config: pytest.Config) -> Path:
    return config.invocation_params.dir / str(config.getoption("--npudiff-output"))


class Runner:
    """Runs jobs for tests: a finding is written to its folder, and fails the test."""

    def __init__(self, config: pytest.Config, record: Any) -> None:  # noqa: ANN401 - pytest's record_property
        self._config, self._record = config, record
        self._kept: list[Kept] = []

    @property
    def judges_mutants(self) -> bool:
        """Whether every mutant has to be found; not in a run that was shortened."""
        return _plan(self._config).judges_mutants

    def run(self, job: Any) -> Outcome:  # noqa: ANN401 - a Job; naming it would import the engine
        """Run a job, write its findings, and record in the test report what came of it."""
        from npudiff.show.run_page.write import plain_record_of  # noqa: PLC0415 - imported when the first job runs

        plan, began = _plan(self._config), time.time()
        outcome, self._kept = self._run(job, plan)
        figures = {
            "target": f"{job.subject.target.name}, CANN {job.subject.target.cann}",
            "cases": outcome.cases,
            "steps": outcome.steps,
            "not_applicable": outcome.not_applicable.total(),
            "worst": outcome.worst_ratio,
        }
        self._record("npudiff", figures)
        self._record(RECORD, plain_record_of(plan, outcome, self._kept, began, command="pytest"))
        return outcome

    def _run(self, job: Any, plan: Plan) -> tuple[Outcome, list[Kept]]:  # noqa: ANN401 - as above
        from npudiff.run.messages import Task  # noqa: PLC0415 - imported when the first job runs
        from npudiff.run.workers import TaskRunner  # noqa: PLC0415
        from npudiff.show.finding import keeper  # noqa: PLC0415

        jobs = (*plan.jobs, *plan.mutants)
        if job in jobs:
            return _task_runner(self._config).run(jobs.index(job))
        own = Task(job, plan.budget(job), keeper(_output(self._config) / FINDINGS))  # a job that the test made
        with contextlib.closing(TaskRunner([own])) as runner:
            return runner.run(0)

    def fail(self, outcome: Outcome) -> None:
        """Fail the test with the findings of an outcome."""
        from npudiff.findings.finding import finding_of_plain  # noqa: PLC0415 - needed for a finding only
        from npudiff.show.finding import finding_lines  # noqa: PLC0415

        lines = []
        for one in self._kept:
            finding = finding_of_plain(one.content)
            lines.append(f"{'.'.join(finding.subject)}: {finding.property_name}: {finding.verdict}")
            said = finding_lines(finding, one.folder, unwritten="" if one.written else one.problem)
            lines += [f"{label:10} {printable(text)}" for label, text in said]
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
