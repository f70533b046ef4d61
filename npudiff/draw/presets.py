"""Presets of a run (``dev``, ``ci``, ``nightly``): the number of cases, and whether every run draws the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)
from hypothesis.internal.conjecture import providers

from npudiff.errors import unknown
from npudiff.files.reading import reason_against_examples


@dataclass(frozen=True)
class RunPreset:
    """The preset of a run."""

    name: str
    """``dev``, ``ci`` or ``nightly``."""
    examples: int
    """Cases of equivalence per implementation; relations get their share of it."""
    deterministic: bool
    """Whether every run draws the same cases, and none are remembered between runs."""


RUN_PRESETS = {
    profile.name: profile
    for profile in (
        RunPreset("dev", examples=100, deterministic=False),
        RunPreset("ci", examples=100, deterministic=True),
        RunPreset("nightly", examples=2_000, deterministic=False),
    )
}

DEFAULT_RUN_PRESET = "dev"

UNBOUNDED_EXAMPLES = 1_000_000
"""Examples of a run whose end is a time budget."""


def run_preset(name: str) -> RunPreset:
    """Return the preset of this name; raises ``UsageError`` if there is none."""
    if name not in RUN_PRESETS:
        raise unknown("hypothesis profile", name, RUN_PRESETS)
    return RUN_PRESETS[name]


def hypothesis_settings(
    examples: int,
    *,
    deterministic: bool,
    seeded: bool,
    shrink: bool,
    memory: Path | None,
    shared: Path | None = None,
    steps: int = 1,
    begin: ExampleDatabase | None = None,
    generate: bool = True,
) -> settings:
    """Return Hypothesis settings for one job.

    Parameters
    ----------
    examples : int
        Cases to run.
    deterministic : bool
        Draw the same cases every time.
    seeded : bool
        The caller sets a seed; derandomisation would override it.
    shrink : bool
        Whether a failing case is shrunk.
    memory : pathlib.Path, optional
        Folder in which failing cases are remembered and tried first next time.
    shared : pathlib.Path, optional
        Folder in which others remember theirs, which are tried as well; it is not written.
    steps : int
        Steps of each run of a state machine.
    begin : ExampleDatabase, optional
        Cases to begin with.
    generate : bool
        Whether other cases are drawn than those that are remembered, or to begin with.
    """
    wanted = {Phase.reuse: True, Phase.generate: generate, Phase.shrink: shrink}
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        database=_database(begin, None if deterministic else memory, None if deterministic else shared),
        deadline=None,
        derandomize=deterministic and not seeded,
        phases=[phase for phase, is_wanted in wanted.items() if is_wanted],
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        # Who narrows a run may leave little of what is drawn: that is told as cases that could not be drawn.
        suppress_health_check=list(HealthCheck),
    )


def _database(begin: ExampleDatabase | None, memory: Path | None, shared: Path | None) -> ExampleDatabase | None:
    databases = [] if begin is None else [begin]
    if memory is not None and not _is_strange(memory):
        databases.append(DirectoryBasedExampleDatabase(memory))
    if shared is not None and shared.is_dir() and not _is_strange(shared):
        databases.append(ReadOnlyDatabase(DirectoryBasedExampleDatabase(shared)))
    return MultiplexedDatabase(*databases) if len(databases) > 1 else next(iter(databases), None)


def _is_strange(folder: Path) -> bool:
    """Whether something other than Hypothesis may have made the folder of a job: it would be written to, too."""
    return folder.parent.is_symlink() or bool(reason_against_examples(folder, depth=2))


def register_profiles() -> None:
    """Make the profiles known to Hypothesis, so that ``--hypothesis-profile`` takes their names in pytest."""
    for profile in RUN_PRESETS.values():
        settings.register_profile(
            profile.name,
            max_examples=profile.examples,
            derandomize=profile.deterministic,
            deadline=None,
            **({"database": None} if profile.deterministic else {}),
        )


@contextlib.contextmanager
def without_constants_of_code() -> Iterator[None]:
    """Draw without the numbers that stand in whatever code is loaded, which Hypothesis prefers now and then.

    To find them, every process reads the source of hundreds of modules, a second's work, and keeps a file of each. What
    is drawn here are places in lists, of which they say nothing.
    """
    before = {name: getattr(providers, name, None) for name in _OF_CODE}
    if None in before.values():  # of a version that does not do it so
        yield
        return
    for name, ours in _OF_CODE.items():
        setattr(providers, name, ours)
    try:
        yield
    finally:
        for name, theirs in before.items():
            setattr(providers, name, theirs)


_OF_CODE: dict[str, Any] = {}
if hasattr(providers, "Constants") and hasattr(providers, "CONSTANTS_CACHE"):
    _none = providers.Constants()
    _OF_CODE |= {"_get_local_constants": lambda: _none, "CONSTANTS_CACHE": type(providers.CONSTANTS_CACHE)(1024)}
