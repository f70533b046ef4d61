"""A pytest plugin for checkouts of others: tests that their authors parked, and programs in their documents.

``--parked`` undoes ``unittest.skip`` and ``pytest.mark.skip``, and leaves the tests that had them; what skips on a
condition (a chip, a version of CANN) still does. A Markdown file is collected too: each of its Python blocks that uses
the device is a program, run as ``__main__``. :mod:`benchmarks.conformance` runs this file as a program, which imports
nothing of this repository: it forks a process for each line of its input, so that torch_npu is imported once.
"""

from __future__ import annotations

import codeop
import gc
import importlib
import json
import os
import re
import signal
import sys
import time
import types
import unittest
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

PARKED = "__parked__"

OUT_OF_SCOPE = {
    r"torchair|torch\.compile|npugraph_ex|torch\.onnx|torch\.jit\.": "a graph compiler",
    r"torch\.distributed|init_process_group|\bhccl\b|mp\.spawn|world_size|set_device\(\"?npu:[1-9]": "several cards",
    r"float8|fp8|float4_e|mxfp|\bmx_|e8m0|hifloat": "MX or fp8",
}
"""Programs that the virtual NPU does not claim to run, by what they name."""

DEVICE = re.compile(r"torch_npu|torch\.npu|\bnpu\b")
SIGNATURE = re.compile(r"\s*(?:@\w+\s+)?(?:def |class )?[\w.]+\s*\([^=]*(?:=[^()]*)*\)\s*->[^\n]*\s*", re.DOTALL)
"""What a document says of a function, which is no program."""

SESSION = re.compile(r"\s*>>>")
TYPED = re.compile(r"\s*(?:>>>|\.\.\.(?= |$)) ?")
ANSWER = re.compile(r"^\s*(?:# *执行上述代码的输出|>>>)", re.MULTILINE)
"""What follows is what the program prints."""

