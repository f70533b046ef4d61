"""A backend of somebody else, for tests of what a run does with one."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from npudiff.run import backends

PACKAGE = '''
"""A backend of somebody else."""
from pathlib import Path
from npudiff.model.backend import Backend, BackendUnavailable, Booted

BOOTS = []

def boot(checkout):
    BOOTS.append(checkout)
    if checkout is not None and not checkout.exists():
        raise BackendUnavailable(f"--backend small={checkout}: nothing there")
    return Booted("1.2", Path(__file__).parent)

class NotHere(RuntimeError):
    pass

BACKEND = Backend("small", "for this test", boot, __name__, (NotHere,), target="sim")
'''


@pytest.fixture
def small_backend(tmp_path, monkeypatch):
    """The folder of an installed package with a backend, whose entry point is found; it has no implementations yet."""
    folder = tmp_path / "installed" / "small_backend"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    point = importlib.metadata.EntryPoint("small", "small_backend:BACKEND", "npudiff.backends")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(backends, "_entry_points", lambda: {"small": point})
    monkeypatch.setattr(backends, "_rooms", {})
    yield folder
    for name in [one for one in sys.modules if one.partition(".")[0] == "small_backend"]:
        del sys.modules[name]
