"""Bugs that the package is told to have."""

import os

VARIABLE = "FAKE_BACKEND_BUGS"


def told(bug):
    """Whether the environment asks for a bug, by its name."""
    return bug in os.environ.get(VARIABLE, "").split(",")
