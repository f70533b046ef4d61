"""What others have found: a folder that CI publishes and everybody reads, so that a colleague's finding is tried first.

The folder is an output folder of npudiff as it is (``.npudiff``), fetched by whatever a team has for that. Nothing in
it is trusted: findings are read as for a replay, remembered examples are bytes that Hypothesis draws from.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from npudiff.errors import UsageError
from npudiff.findings.finding import FINDING_FILE, POISONS, Finding, read_finding
from npudiff.model.job import Job
from npudiff.run.plan import Plan, Request, Shared, make_plan

FINDINGS, EXAMPLES = "findings", "examples"
"""Folders below an output folder."""

MOST_READ = 1000
"""Findings that are read at most, the newest first."""

MOST_EXAMPLES, MOST_BYTES = 100_000, 2**20
"""Files of remembered examples, and bytes of each, with more of which none is read."""


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
    cases: dict[str, tuple[str, ...]] = {}
    unread: list[str] = []
    for path in _newest(folder / FINDINGS):
        try:
            finding = read_finding(path)
        except (UsageError, OSError) as error:
            unread.append(str(error))
            continue
        if finding.job in names:
            cases[finding.job] = tuple(dict.fromkeys((*cases.get(finding.job, ()), *_cases_of(finding))))
    examples = folder / EXAMPLES
    strange = _strange(examples)
    if strange:
        unread.append(strange)
    return Shared(cases, examples if examples.is_dir() and not strange else None, tuple(unread))


def _strange(folder: Path) -> str:
    """Why a folder of remembered examples is not read: Hypothesis reads all that lies there, links and pipes too."""
    if folder.is_symlink():
        return f"{folder}: a link, which is not followed"
    for count, path in enumerate(folder.rglob("*") if folder.is_dir() else ()):
        if count >= MOST_EXAMPLES:
            return f"{folder}: more than {MOST_EXAMPLES} files"
        mode = path.lstat()
        plain = stat.S_ISREG(mode.st_mode) and mode.st_size <= MOST_BYTES
        if not plain and not stat.S_ISDIR(mode.st_mode):
            return f"{path}: not a plain file of at most {MOST_BYTES} bytes"
    return ""


def _newest(folder: Path) -> list[Path]:
    """Folders with a finding, the newest first; links are not followed."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    found = [path for path in folder.iterdir() if not path.is_symlink() and (path / FINDING_FILE).is_file()]
    return sorted(found, key=lambda path: ((path / FINDING_FILE).stat().st_mtime, path.name), reverse=True)[:MOST_READ]


def _cases_of(finding: Finding) -> tuple[str, ...]:
    """The case; of one that poisons, also the case after it, in which that was seen."""
    victim = finding.detail.get("victim")
    plain = [finding.case, victim] if finding.verdict == POISONS and victim else [finding.case]
    return tuple(json.dumps(case, separators=(",", ":")) for case in plain)
