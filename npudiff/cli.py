"""The command line: what a command runs, and with which exit code it ends. Work is imported when a command runs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence

from npudiff.commands.arguments import build_parser
from npudiff.errors import DeviceLost, ExitCode, UsageError
from npudiff.model.implementation import TargetUnavailable
from npudiff.run.guardian import End, guarded
from npudiff.show.document import STDOUT, DocumentFile
from npudiff.text import complain, output_is_lost

_RUN_KERNELS = {"campaign", "check", "gate", "replay", "score", "self-test"}
"""Commands that run code which somebody else wrote, and give a verdict on it."""


def entry() -> int:
    """Run the command line as a program: a command that runs kernels has a guardian, which they cannot end."""
    if _RUN_KERNELS.intersection(sys.argv[1:2]):
        return guarded(main, _document_of_the_dead)
    return main()


def _document_of_the_dead(end: End) -> None:
    """Write the document of a run that ended before it could; standard output gets none after the one that it has."""
    with contextlib.suppress(SystemExit):  # of arguments that are none
        options = build_parser().parse_args()
        if options.json is not None and (end.mute or options.json.name != STDOUT):
            options.json.write(options.command, ExitCode.INTERNAL, str(end))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # in a terminal of few letters the others are question marks
    code = _main(arguments)
    lost = output_is_lost()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries once more
        lost = error
    if isinstance(lost, BrokenPipeError):
        return code or ExitCode.INTERRUPTED
    if lost is not None:
        complain(f"standard output: {lost.strerror}")
        return code or ExitCode.USAGE
    return code


def _main(arguments: Sequence[str] | None) -> int:
    """Run a command, and return the exit code of whatever ends it."""
    options = build_parser().parse_args(arguments)
    prepare_environment()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    file: DocumentFile | None = getattr(options, "json", None)
    if file is None:
        return _ended(options)[0]
    with file.alone():
        code, problem = _ended(options)
    return file.write(options.command, code, problem)


def _ended(options: argparse.Namespace) -> tuple[int, str]:
    """Run a command; return its exit code, and what ended it before its end, if anything did."""
    try:
        return _run(options), ""
    except UsageError as error:
        return _complained(str(error), ExitCode.USAGE)
    except (TargetUnavailable, DeviceLost) as error:
        return _complained(str(error), ExitCode.DEVICE_LOST)
    except KeyboardInterrupt:
        return _complained("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return ExitCode.INTERRUPTED, "the reader of the output went away"
    except (Exception, SystemExit):  # noqa: BLE001 - the last line of defence; the traceback is shown
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        return _complained("internal error; please report it with the traceback above", ExitCode.INTERNAL)


def _complained(problem: str, code: ExitCode) -> tuple[int, str]:
    complain(problem)
    return code, problem


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C: a CI job that runs out of time is sent SIGTERM, and what was found must not be lost."""
    del number, frame
    raise KeyboardInterrupt


_FUNCTIONS = {"list": "listing", "self-test": "self_test"}
"""Functions of commands whose name is another one; the others are called as their command."""


def _run(options: argparse.Namespace) -> int:
    """Import the module of a command, and run it."""
    name = _FUNCTIONS.get(options.command, options.command)
    run = getattr(importlib.import_module(f"npudiff.commands.{name}"), name)
    return int(run(options))


def prepare_environment() -> None:
    """Set what torch reads when it is imported, unless somebody has said otherwise.

    torch loads torch_npu on its own through an entry point, and that fails where CANN's libraries are missing
    (``libhccl.so``); only there the autoload is switched off. Cases are small: threads that share one cost more than
    they bring, on a server with many cores much more.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from npudiff.run.environment import autoload_would_fail, keep_freed_memory, quieten_torch  # noqa: PLC0415

    keep_freed_memory()

    if autoload_would_fail():
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        # Beside a virtual NPU torch_npu warns in each new process that CANN is older than it; errors are shown.
        quieten_torch()
