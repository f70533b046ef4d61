"""Cases that are not run, since it is known what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

from npudiff.model.constraints import Constraints


@dataclass(frozen=True)
class Exclusion:
    """A region of cases that are not run."""

    where: Constraints
    """The cases: all of which any part lies inside."""
    reason: str
    """What the account says of a case that was drawn and not run."""