FENCE = re.compile(r"\s*(?:```|~~~)\s*(\w*)")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--parked``."""
    parser.addoption("--parked", action="store_true", help="run only tests that a skip without a condition parks")


def pytest_configure(config: pytest.Config) -> None:
    """Undo ``unittest.skip``, before test files are imported."""
    if config.getoption("parked"):
        unittest.skip = _parked


def _parked(reason: object) -> Any:
    """Return what ``unittest.skip`` is replaced by: it says that a test is parked, and lets it run."""

    def mark(test: Any) -> Any:
        setattr(test, PARKED, True)
        return test

    return mark(reason) if isinstance(reason, (types.FunctionType, type)) else mark


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that are parked, and take ``pytest.mark.skip`` from them."""
    if not config.getoption("parked"):
        return
    kept = [item for item in items if _is_parked(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in kept:
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name != "skip"]


def _is_parked(item: pytest.Item) -> bool:
    holders = (getattr(item, "function", None), getattr(item, "cls", None))
    return any(hasattr(one, PARKED) for one in holders) or item.get_closest_marker("skip") is not None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a document."""
    if file_path.suffix != ".md":
        return None
    document: Document = Document.from_parent(parent, path=file_path)
    return document


@dataclass(frozen=True)
class Block:
    """A block of Python in a document."""

    name: str
    """The number of its block, which changes less than its line."""
    line: int
    """Of its first line, from 1."""
    source: str

    @property
    def out_of_scope(self) -> str | None:
        """Why the virtual NPU does not claim to run it."""
        found = (why for names, why in OUT_OF_SCOPE.items() if re.search(names, self.source, re.IGNORECASE))
        return next(found, None)


def programs(text: str) -> Iterator[Block]:
    """Yield Python blocks of a document that use the device; of a session with an interpreter, what was typed."""
    lines: list[str] | None = None
    number = begun = 0
    for at, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if lines is not None and fence is None:
            lines.append(line)
        elif lines is not None:
            source, lines = _typed(_without_indentation(lines)), None
            if DEVICE.search(source) and not SIGNATURE.fullmatch(source):
                yield Block(f"block {number}", begun, source)
        elif fence is not None and fence[1].lower() in {"python", "py"}:
            number, begun, lines = number + 1, at + 1, []


def _without_indentation(lines: Sequence[str]) -> str:
    """Return lines without the indentation of the first, which documents do not keep to."""
    indentation = next((line[: -len(line.lstrip())] for line in lines if line.strip()), "")
    return "\n".join(line.removeprefix(indentation) for line in lines).expandtabs(4)


def _typed(source: str) -> str:
    """Return a program without answers; in a session, where a statement goes on, lines may lack a prompt."""
    if not SESSION.match(source):
        return ANSWER.split(source)[0] + "\n"
    typed, unfinished = list[str](), ""
    for line in source.splitlines():
        prompt = TYPED.match(line)
        if prompt or unfinished:
            typed.append(line[prompt.end() :] if prompt else line)
            unfinished = f"{unfinished}{typed[-1]}\n"
            if not _is_unfinished(unfinished):
                unfinished = ""
    return "\n".join(typed) + "\n"


def _is_unfinished(source: str) -> bool:
    try:
        return codeop.compile_command(source) is None
    except (SyntaxError, ValueError, OverflowError):
        return False


class Document(pytest.File):
    """A document whose programs are tests."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield its programs."""
        for block in programs(self.path.read_text(encoding="utf-8")):
            yield Program.from_parent(self, name=block.name, block=block)


class Program(pytest.Item):
    """A block of a document, run as a program."""

    def __init__(self, *, block: Block, **more: Any) -> None:
        super().__init__(**more)
        self.block = block

    def setup(self) -> None:
        """Skip what is out of scope."""
        if reason := self.block.out_of_scope:
            pytest.skip(reason)

    def runtest(self) -> None:
        """Run the program, as ``__main__``."""
        main = types.ModuleType("__main__")
        before, sys.modules["__main__"] = sys.modules["__main__"], main
        arguments, sys.argv = sys.argv, [str(self.path)]
        try:
            # The lines before it are left empty, so that a traceback names lines of the document.
            program = compile("\n" * (self.block.line - 1) + self.block.source, str(self.path), "exec")
            exec(program, vars(main))  # noqa: S102 - that is what it is for
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"the program ends with {end.code}") from end
        finally:
            sys.modules["__main__"], sys.argv = before, arguments

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where it is."""
        return self.path, self.block.line - 1, self.name


SECONDS_TO_REPORT = 20.0
"""What pytest may take to write its report, once it is interrupted."""


def serve(modules: Sequence[str]) -> None:
    """Import modules, run pytest in a fork for each line of the input, and answer with its exit status.

    A module may be a package without its ``__init__``, ``NAME=FOLDER``, where that loads what is not to be had, and a
    function of a module that is called with a folder, ``NAME:FUNCTION=FOLDER``, where that is what makes it importable.

    A line is JSON: arguments of pytest, the file that takes what it prints, and the seconds that it may take. The
    answer is ``null`` where it took longer, and was interrupted.
    """
    own_folder = sys.path[0]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # modules that are imported may print
    for module in modules:
        _import(module)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a module, or a shell, may have changed
    gc.collect()
    gc.freeze()  # tests that collect garbage do not go through all modules again
    for line in sys.stdin:
        arguments, log, seconds = json.loads(line)
        process = os.fork()
        if not process:
            _become_pytest(arguments, log, own_folder)
        answers.write(json.dumps(_waited(process, seconds)) + "\n")
        answers.flush()


def _import(given: str) -> None:
    name, _, folder = given.partition("=")
    module, _, function = name.partition(":")
    if function:
        getattr(importlib.import_module(module), function)(Path(folder).resolve())
    elif folder:
        sys.modules[module] = stand_in = types.ModuleType(module)
        stand_in.__path__ = [str(Path(folder).resolve())]
    else:
        importlib.import_module(module)


def _become_pytest(arguments: Sequence[str], log: str, own_folder: str) -> NoReturn:
    os.setsid()
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.remove(own_folder)  # as without a program; that of a checkout may hide what is installed
    sys.argv = ["pytest", *arguments]
    code = 1
    try:
        code = int(pytest.main(list(arguments), plugins=[sys.modules[__name__]]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited(process: int, seconds: float) -> int | None:
    """Return the exit status of a process, ``None`` after the time that it has; then it is interrupted, and killed."""
    for wait, ending in ((seconds, signal.SIGINT), (SECONDS_TO_REPORT, signal.SIGKILL), (SECONDS_TO_REPORT, None)):
        end = time.monotonic() + wait
        while time.monotonic() < end:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) if ending is signal.SIGINT else None
            time.sleep(0.02)
        if ending is signal.SIGINT:
            os.kill(process, ending)
        elif ending is not None:
            os.killpg(process, ending)
    return None


if __name__ == "__main__":
    serve(sys.argv[1:])
