"""``npudiff serve``: a judge that stays warm, for programs that write kernels."""

from __future__ import annotations

import argparse
import signal
import sys

from npudiff.errors import ExitCode, UsageError
from npudiff.run.discovery import default_target, load_target
from npudiff.run.plan import can_isolate, default_workers
from npudiff.show.document import DocumentFile


def serve(options: argparse.Namespace) -> int:
    """Run ``npudiff serve`` and return its exit code."""
    if not can_isolate():
        raise UsageError("npudiff serve needs Linux")
    if options.http is not None or options.socket is not None:
        from npudiff.serve.http import serve_http  # noqa: PLC0415 - needs the extra 'serve'

        return serve_http(options)
    return _serve_lines(options)


def _serve_lines(options: argparse.Namespace) -> int:
    from npudiff.serve.bench import Bench  # noqa: PLC0415 - where HTTP is spoken another process has it
    from npudiff.serve.lines import serve_lines  # noqa: PLC0415

    target = load_target(options.target, options.cann) if options.target else default_target(options.cann)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    output = DocumentFile("-")
    with output.alone():
        bench = Bench(target, options.workers or default_workers(target))
        print("npudiff serve: ready", file=sys.stderr, flush=True)
        try:
            serve_lines(bench, sys.stdin.fileno(), output.line)
        finally:
            bench.close()
    return ExitCode.CLEAN
