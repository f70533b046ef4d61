"""What a forked process has to do before anything else, and who ends it."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys

import torch

from npudiff.model.component import ignore_interrupts

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the kernel signals a process whose parent is gone


def begin() -> None:
    """Begin the life of a forked process: it computes in one thread, and is ended by its parent, or with it."""
    gc.freeze()  # what was there before is not looked through again, which would copy each page of it
    torch.set_num_threads(1)  # OpenMP's threads are not in a forked process, and waiting for them has no end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends what it has started
    ignore_interrupts()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
