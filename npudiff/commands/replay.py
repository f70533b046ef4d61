"""``npudiff replay``: run the cases of findings again."""

from __future__ import annotations

import argparse

from npudiff.commands.check import case_timeout
from npudiff.errors import ExitCode
from npudiff.findings.replay import Replay, ReplayVerdict, finding_folders
from npudiff.findings.replay import replay as replay_one
from npudiff.model.job import Isolation
from npudiff.run.discovery import add_own
from npudiff.show.console import Console
from npudiff.show.run_content import replay_content


def replay(options: argparse.Namespace) -> int:
    """Run ``npudiff replay`` and return its exit code."""
    console = Console(verbose=False)
    for selector in options.own:
        add_own(selector)
    seen: list[Replay] = []
    if options.json is not None:
        options.json.content = lambda: {"replays": [replay_content(one) for one in seen]}
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
        seen.append(result)
        console.replay(result)
    verdicts = {one.verdict for one in seen}
    if ReplayVerdict.FAILED in verdicts:
        return ExitCode.FINDINGS
    return ExitCode.USAGE if ReplayVerdict.ERROR in verdicts else ExitCode.CLEAN
