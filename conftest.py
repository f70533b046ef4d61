"""Settings of this repository's own test run."""

from __future__ import annotations

import os

# Tests are small and run in parallel processes: one thread each is faster than two processes that fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from npudiff.run.environment import keep_freed_memory

keep_freed_memory()
