"""What a run leaves behind, in whatever way it ends."""

from __future__ import annotations

import json
import os
import re

import pytest

from npudiff.errors import ExitCode
from npudiff.files.unwritten import Unwritten
from npudiff.findings import log
from npudiff.gate import run as gate_run
from npudiff.run import discovery
from npudiff.run.events import JobEnded
from npudiff.run.workers import TaskRunner
from npudiff.show.run_page import read, record, record_file, write
from npudiff.show.run_page.read import read_record, read_records

QUICK = ("--target", "sim", "--cann", "8.5", "--examples", "10", "--seed", "1")


def records(root):
    return sorted((root / ".npudiff" / "runs").iterdir())


@pytest.fixture
def only(tmp_path):
    """The one record that a run left."""

    def read_it():
        (path,) = records(tmp_path)
        assert re.fullmatch(r"\d{8}T\d{6}Z-sim-8\.5\.json", path.name)
        return read_record(path)

    return read_it


@pytest.fixture
def interrupted_at_the_second(kernel, monkeypatch):
    """Write a file of two implementations, and have somebody press Ctrl-C as soon as the second one's turn comes."""
    run = TaskRunner.run

    def run_or_stop(self, index, progress=lambda _: None):
        if self._tasks[index].job.subject.implementation.name == "stopped":
            raise KeyboardInterrupt
        return run(self, index, progress)

    def write_it():
        monkeypatch.setattr(TaskRunner, "run", run_or_stop)
        stopped = '\n@npudiff.implementation("swa_mask", name="stopped")\ndef stopped(inputs, target):\n'
        return kernel(kernel("wrong").read_text() + stopped + "    return eager(inputs, target)\n")

    return write_it


def test_a_run_says_what_it_was(cli, only):
    cli("check", "swa_mask", "--impl", "eager", *QUICK, "--where", "window=4", "--hypothesis-profile", "ci")
    said = only()
    assert (said.command, said.ended, said.problem) == ("check", "complete", "")
    assert (said.target, said.device, said.cann) == ("sim", "cpu", "8.5")
    assert (said.profile, said.seed, said.examples, said.budget) == ("ci", "1", "10", "")
    assert said.scope == ("--where window=4",)
    assert not said.judged
    assert {one.name for one in said.environment} >= {"npudiff", "torch", "python"}
    assert 0 < said.seconds < 60


def test_every_job_is_in_it(cli, only):
    cli("check", "rms_norm", "--impl", "native_rms_norm", *QUICK)
    said = only()
    (job,) = (job for job in said.jobs if job.property_name == "equivalence")
    assert (job.component, job.implementation, job.verdict) == ("rms_norm", "native_rms_norm", "holds")
    assert (job.cases, job.held, job.exact, job.findings) == (10, 10, False, ())
    assert 0 < job.worst <= 1
    assert re.match(r"\d+ x \d+ · ", job.worst_case)
    assert job.features
    assert len(said.jobs) > 3


