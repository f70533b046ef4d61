"""What others have found: a folder that CI publishes and everybody reads, so that a colleague's finding is tried first.

The folder is an output folder of npudiff as it is (``.npudiff``), fetched by whatever a team has for that. Nothing in
it is trusted: findings are read as for a replay, remembered examples are bytes that Hypothesis draws from.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from npudiff.errors import UsageError
from npudiff.files.reading import reason_against_examples
from npudiff.files.writing import EXAMPLES, FINDINGS
from npudiff.findings.finding import FINDING_FILE, POISONS, Finding, read_finding
from npudiff.model.job import Job
from npudiff.run.plan import Plan, Request, Shared, make_plan

MOST_READ = 1000
"""Findings that are read at most, the newest first."""

MOST_LISTED = 100_000
"""Entries of the folder of findings that are looked at."""

MOST_OF_CASES = 2**24
"""Characters of all cases that are remembered; what comes after them is left out."""


def plan_with_shared(request: Request) -> Plan:
    """Return the plan of a request, with the cases of the shared folder that it names.

    Raises
    ------
    UsageError, TargetUnavailable
        As of ``make_plan``; and if there is no such folder.
    """
    plan = make_plan(request)
    return plan if request.shared is None else replace(plan, shared=read_shared(request.shared, plan.jobs))


def read_shared(folder: Path, jobs: Iterable[Job]) -> Shared:
    """Return the cases of a shared folder that concern these jobs.

    Raises
    ------
    UsageError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"--shared {folder}: no such folder")
    names = {job.name for job in jobs}
    cases: dict[str, dict[str, None]] = {}
    unread: list[str] = []
    room = MOST_OF_CASES
    for path in _newest(folder / FINDINGS):
        try:
            finding = read_finding(path, tensors=False)
        except (UsageError, OSError) as error:
            unread.append(str(error))
            continue
        if finding.job not in names:
            continue
        texts = _cases_of(finding)
        room -= sum(map(len, texts))
        if room < 0:
            unread.append(f"{path}: more than {MOST_OF_CASES} characters of cases in all")
            break
        cases.setdefault(finding.job, {}).update(dict.fromkeys(texts))
    examples = folder / EXAMPLES
    strange = reason_against_examples(examples)
    if strange:
        unread.append(strange)
    known = {job: tuple(texts) for job, texts in cases.items()}
    return Shared(known, examples if examples.is_dir() and not strange else None, tuple(unread))


def _newest(folder: Path) -> list[Path]:
    """Folders with a finding, the newest first; links are not followed."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    found: list[tuple[float, str]] = []
    for path in itertools.islice(folder.iterdir(), MOST_LISTED):
        with contextlib.suppress(OSError):  # somebody else's files may go as they come
            status = (path / FINDING_FILE).lstat()
            if stat.S_ISREG(status.st_mode) and not path.is_symlink():
                found.append((status.st_mtime, path.name))
    return [folder / name for _, name in heapq.nlargest(MOST_READ, found)]


def _cases_of(finding: Finding) -> tuple[str, ...]:
    """The case; of one that poisons, also the case after it, in which that was seen."""
    victim = finding.detail.get("victim")
    plain = [finding.case, victim] if finding.verdict == POISONS and victim else [finding.case]
    return tuple(json.dumps(case, separators=(",", ":")) for case in plain)
