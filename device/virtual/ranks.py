"""Several ranks of one program, each a process with the virtual devices: torchrun's own agent, on this machine.

Each rank has ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE`` and the others that torchrun gives, and as many devices as there
are ranks, unless somebody says how many. What ranks print comes with their numbers.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from npudiff.text import printable

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
_OF_RANKS = "HCCL, communicator "
"""How a message of the runtime begins that is about other ranks."""

_SAYS_WHY = re.compile(r"(HCCL, communicator .*|[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)")
_MOST_OF_A_LOG = 1 << 16
"""Bytes of the end of what a rank printed, in which the reason for its end is looked for."""


def run_ranks(command: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Run a program once for each rank; return 0, or the exit code of the rank that failed first.

    That rank is named on stderr, with the reason. The others are ended then, as torchrun does. A rank that a signal
    ended has 128 and the signal's number, as in a shell.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    count : int
        Number of ranks.
    environment : mapping
        Of each rank, without what says which rank it is.
    """
    os.environ[_AUTOLOAD] = "0"  # the agent needs no device
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    os.environ.clear()
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    logging.disable(logging.ERROR)  # of the agent, which tells in many lines what is told here in one
    with tempfile.TemporaryDirectory(prefix="npudiff-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, tee=Std.ALL),
            log_line_prefix_template="[rank ${rank}] ",
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            noticed = error.get_first_failure()[0]
            ends = {
                rank: End(failure.exitcode, _end_of_log(Path(logs), rank)) for rank, failure in error.failures.items()
            }
            rank = first_to_fail(ends, noticed)
            sys.stdout.flush()
            print(f"npudiff virtual: rank {rank} of {count} {ends[rank].said()}", file=sys.stderr)
            return ends[rank].code()
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


@dataclass(frozen=True)
class End:
    """How a rank ended."""

    exit: int
    """Exit code as Python gives it: negative for a signal."""
    log: str
    """The end of what it printed on stderr."""

    @property
    def why(self) -> str:
        """The last line that says an error, or nothing."""
        found = [match for line in self.log.splitlines() if (match := _SAYS_WHY.search(line))]
        return printable(found[-1][1]) if found else ""

    @property
    def was_ended(self) -> bool:
        """Whether the agent ended it, since another one had failed."""
        return self.exit == -signal.SIGTERM

    @property
    def raised(self) -> bool:
        """Whether it was on its way out, with an error of its own, when the agent ended it."""
        return self.was_ended and "Traceback (most recent call last)" in self.log and not self.for_another

    @property
    def for_another(self) -> bool:
        """Whether it gave up since another rank was not there, or called something else."""
        return _OF_RANKS in self.log

    def code(self) -> int:
        """Return what a shell says of its exit code."""
        if self.raised:
            return 1
        return self.exit if self.exit >= 0 else 128 - self.exit

    def said(self) -> str:
        """Return how it ended, and why, in one line."""
        names = {one.value: one.name for one in signal.Signals}
        if self.raised:
            how = "failed"
        elif self.exit >= 0:
            how = f"ended with exit code {self.exit}"
        else:
            how = f"was ended by {names.get(-self.exit, f'signal {-self.exit}')}"
        return f"{how}: {self.why}" if self.why else how


def first_to_fail(ends: Mapping[int, End], noticed: int) -> int:
    """Return the rank that is the reason: not one that gave up for another one, or that the agent ended.

    Parameters
    ----------
    ends : mapping
        How ranks ended, by their numbers.
    noticed : int
        The rank whose end the agent noticed first, which is returned where none is the reason.
    """
    by_themselves = [rank for rank in sorted(ends) if not ends[rank].for_another and not ends[rank].was_ended]
    raised = [rank for rank in sorted(ends) if ends[rank].raised]
    ended = [rank for rank in sorted(ends) if not ends[rank].was_ended]
    for reasons in (by_themselves, raised, ended):
        if reasons:
            return noticed if noticed in reasons else reasons[0]
    return noticed


def _end_of_log(folder: Path, rank: int) -> str:
    for path in folder.glob(f"*/attempt_0/{rank}/stderr.log"):
        return path.read_bytes()[-_MOST_OF_A_LOG:].decode(errors="replace")
    return ""
