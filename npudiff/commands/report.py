"""``npudiff report``: one page of the runs that left records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from npudiff.errors import ExitCode, UsageError
from npudiff.files.writing import FINDINGS, reason, write_file
from npudiff.show.run_page.page import run_page
from npudiff.show.run_page.read import StoredRun, finding_folder, read_records, root_of
from npudiff.text import complain, say

PAGE_FILE = "report.html"

MOST_STRAYS = 10_000


def report(options: argparse.Namespace) -> int:
    """Run ``npudiff report`` and return its exit code: 0 if there is a page, whatever it says."""
    paths: list[Path] = options.paths
    runs, problems = read_records(paths)
    strays = _strays(paths, runs)
    for line in problems:
        complain(line)
    if not runs and not strays:
        where = ", ".join(str(path) for path in paths)
        complain(f"no run left a record in {where}; npudiff check writes one")
        return ExitCode.NOTHING_RAN
    first = root_of(paths[0])
    page: Path = options.output or first / PAGE_FILE
    text = run_page(runs, problems, strays, page)
    try:
        write_file(page, text, within=first if options.output is None else None)
    except OSError as error:
        raise UsageError(f"{page}: {reason(error)}") from None
    say(str(page))
    return ExitCode.CLEAN


def _strays(paths: Sequence[Path], runs: Sequence[StoredRun]) -> list[str]:
    """Folders of findings that no record names."""
    named = {(run.root, finding.folder) for run in runs for finding in run.record.findings}
    strays = []
    for root in dict.fromkeys(root_of(path) for path in paths if path.is_dir()):
        findings = root / FINDINGS
        names = sorted(path.name for path in findings.iterdir()) if findings.is_dir() else []
        found = (name for name in names if (root, name) not in named and finding_folder(root, name) is not None)
        strays += [str(findings / name) for name in found]
    return strays[:MOST_STRAYS]
