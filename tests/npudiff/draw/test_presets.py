from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.internal.conjecture import providers

from npudiff.draw.presets import (
    RUN_PRESETS,
    hypothesis_settings,
    register_profiles,
    run_preset,
    without_constants_of_code,
)
from npudiff.errors import UsageError
from npudiff.model.component import Comparison, Property
from npudiff.model.job import Budget
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan

CI_VARIABLES = {
    "CI",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "BUILDKITE",
    "CIRCLECI",
    "CIRRUS_CI",
    "TF_BUILD",
    "TEAMCITY_VERSION",
}
"""The usual ones of those by which Hypothesis knows that it runs in CI."""


def made(tmp_path, **changes):
    arguments = {"deterministic": False, "seeded": False, "shrink": True, "memory": tmp_path}
    return hypothesis_settings(50, **{**arguments, **changes})


def test_what_others_remember_is_tried_and_never_written(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    theirs.mkdir()
    shared = DirectoryBasedExampleDatabase(theirs)
    shared.save(b"key", b"theirs")
    database = made(mine, memory=mine, shared=theirs).database
    database.save(b"key", b"mine")
    assert set(database.fetch(b"key")) == {b"mine", b"theirs"}
    assert set(shared.fetch(b"key")) == {b"theirs"}
    assert set(DirectoryBasedExampleDatabase(mine).fetch(b"key")) == {b"mine"}
    assert made(mine, memory=mine, shared=theirs, deterministic=True).database is None
    assert set(made(mine, memory=None, shared=theirs).database.fetch(b"key")) == {b"theirs"}
    assert made(mine, memory=None, shared=tmp_path / "nowhere").database is None


def test_there_are_three_profiles_and_only_ci_draws_the_same_cases_every_time():
    assert {name: profile.deterministic for name, profile in RUN_PRESETS.items()} == {
        "dev": False,
        "ci": True,
        "nightly": False,
    }
    assert run_preset("nightly").examples >= 10 * run_preset("dev").examples


def test_an_unknown_profile_is_named_with_those_that_there_are():
    expected = r"unknown hypothesis profile 'night'; did you mean 'nightly'\? known: ci, dev, nightly"
    with pytest.raises(UsageError, match=expected):
        run_preset("night")


def test_failing_cases_are_remembered_in_the_folder_that_is_given(tmp_path):
    database = made(tmp_path).database
    assert isinstance(database, DirectoryBasedExampleDatabase)
    assert database.path == tmp_path
    assert made(tmp_path, memory=None).database is None


def test_a_deterministic_run_remembers_nothing(tmp_path):
    chosen = made(tmp_path, deterministic=True)
    assert chosen.database is None
    assert chosen.derandomize


def test_a_seed_is_not_overridden(tmp_path):
    assert not made(tmp_path, deterministic=True, seeded=True).derandomize


def test_shrinking_can_be_left_out(tmp_path):
    assert Phase.shrink in made(tmp_path).phases
    assert Phase.shrink not in made(tmp_path, shrink=False).phases
    assert Phase.reuse in made(tmp_path, shrink=False).phases


def test_slow_cases_are_no_failures(tmp_path):
    assert made(tmp_path).deadline is None
    assert HealthCheck.too_slow in made(tmp_path).suppress_health_check


def test_registered_profiles_have_the_names_that_pytest_takes():
    register_profiles()
    for name, profile in RUN_PRESETS.items():
        registered = settings.get_profile(name)
        assert registered.max_examples == profile.examples
        assert registered.derandomize is profile.deterministic
        if profile.deterministic:
            assert registered.database is None


@pytest.mark.parametrize("in_ci", [False, True])
def test_registered_profiles_remember_where_hypothesis_does(in_ci):
    """Hypothesis keeps no examples where CI is set: read by itself at import, hence a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in CI_VARIABLES}
    program = (
        "from hypothesis import settings; from npudiff.draw.presets import register_profiles; register_profiles();"
        "print([settings.get_profile(name).database is not None for name in ('dev', 'ci', 'nightly')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | ({"CI": "true"} if in_ci else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str([not in_ci, False, not in_ci])


def cases_drawn():
    cases = []
    collecting = Property("collected", "collects cases", lambda subject, case: cases.append(case) or Comparison(()))
    job = make_plan(Request(("rms_norm",), ("native_rms_norm",), "sim")).jobs[0]
    run_job(replace(job, prop=collecting), Budget(examples=60, seed=1, shrink=False))
    return cases


def test_nobody_reads_the_code_that_is_loaded_for_numbers(monkeypatch):
    def read():
        raise AssertionError

    monkeypatch.setattr(providers, "_get_local_constants", read)
    assert len(set(cases_drawn())) > 30


@pytest.mark.slow
def test_a_run_keeps_nothing_of_code_in_the_folder_in_which_it_is(tmp_path):
    options = ("--impl", "eager", "--target", "sim", "--examples", "30", "--no-isolate")
    command = [sys.executable, "-m", "npudiff", "check", "swa_mask", *options]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert [one.name for one in tmp_path.iterdir()] == [".npudiff"]


def test_who_draws_otherwise_has_the_numbers_of_their_code():
    theirs = providers._get_local_constants, providers.CONSTANTS_CACHE
    with without_constants_of_code():
        assert providers._get_local_constants is not theirs[0]
        assert not providers._get_local_constants().integers
    assert (providers._get_local_constants, providers.CONSTANTS_CACHE) == theirs
