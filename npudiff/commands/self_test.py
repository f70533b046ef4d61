"""``npudiff self-test``: whether every bug that was planted is found."""

from __future__ import annotations

import argparse
from dataclasses import replace

from npudiff.commands.check import request_of, run_plan
from npudiff.run.plan import make_plan


def self_test(options: argparse.Namespace) -> int:
    """Run ``npudiff self-test`` and return its exit code: 1 if a mutant is not found."""
    request = replace(request_of(options), seed=options.seed)
    return run_plan(replace(make_plan(request), jobs=()), options)
