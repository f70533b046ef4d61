"""Settings of this repository's own test run."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import re
import sys

import pytest

# Tests are small and run in parallel processes: one thread each is faster than two processes that fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from npudiff.run.environment import keep_freed_memory

keep_freed_memory()


def pytest_configure(config: pytest.Config) -> None:
    """Register what shortens the default suite."""
    config.addinivalue_line("markers", "few(count): of the test's parameters so many by default; the others are slow")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have a process stand by for ranks before any test uses the virtual device: none can be forked after that."""
    wanted = re.search(r"(?<!not )virtual", session.config.getoption("markexpr") or "")
    if wanted and importlib.util.find_spec("torch_npu") is not None:
        from npudiff.run.discovery import load_target  # noqa: PLC0415 - only where the device is used

        with load_target("virtual", None).activate():
            pass


def pytest_collection_finish() -> None:
    """Look seldom through all that lives as long as the session: it took a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], 200)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Begin the next module as a small process: some fork it hundreds of times, each as long as it is large."""
    if nextitem is not None and nextitem.path != item.path and sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # of another libc than glibc
            ctypes.CDLL(None).malloc_trim(0)


@pytest.hookimpl(tryfirst=True)  # before markers select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep some of a test's parameters, at equal distances, and mark the others slow: they are like those.

    So are mutants slow, which the plugin makes tests of: tests of mutants have one of each component.
    """
    alike: dict[str, list[pytest.Item]] = {}
    for item in items:
        if getattr(item, "originalname", "") == "test_mutant_is_found":
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("few") is not None and item.get_closest_marker("slow") is None:
            alike.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for tests in alike.values():
        mark = tests[0].get_closest_marker("few")
        count = mark.args[0] if mark is not None else 0
        kept = {place * len(tests) // count for place in range(min(count, len(tests)))}
        for place, test in enumerate(tests):
            if place not in kept:
                test.add_marker(pytest.mark.slow)
