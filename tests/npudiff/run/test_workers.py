from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from npudiff import implementation
from npudiff.errors import DeviceLost
from npudiff.findings.finding import read_finding
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.case import to_plain
from npudiff.model.component import Subject
from npudiff.model.implementation import Target
from npudiff.model.job import Budget, Isolation, Job, Verdict
from npudiff.run.discovery import load_component, load_target
from npudiff.run.engine import run_job
from npudiff.run.events import JobStarted
from npudiff.run.messages import Task
from npudiff.run.plan import Request, default_workers, make_plan, usable_processors
from npudiff.run.workers import TaskRunner, WorkerFailed, _message, _received, run_in_workers
from npudiff.show.finding import keeper

BUDGET = Budget(examples=20, seed=1)


def job(function, name="mine", prop=EQUIVALENCE, **changes):
    component = replace(load_component("swa_mask"), **changes)
    item = implementation("swa_mask", name=name)(function)
    return Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)


def right(inputs, target):
    from npudiff.device.ascend import swa_mask_eager

    return swa_mask_eager(inputs, target)


def wrong(inputs, target):
    return ~right(inputs, target)


def raising(inputs, target):
    raise RuntimeError("a kernel that fails")


def without_times(outcome):
    times = {"seconds": 0, "seconds_to_failure": 0, "shrink_seconds": 0, "first_failure": None}
    times |= {"failure": None, "worst_failure": None}
    return replace(outcome, **times)


def in_workers(tasks, workers=2):
    return sorted(run_in_workers(tasks, workers), key=lambda result: result[0])


def test_outcomes_are_those_of_running_the_jobs_here(tmp_path):
    jobs = [job(right), job(wrong), job(raising, "raising"), *make_plan(Request(("swa_mask",), target="sim")).jobs[:3]]
    results = in_workers([Task(one, BUDGET, keeper(tmp_path)) for one in jobs])
    assert [index for index, _, _ in results] == list(range(len(jobs)))
    for one, (_, outcome, kept) in zip(jobs, results, strict=True):
        here = run_job(one, BUDGET)
        assert without_times(outcome) == without_times(here)
        assert len(kept) == (here.failure is not None)
        if here.failure is not None:
            assert outcome.failure.case == here.failure.case
            assert outcome.first_failure.case == here.first_failure.case
            assert read_finding(kept[0].folder).case == to_plain(here.failure.case)
    assert [outcome.verdict for _, outcome, _ in results][:3] == [Verdict.HOLDS, Verdict.WRONG, Verdict.RAISED]


@pytest.mark.slow
def test_what_fails_in_this_process_is_told_as_a_fresh_one_sees_it(tmp_path):
    called = []

    def after_the_first(inputs, target):
        called.append(inputs)
        return wrong(inputs, target) if len(called) > 1 else right(inputs, target)

    budget = replace(BUDGET, second_look=Isolation())
    tasks = [Task(job(function), budget, keeper(tmp_path)) for function in (wrong, after_the_first, right)]
    with contextlib.closing(TaskRunner(tasks)) as runner:
        results = [runner.run(index) for index in range(3)]
    (always, kept), (_, pairs), (good, none) = results
    assert (always.alone, always.failure.case) == ((1, 1), run_job(job(wrong), BUDGET).failure.case)
    assert [len(kept), len(pairs), len(none)] == [1, 1, 0]
    assert read_finding(pairs[0].folder).property_name == "equivalence"
    assert pairs[0].content["verdict"] == "poisons the device"
    assert good.alone == (0, 0)


def test_what_fails_only_where_other_jobs_ran_is_told(tmp_path):
    ran = []

    def first(inputs, target):
        ran.append(inputs)
        return right(inputs, target)

    def second(inputs, target):
        return wrong(inputs, target) if ran else right(inputs, target)

    budget = replace(BUDGET, second_look=Isolation())
    with contextlib.closing(
        TaskRunner([Task(job(one), budget, keeper(tmp_path)) for one in (first, second)])
    ) as runner:
        runner.run(0)
        outcome, (kept,) = runner.run(1)
    assert outcome.spoiled
    assert "wrong value; only after other jobs of the process" in json.dumps(kept.content)


def test_a_mutant_that_is_found_is_not_run_again():
    with contextlib.closing(TaskRunner([Task(job(wrong), replace(BUDGET, second_look=Isolation()), None)])) as runner:
        outcome, _ = runner.run(0)
    assert outcome.failure is not None
    assert outcome.alone == (0, 0)


