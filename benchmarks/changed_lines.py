"""Lines that decide a verdict, each changed by itself, to find those that no test sees.

``changed_lines.txt`` has the changes, with the tests that must see them. Each is made in a copy of the tree, in which
these tests run until the first fails. ``python -m benchmarks.changed_lines`` prints those that nobody sees, and ends
with 1 if there are any, or if a line that should be changed is not there any more. Paths as arguments choose files.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import subprocess  # git, without a shell
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis.stateful  # noqa: F401 - what costs most to import is imported once
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).parent.parent

FILE = Path(__file__).with_suffix(".txt")

SECONDS = 600.0
"""What the tests of a change may take; one that hangs is seen, too."""

PASSED, FAILED, INTERRUPTED = 0, 1, 2
"""Exit codes of pytest; the last is that of a module that cannot be imported."""


@dataclass(frozen=True)
class Change:
    """One change of a file."""

    path: str
    old: str
    new: str
    """Text that stands there once, and what replaces it."""
    tests: tuple[str, ...]
    """Arguments of pytest: files, and ``-k`` with an expression."""

    @property
    def line(self) -> str:
        """What is changed, in a line."""
        return f"{self.path}: {' / '.join(self.old.split(chr(10)))}  ->  {' / '.join(self.new.split(chr(10)))}"


def read(path: Path = FILE) -> list[Change]:
    r"""Read changes.

    ``== path: tests`` names a file and its tests, ``= tests`` others for what follows. A change is ``- old`` and
    ``+ new``; ``\n`` in them is the end of a line.

    Raises
    ------
    ValueError
        If a line says none of this.
    """
    changes: list[Change] = []
    file, tests, old = "", (), ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("== "):
            file, _, rest = line[3:].partition(": ")
            tests = _arguments(rest)
        elif line.startswith("= "):
            tests = _arguments(line[2:])
        elif line.startswith("- "):
            old = line[2:].replace("\\n", "\n")
        elif line.startswith("+"):
            changes.append(Change(file, old, line[2:].replace("\\n", "\n"), tests))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}:{number}: neither a file, nor tests, nor a change: {line!r}")
    return changes


def _arguments(text: str) -> tuple[str, ...]:
    files, _, expression = text.partition(" -k ")
    return (*files.split(), *(("-k", expression) if expression else ()))


def defects(changes: Sequence[Change]) -> Iterator[str]:
    """Yield what is wrong with changes: text that does not stand there once, or no Python after it."""
    for change in changes:
        text = (ROOT / change.path).read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            yield f"stands there {text.count(change.old)} times: {change.line}"
            continue
        try:
            compile(text.replace(change.old, change.new), change.path, "exec")
        except SyntaxError as error:
            yield f"{error}: {change.line}"
    for test in sorted({test for change in changes for test in change.tests if test.endswith(".py")}):
        if not (ROOT / test).is_file():
            yield f"no file {test}"


def copied(folder: Path) -> Path:
    """Copy what git knows of the tree, links as links."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, there = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, there, follow_symlinks=False)
    return folder


def run_tests(tree: Path, tests: Sequence[str]) -> NoReturn:
    """In a process of its own: run tests of a copy until the first fails, and end with pytest's exit code."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(quiet, stream)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # for processes that tests start
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(tree.parent)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    early = "ignore::pytest.PytestAssertRewriteWarning"  # of what was imported before the fork
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", early, f"--rootdir={tree}", *tests])
    os._exit(int(code))


@dataclass(frozen=True)
class Question:
    """Tests of a copy, perhaps with a change."""

    tests: tuple[str, ...]
    change: Change | None = None


class Answers:
    """Runs questions in forked processes, one in each copy; they have torch already, and nothing of npudiff.

    Parameters
    ----------
    trees : sequence of pathlib.Path
        Copies.
    """

    def __init__(self, trees: Sequence[Path]) -> None:
        self._free = list(trees)
        self._running: dict[int, tuple[ForkProcess, Question, Path, str, float]] = {}

    def of(self, questions: Iterable[Question]) -> Iterator[tuple[Question, int]]:
        """Yield each question and pytest's exit code, as they are answered."""
        waiting = iter(questions)
        for question in itertools.islice(waiting, len(self._free)):
            self._begin(question)
        while self._running:
            wait(list(self._running), timeout=1.0)
            for sentinel, (process, question, tree, text, since) in list(self._running.items()):
                late = time.monotonic() - since > SECONDS
                if process.is_alive() and not late:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)  # and what its tests have left
                process.join()
                if question.change is not None:
                    (tree / question.change.path).write_text(text, encoding="utf-8")
                del self._running[sentinel]
                self._free.append(tree)
                for following in itertools.islice(waiting, 1):
                    self._begin(following)
                yield question, FAILED if late else process.exitcode or 0

    def _begin(self, question: Question) -> None:
        tree, text = self._free.pop(), ""
        if question.change is not None:
            path = tree / question.change.path
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(question.change.old, question.change.new), encoding="utf-8")
        process = get_context("fork").Process(target=run_tests, args=(tree, question.tests))
        process.start()
        self._running[process.sentinel] = (process, question, tree, text, time.monotonic())


def main() -> int:
    """Make the changes and print what nobody sees."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.changed_lines", description=__doc__)
    parser.add_argument("paths", nargs="*", help="files whose lines are changed, or folders; all by default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="print what is seen as well")
    options = parser.parse_args()
    changes = [one for one in read() if not options.paths or one.path.startswith(tuple(options.paths))]
    wrong = list(defects(changes))
    for text in wrong:
        print(f"DEFECT {text}")
    if wrong or not changes:
        return 1
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="changed-lines-") as folder:
        answers = Answers([copied(Path(folder) / str(number)) for number in range(options.workers)])
        kinds = dict.fromkeys(change.tests for change in changes)
        red = [question.tests for question, code in answers.of(map(Question, kinds)) if code != PASSED]
        for tests in red:
            print(f"DEFECT fails without any change: {' '.join(tests)}")
        green = [change for change in changes if change.tests not in red]
        unseen = 0
        for done, (question, code) in enumerate(answers.of(Question(change.tests, change) for change in green), 1):
            seen = code in (FAILED, INTERRUPTED) or code < 0  # a signal ended the tests
            unseen += not seen
            if done % 25 == 0:
                print(f"{done} of {len(green)} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            if question.change is not None and (options.all or not seen):
                print(f"{'seen  ' if seen else 'UNSEEN'} {question.change.line}", flush=True)
    print(f"{len(green)} changes, {unseen} of which nobody sees, in {time.perf_counter() - started:.0f} s")
    return 1 if unseen or red else 0


if __name__ == "__main__":
    sys.exit(main())
