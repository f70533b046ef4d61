"""``npudiff self-test``: whether every bug that was planted is found."""

from __future__ import annotations

import argparse
from dataclasses import replace

from npudiff.commands.check import run_plan
from npudiff.findings.shared import EXAMPLES
from npudiff.run.isolation.journal import JOURNALS
from npudiff.run.plan import Request, make_plan


def self_test(options: argparse.Namespace) -> int:
    """Run ``npudiff self-test`` and return its exit code: 1 if a mutant is not found."""
    request = Request(
        components=tuple(options.components),
        target=options.target,
        cann=options.cann,
        examples=options.examples,
        seed=options.seed,
        example_database=options.output / EXAMPLES,
        isolate=options.isolate,
        journal=options.output / JOURNALS,
        timeout=options.timeout,
        warm_up=options.warm_up,
        workers=options.workers,
    )
    return run_plan(replace(make_plan(request), jobs=()), options)
