"""The command line: what a command runs, and with which exit code it ends. Work is imported when a command runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from npudiff.commands.arguments import build_parser
from npudiff.errors import DeviceLost, ExitCode, UsageError
from npudiff.model.target import TargetUnavailable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = build_parser().parse_args(arguments)
    prepare_environment()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(options)
    except UsageError as error:
        print(f"npudiff: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except (TargetUnavailable, DeviceLost) as error:
        print(f"npudiff: {error}", file=sys.stderr)
        return ExitCode.DEVICE_LOST
    except KeyboardInterrupt:
        print("npudiff: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.INTERRUPTED
    except (Exception, SystemExit):  # noqa: BLE001 - the last line of defence; the traceback is shown
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        print("npudiff: internal error; please report it with the traceback above", file=sys.stderr)
        return ExitCode.INTERNAL


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C: a CI job that runs out of time is sent SIGTERM, and what was found must not be lost."""
    del number, frame
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> int:
    if options.command == "check":
        from npudiff.commands.check import check as run  # noqa: PLC0415
    elif options.command == "gate":
        from npudiff.commands.gate import gate as run  # noqa: PLC0415
    elif options.command == "list":
        from npudiff.commands.listing import listing as run  # noqa: PLC0415
    elif options.command == "replay":
        from npudiff.commands.replay import replay as run  # noqa: PLC0415
    elif options.command == "report":
        from npudiff.commands.report import report as run  # noqa: PLC0415
    elif options.command == "score":
        from npudiff.commands.score import score as run  # noqa: PLC0415
    elif options.command == "virtual":
        from npudiff.commands.virtual import virtual as run  # noqa: PLC0415
    else:
        from npudiff.commands.doctor import doctor as run  # noqa: PLC0415
    return int(run(options))


def prepare_environment() -> None:
    """Set what torch reads when it is imported, unless somebody has said otherwise.

    torch loads torch_npu on its own through an entry point, and that fails where CANN's libraries are missing
    (``libhccl.so``); only there the autoload is switched off. Cases are small: threads that share one cost more than
    they bring, on a server with many cores much more.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from npudiff.run.environment import autoload_would_fail  # noqa: PLC0415

    if autoload_would_fail():
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
