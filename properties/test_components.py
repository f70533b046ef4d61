"""Every property of every implementation, as tests; the plugin makes one of each per job of the run."""

from __future__ import annotations

import pytest

from npudiff.model.job import Job, Verdict
from npudiff.plugin import Runner


def test_property_holds(npudiff_job: Job, npudiff_runner: Runner) -> None:
    outcome = npudiff_runner.run(npudiff_job)
    if outcome.findings:
        npudiff_runner.fail(outcome)
    if outcome.verdict is Verdict.NOT_APPLICABLE:
        reasons = ", ".join(outcome.not_applicable) or "the implementation supports no such case"
        pytest.skip(f"not applicable: {reasons}")


def test_mutant_is_found(npudiff_mutant: Job, npudiff_runner: Runner) -> None:
    outcome = npudiff_runner.run(npudiff_mutant)
    if not outcome.found and not npudiff_runner.judges_mutants:
        pytest.skip(f"{npudiff_mutant.name} was not shown in {outcome.cases} cases: the run was shortened")
    assert outcome.found, f"{npudiff_mutant.name} is wrong, and {outcome.cases} cases did not show it"
