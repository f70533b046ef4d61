"""Jobs in batch workers: a crash or a wrong report is blamed on the case at fault, and the next job is judged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from npudiff.errors import DeviceLost
from npudiff.findings.finding import read_finding
from npudiff.model.case import dumps
from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_job
from npudiff.run.isolation.journal import left_behind
from npudiff.run.isolation.process import WorkerDefect
from npudiff.run.isolation.supervisor import Supervisor
from npudiff.run.messages import Task, outcome_from_message
from npudiff.run.workers import run_in_workers
from npudiff.show.finding import keeper

BUDGET = Budget(examples=40, seed=1)


def named(job, name):
    return replace(job, subject=replace(job.subject, implementation=replace(job.subject.implementation, name=name)))


@pytest.fixture
def supervised(toy, isolation, tmp_path, left):
    """Run jobs of functions one after the other; returns the outcomes, and which processes ran each job."""

    def run(*functions, budget=BUDGET, **changes):
        pids = [tmp_path / f"pid{index}" for index in range(len(functions))]

        def told(function, path):
            def wrapped(inputs, target):
                with path.open("a") as file:
                    file.write(f"{os.getpid()}\n")
                return function(inputs, target)

            return wrapped

        jobs = [
            named(toy.job(told(*pair), **changes), f"mine{index}")
            for index, pair in enumerate(zip(functions, pids, strict=True))
        ]
        tasks = [Task(job, replace(budget, isolation=isolation), keeper(tmp_path / "findings")) for job in jobs]
        with contextlib.closing(Supervisor(tasks)) as supervisor:
            outcomes = [outcome_from_message(job, supervisor.run(index))[0] for index, job in enumerate(jobs)]
        assert not list(isolation.journal.iterdir())
        return outcomes, [list(dict.fromkeys(path.read_text().split())) for path in pids]

    return run


@pytest.fixture
def right(toy):
    return lambda inputs, target: toy.double(inputs)


def findings(folder):
    return [read_finding(path) for path in sorted((folder / "findings").iterdir())]


def plain(outcome):
    """What has to be the same wherever a job runs."""
    cases = [None if failure is None else failure.case for failure in (outcome.first_failure, outcome.failure)]
    return (
        outcome.verdict, outcome.cases, *cases, outcome.worst_ratio, outcome.worst_case, outcome.features,
        outcome.not_applicable, outcome.flaky,
    )  # fmt: skip


def test_jobs_that_hold_run_in_one_process_with_the_same_cases(supervised, right, toy, tmp_path):
    outcomes, pids = supervised(right, right, right)
    ((pid,), *others) = pids
    assert others == [[pid]] * 2
    assert int(pid) != os.getpid()
    for outcome in outcomes:
        assert plain(outcome) == plain(run_job(toy.job(), BUDGET))
        assert (outcome.cases, outcome.alone, outcome.poisonings) == (40, (0, 0), [])
    assert not (tmp_path / "findings").exists()


def test_a_wrong_value_is_confirmed_alone_and_is_what_it_is_without_isolation(supervised, right, toy, tmp_path):
    (outcome, after), pids = supervised(toy.wrong_above(600), right)
    assert plain(outcome) == plain(run_job(toy.job(toy.wrong_above(600)), BUDGET))
    assert (outcome.verdict, outcome.failure.case) == (Verdict.WRONG, toy.Case((601,)))
    assert outcome.alone == (1, 1)
    (finding,) = findings(tmp_path)
    assert (finding.case["numbers"], finding.detail["alone"]) == ([601], [1, 1])
    assert after.verdict is Verdict.HOLDS
    assert pids[1] == pids[0][:1]
    assert len(pids[0]) == 2


def test_an_exception_is_confirmed_alone_as_well(supervised, tmp_path):
    def raises(inputs, target):
        raise ValueError("of its own")

    (outcome,), _ = supervised(raises)
    assert (outcome.verdict, outcome.cases, outcome.alone) == (Verdict.RAISED, 1, (1, 1))
    (finding,) = findings(tmp_path)
    assert (finding.verdict, finding.detail["error"]) == ("exception", "ValueError: of its own")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("fault", "verdict", "error"),
    [
        ({"segfaults": range(600, 1001)}, "process died", "SIGSEGV"),
        ({"exits": range(600, 1001)}, "process died", "exit code 3"),
        ({"codes": dict.fromkeys(range(600, 1001), 507015)}, "device fault", "507015"),
    ],
)
@pytest.mark.parametrize("seed", [1, None])
def test_what_ends_a_batch_worker_is_shrunk_and_counted_and_the_next_job_is_judged(
    supervised, planted, right, toy, tmp_path, fault, verdict, error, seed
):
    budget = replace(BUDGET, seed=seed, deterministic=False)
    (outcome, after), pids = supervised(planted(**fault), right, budget=budget)
    assert outcome.failure.case == toy.Case((600,))
    assert outcome.alone == (3, 3)
    assert not outcome.poisonings
    (finding,) = findings(tmp_path)
    assert finding.verdict == verdict
    assert error in finding.detail["error"]
    assert after.verdict is Verdict.HOLDS
    assert len(pids[1]) == 1
    assert pids[1][0] not in pids[0]


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_by_the_clock(supervised, planted, right, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "npudiff.findings.reproduce.HANG_SECONDS", 0.1
    )  # the script of the finding has a clock of its own
    started = time.monotonic()
    (outcome, after), _ = supervised(
        planted(hangs=range(900, 1001)), right, budget=replace(BUDGET, shrink=False, examples=100)
    )
    assert time.monotonic() - started < 25  # the time between cases, which is 30 s, is not for them
    assert outcome.verdict is Verdict.RAISED
    (finding,) = findings(tmp_path)
    assert finding.verdict == "time-out"
    assert after.verdict is Verdict.HOLDS


@pytest.mark.slow
def test_of_one_whose_first_call_hangs_no_other_property_waits_again(toy, isolation, planted, tmp_path, left):
    hangs, rarely = named(toy.job(planted(hangs=range(1001))), "hangs"), toy.job(planted(hangs=range(900, 1001)))
    budget = replace(BUDGET, shrink=False, isolation=isolation)
    tasks = [Task(replace(job, prop=prop), budget, None) for job in (hangs, rarely) for prop in (job.prop, toy.REPEATS)]
    with contextlib.closing(Supervisor(tasks)) as supervisor:
        outcomes = [outcome_from_message(task.job, supervisor.run(place))[0] for place, task in enumerate(tasks)]
    assert [outcome.verdict for outcome in outcomes] == [
        Verdict.RAISED, Verdict.NOT_APPLICABLE, Verdict.RAISED, Verdict.RAISED
    ]  # fmt: skip
    assert list(outcomes[1].not_applicable) == [
        "the first call of equivalence has not ended, and each would take its time again"
    ]


@pytest.mark.slow
def test_a_hang_of_a_case_that_was_given_first_says_nothing_of_the_first_call(toy, isolation, planted, left):
    job = toy.job(planted(hangs=range(900, 1001)))
    budget = replace(BUDGET, examples=2, shrink=False, isolation=isolation)
    given = replace(budget, explicit_cases=(dumps(toy.Case((950,))),))
    tasks = [Task(job, given, None), Task(replace(job, prop=toy.REPEATS), replace(budget, examples=1), None)]
    with contextlib.closing(Supervisor(tasks)) as supervisor:
        outcomes = [outcome_from_message(task.job, supervisor.run(place))[0] for place, task in enumerate(tasks)]
    assert [outcome.verdict for outcome in outcomes] == [Verdict.RAISED, Verdict.HOLDS]


def test_time_between_cases_has_a_clock_too(toy, isolation, left, monkeypatch):
    def strategy(constraints):
        time.sleep(60)

    monkeypatch.setattr(Supervisor, "_again", lambda self, job, budget, doubt: pytest.fail(str(doubt)))
    task = Task(toy.job(strategy=strategy), replace(BUDGET, isolation=replace(isolation, warm_up=0.3)), None)
    doubted = pytest.raises(pytest.fail.Exception, match="time-out: no answer in time")
    with contextlib.closing(Supervisor([task])) as supervisor, doubted:
        supervisor.run(0)


def test_a_rejected_call_is_told_by_the_batch_worker_if_the_device_still_answers(supervised, planted, right, tmp_path):
    (outcome, _), pids = supervised(planted(rejects=range(600, 1001)), right)
    assert outcome.failure.case.numbers == (600,)
    (finding,) = findings(tmp_path)
    assert finding.verdict == "rejected call"
    assert pids[1] == pids[0][:1]


def test_a_rejected_call_after_which_the_device_is_silent_ends_the_batch_worker(
    supervised, right, state, monkeypatch, tmp_path
):
    monkeypatch.setattr("npudiff.run.isolation.batch_worker.probe_device", lambda target: not state["poisoned"])
    monkeypatch.setattr("npudiff.run.isolation.worker.probe_device", lambda target: not state["poisoned"])

    calls = tmp_path / "calls"

    def silences(inputs, target):
        with calls.open("a") as file:
            file.write(f"{os.getpid()}\n")
        state["poisoned"] = True
        raise RuntimeError("error code is 561002")

    (outcome, after), pids = supervised(silences, right)
    assert (outcome.cases, outcome.alone) == (1, (3, 3))
    assert findings(tmp_path)[0].verdict == "device fault"
    assert calls.read_text().split().count(pids[0][0]) == 1  # it left at once
    assert (after.verdict, pids[1][0] in pids[0]) == (Verdict.HOLDS, False)


def poisoning_of(outcome):
    (poisoning,) = outcome.poisonings
    return poisoning


@pytest.mark.slow
def test_a_case_that_poisons_is_found_among_those_of_its_job(supervised, planted, toy, tmp_path):
    drawn = []
    run_job(toy.job(lambda inputs, target: drawn.append(int(inputs.x[0])) or toy.double(inputs)), BUDGET)
    (outcome,), _ = supervised(planted(poisons={drawn[20]}))
    assert (outcome.failure, outcome.cases) == (None, 40)
    assert {json.loads(one.case)["numbers"][0] for one in outcome.poisonings} == {drawn[20]}
    assert "507035" in outcome.poisonings[0].error
    assert findings(tmp_path)[0].verdict == "poisons the device"


@pytest.fixture
def spoiling(toy, state):
    """An implementation whose fortieth call in its process makes what comes later wrong."""

    def function(inputs, target):
        state["calls"] = state.get("calls", 0) + 1
        state["spoiled"] = state.get("spoiled", False) or state["calls"] == 40
        return toy.double(inputs)

    return function


@pytest.fixture
def victim(toy, state):
    """Make an implementation that is wrong, or raises, after what another one has spoiled."""

    def made(*, raises):
        def function(inputs, target):
            if state.get("spoiled") and raises:
                raise RuntimeError("error code is 507899")
            return toy.double(inputs) + bool(state.get("spoiled"))

        return function

    return made


@pytest.mark.few(1)
@pytest.mark.parametrize(("raises", "error"), [(True, "507899"), (False, "wrong value")])
def test_what_an_earlier_job_did_is_told_and_no_failure_is_made_of_it(
    supervised, right, spoiling, victim, tmp_path, raises, error
):
    (first, outcome, after), pids = supervised(spoiling, victim(raises=raises), right)
    assert (first.verdict, first.poisonings) == (Verdict.HOLDS, [])
    assert (outcome.verdict, outcome.failure, outcome.cases) == (Verdict.HOLDS, None, 40)
    assert poisoning_of(outcome).case == ""
    assert error in poisoning_of(outcome).error
    assert "; after" not in poisoning_of(outcome).error  # no single case: it takes forty
    (finding,) = findings(tmp_path)
    assert finding.verdict == "fails after other cases only"
    assert (after.verdict, after.poisonings) == (Verdict.HOLDS, [])
    assert pids[1][0] == pids[0][0]
    assert pids[2][0] not in pids[0] + pids[1]


@pytest.mark.slow
@pytest.mark.parametrize(("raises", "error"), [(True, "507899"), (False, "wrong value")])
def test_the_case_of_an_earlier_job_that_did_it_is_named(supervised, toy, right, victim, state, raises, error):
    drawn = []
    run_job(toy.job(lambda inputs, target: drawn.append(inputs.x.tolist()) or toy.double(inputs)), BUDGET)

    def spoils(inputs, target):
        state["spoiled"] = state.get("spoiled", False) or inputs.x.tolist() == drawn[35]
        return toy.double(inputs)

    (_, first, outcome), _ = supervised(right, spoils, victim(raises=raises))
    assert (first.verdict, outcome.verdict, outcome.failure) == (Verdict.HOLDS, Verdict.HOLDS, None)
    culprit = json.dumps([int(number) for number in drawn[35]], separators=(",", ":"))
    assert error in poisoning_of(outcome).error
    assert f'; after toy.mine1.equivalence: {{"numbers":{culprit}' in poisoning_of(outcome).error


@pytest.mark.slow
def test_a_wrong_value_that_is_none_alone_is_not_told_as_one(supervised, toy, state, tmp_path):
    def function(inputs, target):
        spoiled = state.get("spoiled", False)
        state["spoiled"] = spoiled or int(inputs.x[0]) > 900
        return toy.double(inputs) + spoiled

    (outcome,), _ = supervised(function)
    assert outcome.failure is None
    assert all(json.loads(one.case)["numbers"][0] > 900 for one in outcome.poisonings)
    assert outcome.poisonings
    assert findings(tmp_path)[0].verdict == "poisons the device"


def test_a_fault_that_the_second_run_does_not_see_is_looked_for_alone(supervised, toy, tmp_path):
    marks = tmp_path / "marks"

    def function(inputs, target):
        with marks.open("a") as file:
            file.write("x")
        if len(marks.read_text()) in (
            20,
            61,
        ):  # the batch worker's twentieth case, and the first after a whole run of 40
            raise RuntimeError("error code is 507015")
        return toy.double(inputs)

    (outcome,), _ = supervised(function)
    assert (outcome.verdict, outcome.alone) == (Verdict.RAISED, (1, 3))


def test_what_failed_in_a_spoiled_batch_worker_is_not_remembered(toy, spoiling, victim, isolation, tmp_path):
    budget = replace(BUDGET, isolation=isolation, example_database=tmp_path / "memory", seed=None, deterministic=False)
    functions = (spoiling, victim(raises=False), toy.wrong_above(600))
    jobs = [named(toy.job(function), f"mine{index}") for index, function in enumerate(functions)]
    with contextlib.closing(Supervisor([Task(job, budget, None) for job in jobs])) as supervisor:
        outcomes = [outcome_from_message(job, supervisor.run(index))[0] for index, job in enumerate(jobs)]
        again = outcome_from_message(jobs[2], supervisor.run(2))[0]
    assert [outcome.remembered for outcome in (*outcomes, again)] == [False, False, False, True]
    assert (len(outcomes[1].poisonings), again.cases) == (1, 1)
    assert [path.name for path in (tmp_path / "memory").iterdir()] == [jobs[2].name]


def test_time_between_cases_is_not_that_of_a_case(supervised, toy):
    def features(case):
        time.sleep(0.5)
        return ()

    (outcome,), pids = supervised(
        lambda inputs, target: toy.double(inputs), features=features, budget=replace(BUDGET, examples=2)
    )
    assert (outcome.verdict, outcome.poisonings, len(pids[0])) == (Verdict.HOLDS, [], 1)


def test_a_defect_that_only_a_spoiled_batch_worker_has_is_none(supervised, toy, spoiling, state):
    def reference(inputs):
        if state.get("spoiled"):
            raise ZeroDivisionError("in the reference")
        return toy.component.reference(inputs)

    (first, outcome), _ = supervised(spoiling, lambda inputs, target: toy.double(inputs), reference=reference)
    assert (first.verdict, outcome.verdict, outcome.cases) == (Verdict.HOLDS, Verdict.HOLDS, 40)
    assert "ZeroDivisionError: in the reference" in poisoning_of(outcome).error


def test_what_was_told_of_a_job_is_not_in_the_journal_any_more(toy, planted, isolation, left):
    tasks = [Task(toy.job(planted(exits={1000, *range(600)})), replace(BUDGET, isolation=isolation), None)]
    with contextlib.closing(Supervisor(tasks)) as supervisor:
        assert outcome_from_message(tasks[0][0], supervisor.run(0))[0].verdict is Verdict.RAISED
        assert [path.read_text() for path in isolation.journal.iterdir()] == [""]


def test_a_device_that_stays_lost_ends_the_run(toy, isolation, left, monkeypatch):
    monkeypatch.setattr("npudiff.run.isolation.batch_worker.probe_device", lambda target: False)
    task = Task(toy.job(), replace(BUDGET, isolation=isolation), None)
    with contextlib.closing(Supervisor([task])) as supervisor, pytest.raises(DeviceLost, match="two fresh processes"):
        supervisor.run(0)
    with pytest.raises(DeviceLost, match="two fresh processes"):
        list(run_in_workers([task], 1))


def test_a_device_that_is_lost_by_a_job_ends_the_run(toy, planted, isolation, left, monkeypatch):
    monkeypatch.setattr("npudiff.run.isolation.worker.probe_device", lambda target: False)
    job = toy.job(planted(segfaults=range(1001)))
    task = Task(job, replace(BUDGET, isolation=isolation), None)
    with contextlib.closing(Supervisor([task])) as supervisor, pytest.raises(DeviceLost, match="two fresh processes"):
        supervisor.run(0)
    (behind,) = left_behind(isolation.journal)
    assert behind.job == "toy.mine.equivalence"


def test_a_defect_of_a_component_is_told_with_its_traceback(toy, isolation, left):
    def broken(inputs):
        raise ZeroDivisionError("in the reference")

    task = Task(toy.job(reference=broken), replace(BUDGET, isolation=isolation), None)
    defect = pytest.raises(WorkerDefect, match=r"(?s)Traceback.*ZeroDivisionError: in the reference")
    with contextlib.closing(Supervisor([task])) as supervisor, defect:
        supervisor.run(0)


@pytest.mark.parametrize("while_starting", [True, False])
def test_what_a_job_says_that_was_interrupted_is_not_taken_for_the_next_ones(
    toy, isolation, left, monkeypatch, tmp_path, while_starting
):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    def wait_after_interrupting():
        with contextlib.suppress(FileExistsError):
            (tmp_path / "interrupted").touch(exist_ok=False)
            os.kill(os.getppid(), signal.SIGALRM)
        time.sleep(0.05)

    def slow(inputs, target):
        wait_after_interrupting()
        return toy.double(inputs) + 1

    if while_starting:
        monkeypatch.setattr(
            "npudiff.run.isolation.batch_worker.probe_device", lambda target: wait_after_interrupting() is None
        )
    before = signal.signal(signal.SIGALRM, interrupt)
    budget = replace(BUDGET, isolation=isolation)
    tasks = [Task(toy.job(slow), budget, None), Task(toy.job(), budget, None)]
    try:
        with contextlib.closing(Supervisor(tasks)) as supervisor:
            with pytest.raises(Interrupted):
                supervisor.run(0)
            outcome = outcome_from_message(tasks[1][0], supervisor.run(1))[0]
        assert (outcome.verdict, outcome.poisonings) == (Verdict.HOLDS, [])
    finally:
        signal.signal(signal.SIGALRM, before)


def with_faults_in(jobs, isolation, toy, workers):
    """Run jobs beside each other and after each other, each with a fault or none, and see that each tells its own."""
    budget = replace(BUDGET, isolation=isolation)
    tasks = [
        Task(named(toy.job(function), f"mine{index}"), replace(budget, shrink=fault != "hangs"), None)
        for index, (fault, function) in enumerate(jobs)
    ]
    results = sorted(run_in_workers(tasks, workers), key=lambda result: result[0])
    assert len(results) == len(jobs)
    for (_, outcome, _), (fault, _) in zip(results, jobs, strict=True):
        assert bool(outcome.poisonings) == (fault == "poisons")
        assert (outcome.failure is not None) == (fault not in ("", "poisons"))
        assert all(json.loads(one.case)["numbers"][0] >= 600 for one in outcome.poisonings)
        if outcome.failure is not None and fault == "hangs":
            assert outcome.failure.case.numbers[0] >= 600
        elif outcome.failure is not None:
            assert outcome.failure.case == toy.Case((600,))
    assert not list(isolation.journal.iterdir())


@pytest.fixture
def faulty(planted):
    """Return so many implementations with each fault, and as many without one between them."""

    def made(**counts):
        codes = dict.fromkeys(range(600, 1001), 507015)
        faults = [fault for fault, count in counts.items() for _ in range(count)]
        order = torch.randperm(len(faults), generator=torch.Generator().manual_seed(5)).tolist()
        jobs = [(faults[place], planted(**{faults[place]: codes})) for place in order]
        return [one for job in jobs for one in (job, ("", planted()))]

    return made


@pytest.mark.slow
def test_faults_of_many_jobs_are_told_each_once(faulty, isolation, toy, left):
    with_faults_in(faulty(segfaults=1, exits=1, codes=1, wrong=1, poisons=1), isolation, toy, 2)


@pytest.mark.slow
def test_eighty_faults_of_a_hundred_and_sixty_jobs_are_told_each_once(faulty, isolation, toy, left):
    counts = {"segfaults": 15, "exits": 10, "aborts": 10, "codes": 15, "hangs": 20, "poisons": 10}
    with_faults_in(faulty(**counts), isolation, toy, 1)


def test_results_that_are_not_taken_leave_no_process_and_no_journal_behind(toy, isolation, tmp_path, left):
    def slow(inputs, target):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(0.1)
        return toy.double(inputs)

    budget = replace(BUDGET, isolation=isolation)
    tasks = [Task(toy.job(), budget, None), Task(toy.job(slow), replace(budget, examples=1000), None)]
    results = run_in_workers(tasks, 2)
    next(results)
    until = time.monotonic() + 5
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.01)
    results.close()
    assert not list(isolation.journal.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIG_DFL)
