"""How many modules a reader has to open to follow one case, and one finding: the numbers must not grow unseen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import npudiff
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan
from npudiff.show.finding import keep_findings

ENGINE = Path(npudiff.__file__).resolve().parent
ROOMS = [ENGINE, *((ENGINE / room).resolve() for room in ("reference", "device", "properties"))]


def modules_called(function):
    """The modules of npudiff whose functions are called: those of the engine, and those of the other rooms."""
    files = set()

    def called(frame, event, argument):
        if event == "call":
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        function()
    finally:
        sys.setprofile(before)
    paths = {Path(name).resolve() for name in files if name.endswith(".py")}
    engine = {path for path in paths if path.is_relative_to(ENGINE)}
    return engine, {path for path in paths if any(path.is_relative_to(room) for room in ROOMS[1:])}


@pytest.fixture(scope="module")
def plan():
    return make_plan(Request(components=("rms_norm",), target="sim"))


def test_a_case_that_holds(plan, record_property):
    (job,) = (job for job in plan.jobs if job.name == "rms_norm.npu_rms_norm.equivalence")
    budget = replace(plan.budget(job), examples=1, seed=1)
    run_job(job, budget)  # imports
    engine, rooms = modules_called(lambda: run_job(job, budget))
    record_property("modules", (len(engine), len(rooms)))
    assert {path.name for path in engine} >= {"engine.py", "cases.py", "compare.py"}
    assert {path.name for path in rooms} >= {"rms_norm.py", "bounds.py"}
    # With model/fingerprint.py, which sees what is written into inputs: component.py would be too long with it;
    # and with draw/chosen.py and run/drawing.py, which draw without Hypothesis until a case fails.
    assert len(engine) <= 17, sorted(map(str, engine))
    assert len(rooms) <= 11, sorted(map(str, rooms))


def test_a_finding_from_draw_to_folder(plan, tmp_path, record_property):
    (job,) = (job for job in plan.mutants if job.subject.implementation.name == "residual_dropped")

    def find():
        outcome = run_job(job, replace(plan.budget(job), seed=1))
        ((_, folder),) = keep_findings(outcome, tmp_path)
        assert (folder / "reproduce.py").exists()

    find()
    engine, rooms = modules_called(find)
    record_property("modules", (len(engine), len(rooms)))
    # With judge/mistakes.py, which names the likely mistake, and draw/simpler.py, where Hypothesis ends to shrink.
    assert len(engine) <= 32, sorted(map(str, engine))
    assert len(rooms) <= 11, sorted(map(str, rooms))
