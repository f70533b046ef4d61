"""``npudiff report``: one page of the runs that left records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from npudiff.errors import ExitCode, UsageError
from npudiff.findings.shared import FINDINGS
from npudiff.show.run_page.page import run_page
from npudiff.show.run_page.read import StoredRun, finding_folder, read_records, root_of

PAGE_FILE = "report.html"

MOST_STRAYS = 10_000


def report(options: argparse.Namespace) -> int:
    """Run ``npudiff report`` and return its exit code: 0 if there is a page, whatever it says."""
    paths: list[Path] = options.paths
    runs, problems = read_records(paths)
    strays = _strays(paths, runs)
    for line in problems:
        print(f"npudiff: {line}", file=sys.stderr)
    if not runs and not strays:
        where = ", ".join(str(path) for path in paths)
        print(f"npudiff: no run left a record in {where}; npudiff check writes one", file=sys.stderr)
        return ExitCode.NOTHING_RAN
    first = root_of(paths[0])
    page: Path = options.output or first / PAGE_FILE
    partial = page.with_name(f".{page.name}.partial")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(run_page(runs, problems, strays, page), encoding="utf-8")
        partial.replace(page)
    except OSError as error:
        raise UsageError(f"{page}: {error.strerror}") from None
    print(page)
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
