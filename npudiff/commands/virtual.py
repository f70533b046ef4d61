"""``npudiff virtual``: somebody's program on a virtual device."""

from __future__ import annotations

import argparse

from npudiff.errors import UsageError
from npudiff.run.discovery import load_launcher


def virtual(options: argparse.Namespace) -> int:
    """Run ``npudiff virtual``: it becomes the program that it is given, and ends as that does."""
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise UsageError("npudiff virtual runs a program: npudiff virtual -- python script.py")
    return load_launcher("virtual")(program, cann=options.cann, soc=options.soc, triton=options.triton)