def test_a_mutant_leaves_no_folder(tmp_path):
    ((_, outcome, kept),) = in_workers([Task(job(wrong), BUDGET, None)])
    assert outcome.failure is not None
    assert not kept
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_jobs_run_beside_each_other_in_processes_of_their_own(tmp_path):
    def slow(inputs, target):
        with (tmp_path / str(os.getpid())).open("a") as times:
            print(time.monotonic(), file=times)
        time.sleep(0.2)
        return right(inputs, target)

    tasks = [Task(job(slow), replace(BUDGET, examples=6), None)] * 4
    in_workers(tasks, 4)
    spans = {int(path.name): [float(one) for one in path.read_text().split()] for path in tmp_path.iterdir()}
    assert len(spans) == 4
    assert os.getpid() not in spans
    assert sum(min(own) < max(min(other) for other in spans.values()) < max(own) for own in spans.values()) > 1


def test_more_workers_than_jobs_are_not_started(tmp_path):
    assert len(in_workers([Task(job(right), BUDGET, None)], 8)) == 1


def test_a_defect_of_a_component_ends_the_run_with_its_traceback():
    def broken(inputs):
        raise ZeroDivisionError("in the reference")

    with pytest.raises(WorkerFailed, match=r"swa_mask\.mine\.equivalence:(?s:.*)ZeroDivisionError: in the reference"):
        in_workers([Task(job(right, reference=broken), BUDGET, None)])


def test_a_process_that_dies_is_named_with_its_job_and_the_others_are_ended():
    def dying(inputs, target):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerFailed, match=r"the process that ran swa_mask\.mine\.equivalence died: signal SIGKILL"):
        in_workers([Task(job(dying), BUDGET, None), Task(job(right), BUDGET, None)])


def test_results_that_are_not_taken_leave_no_process_behind():
    def slow(inputs, target):
        time.sleep(0.2)
        return right(inputs, target)

    results = run_in_workers([Task(job(right), BUDGET, None), Task(job(slow), Budget(examples=1000, seed=1), None)], 2)
    index, _, _ = next(results)
    assert index == 0
    started = time.perf_counter()
    results.close()
    assert time.perf_counter() - started < 5


def test_several_processes_are_for_the_simulator_only():
    def workers(device, **more):
        return default_workers(Target("any", device, "0", contextlib.nullcontext, **more))

    assert workers("npu:0") == 1
    assert workers("cpu") == workers("npu:0", on_host=True) == min(4, usable_processors())
    assert usable_processors() >= 1


def test_tensors_of_workers_are_their_own():
    shared = torch.zeros(1)

    def counting(inputs, target):
        shared.add_(1)
        return right(inputs, target)

    in_workers([Task(job(counting), BUDGET, None)])
    assert not shared.any()


def test_no_job_begins_after_a_defect_and_those_that_run_are_finished():
    def broken(inputs):
        raise ZeroDivisionError("in the reference")

    def slow(inputs, target):
        time.sleep(0.2)
        return right(inputs, target)

    jobs = [job(right, "first", reference=broken), *(job(slow, name) for name in ("second", "third", "fourth"))]
    began, finished = [], []
    tasks = [Task(one, replace(BUDGET, examples=3), None) for one in jobs]

    def listen(event):
        if isinstance(event, JobStarted):
            began.append(event.job.subject.implementation.name)

    def take_results():
        for index, _, _ in run_in_workers(tasks, 2, listen):
            finished.append(index)

    with pytest.raises(WorkerFailed, match="ZeroDivisionError"):
        take_results()
    assert began == ["first", "second"]
    assert finished == [1]


def received(message):
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(json.dumps(message).encode())
    return _received(ours, None, job(right))


def test_a_message_of_a_worker_says_what_ended_its_task():
    assert received({"verdict": "HOLDS"}) == {"verdict": "HOLDS"}
    with pytest.raises(DeviceLost, match="no answer"):
        received({"lost": "no answer"})
    with pytest.raises(KeyboardInterrupt):
        received({"interrupted": True})
    with pytest.raises(WorkerFailed, match=r"swa_mask\.mine\.equivalence:\nTraceback"):
        received({"defect": "Traceback"})


@pytest.mark.parametrize(("error", "key"), [
    (KeyboardInterrupt(), "interrupted"), (DeviceLost("gone"), "lost"), (ZeroDivisionError(), "defect"),
])  # fmt: skip
def test_what_ends_a_task_is_a_message(error, key):
    class Runner:
        def run(self, index, judged):
            raise error

    message = _message(Runner(), 0, None, {})
    assert list(message) == [key]
    assert message[key]
