"""``npudiff virtual``: somebody's program on a virtual device."""

from __future__ import annotations

import argparse

from npudiff.errors import UsageError
from npudiff.run.discovery import load_launcher


def virtual(options: argparse.Namespace) -> int:
    """Run ``npudiff virtual``: it becomes the program that it is given, or runs its ranks, and ends as that does."""
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise UsageError("npudiff virtual runs a program: npudiff virtual -- python script.py")
    if options.rank_timeout is not None and options.rank_timeout <= 0:
        raise UsageError(f"--rank-timeout {options.rank_timeout:g}: seconds, more than 0")
    return load_launcher("virtual")(
        program,
        cann=options.cann,
        soc=options.soc,
        triton=options.triton,
        devices=options.devices,
        ranks=options.ranks,
        rank_timeout=options.rank_timeout,
    )
