"""A command that is killed while it runs, as a system would do it."""

from __future__ import annotations

import multiprocessing
import os
import signal


def killed_after(seconds, arguments, folder):
    """Start a command, and kill the one process that a system would kill; its workers end by themselves."""
    process = multiprocessing.get_context("fork").Process(target=_on_its_own, args=(arguments, folder))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def _on_its_own(arguments, folder):
    """Run the command line, and say nothing."""
    os.setsid()
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    from npudiff.cli import main

    os._exit(main(arguments))
