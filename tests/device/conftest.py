"""What tests of devices share."""

from __future__ import annotations

import pytest

from npudiff.run import engine


@pytest.fixture
def shrinks_to_its_end(monkeypatch):
    """A shrink takes the time that it needs: on a loaded machine its limit would end it before."""
    monkeypatch.setattr(engine, "SHRINK_SECONDS", 600.0)


@pytest.fixture(scope="session")
def at_most(request):
    """How many cases of each a test draws: as many as is usual, or as ``--examples`` says, if that is less."""
    asked = request.config.getoption("--examples")
    return lambda usual: usual if asked is None else min(usual, asked)
