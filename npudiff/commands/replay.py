"""``npudiff replay``: run the cases of findings again."""

from __future__ import annotations

import argparse

from npudiff.commands.check import case_timeout
from npudiff.errors import ExitCode
from npudiff.findings.replay import ReplayVerdict, finding_folders
from npudiff.findings.replay import replay as replay_one
from npudiff.model.job import Isolation
from npudiff.show.console import Console


def replay(options: argparse.Namespace) -> int:
    """Run ``npudiff replay`` and return its exit code."""
    console = Console(verbose=False)
    seen: set[ReplayVerdict] = set()
    isolation = Isolation(warm_up=options.warm_up, run=case_timeout(options.timeout, None))
    for folder in finding_folders(options.paths):
        result = replay_one(
            folder,
            options.impl,
            options.target,
            options.cann,
            isolation=isolation,
            isolate=options.isolate,
            untrusted=options.untrusted,
        )
        seen.add(result.verdict)
        console.replay(result)
    if ReplayVerdict.FAILED in seen:
        return ExitCode.FINDINGS
    return ExitCode.USAGE if ReplayVerdict.ERROR in seen else ExitCode.CLEAN