def test_a_finding_is_named_by_its_folder(cli, only, tmp_path):
    cli("check", "swa_mask", "--impl", "mask_without_tail", *QUICK)
    said = only()
    (job,) = (job for job in said.jobs if job.property_name == "equivalence")
    assert job.verdict == "wrong value"
    assert job.held == job.cases - 1
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*-equivalence-*")
    assert job.findings == (folder.name,)
    (finding,) = (finding for finding in said.findings if finding.property_name == "equivalence")
    assert (finding.folder, finding.verdict) == (folder.name, "wrong value")
    assert finding.line == finding.symptom == json.loads((folder / "finding.json").read_text())["detail"]["line"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_mutants_are_in_it(cli, only, workers):
    cli("self-test", "swa_mask", "--target", "sim", "--seed", "1", "--workers", workers)
    found = {one.implementation: one for one in only().mutants}
    assert found["mask_without_tail"].found
    assert found["mask_without_tail"].smallest
    assert found["mask_without_tail"].cases >= 1
    assert "https://" in found["mask_without_tail"].wrong


@pytest.mark.slow
def test_a_gate_leaves_one_in_which_its_parts_are_one(cli, only, tmp_path, check_page, monkeypatch):
    """The rotating part runs properties again, on other cases."""
    monkeypatch.setattr(gate_run, "_turns", lambda: iter((1, 2)))  # and not until its time is up
    cli("gate", "swa_mask", "--impl", "eager", "--impl", "mask_without_tail", "--target", "sim", "--cann", "8.5",
        "--examples", "5", "--budget", "300s")  # fmt: skip
    said = only()
    assert (said.command, said.ended, said.profile) == ("gate", "complete", "ci")
    names = [(job.implementation, job.property_name) for job in said.jobs]
    assert len(names) == len(set(names))
    jobs = dict(zip(names, said.jobs, strict=True))
    assert jobs["eager", "equivalence"].cases > 5
    assert jobs["eager", "equivalence"].held == jobs["eager", "equivalence"].cases
    assert jobs["mask_without_tail", "equivalence"].verdict == "wrong value"
    assert jobs["mask_without_tail", "equivalence"].findings
    assert cli("report").code == 0
    page = check_page((tmp_path / ".npudiff" / "report.html").read_text(encoding="utf-8"), tmp_path / ".npudiff")
    assert "in 1 of 2 implementations." in page.words


def test_an_interrupted_gate_leaves_one_too(cli, only, interrupted_at_the_second):
    path = interrupted_at_the_second()
    result = cli("gate", "swa_mask", "--impl", path, "--target", "sim", "--cann", "8.5", "--examples", "5",
                 "--budget", "20s")  # fmt: skip
    assert result.code == ExitCode.INTERRUPTED
    assert only().ended == "interrupted"
    assert "not run" in {job.verdict for job in only().jobs}


def test_a_finding_that_is_elsewhere_is_left_out(toy, tmp_path):
    from npudiff.model.job import Budget
    from npudiff.run.engine import run_job
    from npudiff.run.plan import Plan, Request
    from npudiff.show.finding import keep_findings

    job = toy.job(toy.wrong_above(100))
    outcome = run_job(job, Budget(seed=1))
    for name in ("findings", "known"):
        kept = keep_findings(outcome, tmp_path / name)
        plan = Plan(job.subject.target, (job,), (), Request())
        said = write.record_of(write.RunSummary(plan, (outcome, outcome), (), kept, 0.0, 1.0))
        assert len(said.findings) == (name == "findings")
        (one,) = said.jobs
        assert (one.cases, one.held) == (2 * outcome.cases, 2 * outcome.cases - 2)


def test_an_interrupted_run_leaves_what_there_was(cli, only, interrupted_at_the_second):
    path = interrupted_at_the_second()
    result = cli("check", "swa_mask", "--impl", path, *QUICK, "--where", "window=4")
    assert result.code == ExitCode.INTERRUPTED
    said = only()
    assert said.ended == "interrupted"
    assert "wrong value" in {job.verdict for job in said.jobs if job.implementation == "mine"}
    assert {job.verdict for job in said.jobs if job.implementation == "stopped"} == {"not run"}
    assert said.findings


def test_a_defect_leaves_what_there_was(cli, only, monkeypatch):
    from dataclasses import replace

    def reference(inputs):
        raise LookupError("my own defect")

    original = discovery.load_component
    changed = lambda name: replace(original(name), reference=reference)  # noqa: E731
    monkeypatch.setattr(discovery, "load_component", changed)
    assert cli("check", "swa_mask", "--impl", "eager", *QUICK).code == ExitCode.INTERNAL
    said = only()
    assert said.ended == "defect"
    assert "my own defect" in said.problem
    assert "not run" in {job.verdict for job in said.jobs}


def test_one_case_is_a_narrowed_run_without_jobs_that_are_missing(cli, only):
    case = '{"kv_lengths": [2, 4], "window": 3, "spare": 1}'
    cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--cann", "8.5", "--case", case)
    said = only()
    assert said.scope == (f"--case {case}",)
    assert [job.verdict for job in said.jobs] == ["holds"]
    assert not said.judged


@pytest.mark.slow
def test_runs_of_one_second_do_not_take_each_others_place(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(log.time, "time", lambda: 1_800_000_000.0)
    for _ in range(3):
        cli("check", "swa_mask", "--impl", "eager", *QUICK)
    stem = "20270115T080000Z-sim-8.5"
    assert [path.name for path in records(tmp_path)] == [f"{stem}-2.json", f"{stem}-3.json", f"{stem}.json"]


def test_the_oldest_are_forgotten_and_nothing_else(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "MOST_KEPT", 2)
    folder = tmp_path / ".npudiff" / "runs"
    folder.mkdir(parents=True)
    for name in ("20200101T000000Z-sim-8.5.json", "20200102T000000Z-sim-8.5.json", "notes.json", "20200101.txt"):
        (folder / name).write_text("{}")
    cli("check", "swa_mask", "--impl", "eager", *QUICK)
    names = [path.name for path in records(tmp_path)]
    assert "20200101T000000Z-sim-8.5.json" not in names
    assert {"20200102T000000Z-sim-8.5.json", "notes.json", "20200101.txt"} < set(names)
    assert len(names) == 4


def test_a_record_that_cannot_be_written_costs_no_finding(cli, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(write, "write_record", full)
    result = cli("check", "swa_mask", "--impl", "mask_without_tail", *QUICK)
    assert result.code == ExitCode.FINDINGS
    assert result.err == "npudiff: could not be written: the record of the run: no space left\n"
    assert "FINDING swa_mask.mask_without_tail" in result.out


def test_a_record_is_there_as_a_whole(record, job, tmp_path, monkeypatch):
    """What is written is not under its name until it is all there."""
    seen, replace = [], os.replace

    def replaced(*names, **folders):
        seen.append([path.read_bytes() for path in records(tmp_path) if path.suffix == ".json"])
        replace(*names, **folders)

    monkeypatch.setattr(os, "replace", replaced)
    path = record_file.write_record(record(), tmp_path / ".npudiff")
    first = path.read_bytes()
    assert record_file.write_record(record(jobs=(job(), job())), tmp_path / ".npudiff", path) == path
    assert seen == [[b""], [first]]  # the name is taken before
    assert len(read.read_record(path).jobs) == 2


def test_what_is_written_is_read(cli, tmp_path):
    cli("check", "swa_mask", "--impl", "mask_without_tail", *QUICK)
    kept, problems = read_records([tmp_path / ".npudiff"])
    assert not problems
    assert kept[0].root == tmp_path / ".npudiff"
    assert read.read_records(records(tmp_path))[0] == kept


def test_writing_the_record_of_many_findings_takes_a_small_part_of_a_run(tmp_path, monkeypatch):
    """It is written at the first finding; later ones wait in proportion to what writing takes, and none is lost."""
    now, written = [100.0], []

    def writes():
        written.append(now[0])
        now[0] += 0.5

    keeper = write.RecordKeeper(lambda: None, tmp_path, Unwritten())
    monkeypatch.setattr(write.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(keeper, "_write", writes)
    found = JobEnded(0, None, (object(),), "")
    for _ in range(500):
        keeper(found)
        now[0] += 0.1
    assert written[0] == 100.0
    assert len(written) * 0.5 <= (now[0] - 100.0) * 0.05
    count = len(written)
    now[0] += 30
    keeper(JobEnded(0, None, (), ""))
    assert len(written) == count + 1
