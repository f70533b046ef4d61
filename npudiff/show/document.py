"""The JSON document of a command: what programs read, on standard output or in a file, one for each command that ran.

Its form is described by ``document.schema.json`` beside this module. ``npudiff`` number 1 stays as it is described
there: fields may be added, none is removed, and none changes its meaning.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

from npudiff.errors import ExitCode
from npudiff.files.writing import reason, write_file
from npudiff.model.version import VERSION
from npudiff.text import complain

FORMAT = "npudiff/1"
"""Name and number of the form."""

STDOUT = "-"

_VERDICTS = {
    ExitCode.CLEAN: "clean",
    ExitCode.FINDINGS: "findings",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.INTERNAL: "internal error",
    ExitCode.USAGE: "usage error",
    ExitCode.NOTHING_RAN: "nothing ran",
    ExitCode.DEVICE_LOST: "device lost",
}
"""What each exit code means."""


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of documents."""
    text = files("npudiff.show").joinpath("document.schema.json").read_text(encoding="utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain


def document(command: str, code: int, problem: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a command that has ended.

    Parameters
    ----------
    command : str
        Its name.
    code : int
        Its exit code.
    problem : str
        Why it did not come to its end, in words; empty if it did.
    content : mapping
        What it has to say besides.
    """
    head = {
        "format": FORMAT,
        "npudiff": VERSION,
        "command": command,
        "exit_code": int(code),
        "verdict": _VERDICTS[ExitCode(code)],
        "problem": problem,
    }
    plain: dict[str, Any] = finite({**head, **content})
    return plain


def finite(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """Return a plain value without numbers that JSON does not have: ``inf``, ``-inf`` and ``nan`` as text."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


class DocumentFile:
    """Where a command writes its document, and what it writes.

    Parameters
    ----------
    name : str
        A file, or ``-`` for standard output. Whatever else is written there while the command runs, also by a kernel
        and by other processes, goes to standard error.

    Attributes
    ----------
    content : callable
        Returns what the command has to say by now. The command sets it as soon as there is anything, so that a run
        which ends before its time has told what it knows.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.content: Callable[[], Mapping[str, Any]] = dict
        self._own = 1

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have what is written to standard output go to standard error, until the document is written there."""
        if self.name != STDOUT or sys.stdout is None:
            yield
            return
        sys.stdout.flush()
        with contextlib.ExitStack() as after:
            if _is_descriptor(sys.stdout, 1):  # not where somebody has put an object in its place, as a test does
                self._own = own = os.dup(1)
                after.callback(os.close, own)
                after.callback(os.dup2, own, 1)
                _redirect(1)
            after.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield

    def line(self, text: str) -> None:
        """Write a line to the standard output that is kept free."""
        data = memoryview((text + "\n").encode())
        while data:
            data = data[os.write(self._own, data) :]

    def write(self, command: str, code: int, problem: str = "") -> int:
        """Write the document, and return the exit code: that of a usage error where it cannot be written."""
        content: Mapping[str, Any] = {}
        try:
            content = self.content()
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict must be seen
            problem = f"{problem}; " * bool(problem) + f"what was seen cannot be told: {type(error).__name__}: {error}"
        text = json.dumps(document(command, code, problem, content), allow_nan=False)
        try:
            if self.name == STDOUT:
                print(text, flush=True)
            else:
                write_file(Path(self.name), text + "\n")
        except BrokenPipeError:
            return code or ExitCode.INTERRUPTED
        except OSError as error:
            complain(f"--json {self.name}: {reason(error)}")
            return code or ExitCode.USAGE
        return code


def _redirect(descriptor: int) -> None:
    """Have a descriptor lead to standard error, or nowhere where that is closed."""
    try:
        os.dup2(2, descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False
