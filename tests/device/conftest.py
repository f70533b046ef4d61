"""What tests of devices share."""

from __future__ import annotations

import pytest

from npudiff.run import engine


@pytest.fixture
def shrinks_to_its_end(monkeypatch):
    """A shrink takes the time that it needs: on a loaded machine its limit would end it before."""
    monkeypatch.setattr(engine, "SHRINK_SECONDS", 600.0)
