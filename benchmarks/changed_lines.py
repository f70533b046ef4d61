"""Lines that decide a verdict, each changed by itself: does some test see it?

``changed_lines.txt`` has the changes, with the tests that must see them. Each is made in a copy of the tree, in which
these tests run until the first fails. ``python -m benchmarks.changed_lines`` prints those that nobody sees, and ends
with 1 if there are any, or if a line that should be changed is not there any more. Paths as arguments choose files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess  # pytest and git, without a shell
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

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
    listed = subprocess.run(git, check=True, capture_output=True)  # noqa: S603 - git of the tree
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, there = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, there, follow_symlinks=False)
    return folder


def tested(tree: Path, tests: Sequence[str]) -> int:
    """Run tests in a copy until the first fails; return pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(  # noqa: S603 - pytest on a copy of this tree
            command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, timeout=SECONDS, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return FAILED


def is_seen(tree: Path, change: Change) -> bool:
    """Make a change in a copy, run its tests, and take it back; whether one fails."""
    path = tree / change.path
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    try:
        return tested(tree, change.tests) in (FAILED, INTERRUPTED)
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Make the changes and print what nobody sees."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.changed_lines", description=__doc__)
    parser.add_argument("paths", nargs="*", help="files whose lines are changed, or folders; all by default")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    changes = [one for one in read() if not options.paths or one.path.startswith(tuple(options.paths))]
    wrong = list(defects(changes))
    for text in wrong:
        print(f"DEFECT {text}")
    if wrong or not changes:
        return 1
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="changed-lines-") as folder:
        trees: Queue[Path] = Queue()
        for number in range(options.workers):
            trees.put(copied(Path(folder) / str(number)))

        def one(question: Change | tuple[str, ...]) -> bool:
            tree = trees.get()
            try:
                return tested(tree, question) == PASSED if isinstance(question, tuple) else is_seen(tree, question)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(options.workers) as pool:
            kinds = list(dict.fromkeys(change.tests for change in changes))
            red = [tests for tests, green in zip(kinds, pool.map(one, kinds), strict=True) if not green]
            for tests in red:
                print(f"DEFECT fails without any change: {' '.join(tests)}")
            if red:
                return 1
            unseen = 0
            for change, seen in zip(changes, pool.map(one, changes), strict=True):
                unseen += not seen
                print(f"{'seen  ' if seen else 'UNSEEN'} {change.line}", flush=True)
    print(f"{len(changes)} changes, {unseen} of which nobody sees, in {time.perf_counter() - started:.0f} s")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
