"""Requests as JSON lines on standard input, and answers on standard output in the order in which they come."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from npudiff.serve.bench import Bench
from npudiff.serve.requests import MOST_BYTES

_AT_ONCE = 2**16


def serve_lines(bench: Bench, source: int, tell: Callable[[str], None]) -> None:
    """Answer until the source ends and everything that it asked for is answered.

    Parameters
    ----------
    bench : Bench
        Judges.
    source : int
        File number that requests are read from.
    tell : callable
        Writes an answer, which is one line.
    """
    lines, over = Lines(), False
    nothing, _keep_open = os.pipe()
    try:
        while not over or bench.busy:
            readable, answers = bench.answers(nothing if over else source, None)
            _tell(answers, tell)
            if readable:
                data = os.read(source, _AT_ONCE)
                over = not data
                for message in lines.complete(data):
                    _tell(bench.take(message), tell)
    finally:
        os.close(nothing)
        os.close(_keep_open)


def _tell(answers: Iterable[dict[str, Any]], tell: Callable[[str], None]) -> None:
    for answer in answers:
        tell(json.dumps(answer, allow_nan=False))


class Lines:
    """Puts pieces of input together to lines, and reads these as JSON."""

    def __init__(self) -> None:
        self._begun = b""

    def complete(self, data: bytes) -> Iterable[object]:
        """Yield the messages that are complete with these bytes; text in the place of one that is no JSON."""
        *whole, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > MOST_BYTES:
            yield "a line that is too long"
            self._begun = b""
        for line in whole:
            if line.strip():
                yield _read(line)


def _read(line: bytes) -> object:
    try:
        return json.loads(line) if len(line) <= MOST_BYTES else "a line that is too long"
    except (ValueError, RecursionError):
        return "no JSON"
