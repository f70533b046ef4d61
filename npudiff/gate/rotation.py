"""Seeds of the rotating part of a gate: every run draws other cases, and the name of a rotation repeats them."""

from __future__ import annotations

import hashlib
import time

ROTATING = ("fails", "warns", "off")
"""What a finding of the rotating part does to the gate; off: the rotating part is not run."""


def rotation_of(given: str | None) -> str:
    """Return the name of this run's rotation: the one that was given, or the minute (UTC) in which it begins."""
    return given or time.strftime("%Y%m%d%H%M", time.gmtime())


def seed_of(rotation: str, turn: int, job: str) -> int:
    """Return the seed of a job in one turn of a rotation: an integer of 63 bits.

    Every job has seeds of its own, so that it draws the same cases whichever jobs run beside it.
    """
    digest = hashlib.sha256(f"{rotation}\n{turn}\n{job}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
