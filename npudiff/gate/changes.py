"""The implementations that a change affects, found from the changed files and their imports."""

from __future__ import annotations

import ast
import functools
import subprocess  # git, without a shell
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from npudiff.errors import UsageError, unknown
from npudiff.gate.executed import files_executed
from npudiff.model.backend import is_backend
from npudiff.model.component import Component
from npudiff.model.implementation import Implementation
from npudiff.run.plan import Plan
from npudiff.show.source_location import file_of

GIT_SECONDS = 60.0


@dataclass(frozen=True)
class Change:
    """What has changed since a revision."""

    root: Path
    """Folder of the repository."""
    files: frozenset[Path]
    """Files that differ from the merge base with the revision, uncommitted ones included."""


def changed_since(revision: str, folder: Path) -> Change:
    """Ask git what has changed since a revision, in the working tree too.

    Raises
    ------
    UsageError
        If the folder is in no repository, or the revision is not in it.
    """
    root = repository_of(folder)
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    base = _git(root, "merge-base", commit, "HEAD").strip()
    named = _git(root, "diff", "--name-only", "--no-renames", "-z", base).split("\0")
    named += _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    return Change(root, frozenset(root / name for name in named if name))


def repository_of(folder: Path) -> Path:
    """Return the folder of the repository that a folder is in; raises ``UsageError`` if it is in none."""
    return Path(_git(folder, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the revision stands behind --end-of-options
            command, capture_output=True, check=False, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--since: git cannot be run: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"--since: git {arguments[0]} {arguments[-1]!r}: {said[-1] if said else 'no such revision'}")
    return done.stdout.decode(errors="surrogateescape")


@dataclass(frozen=True)
class Touched:
    """What a change touches."""

    implementations: frozenset[tuple[str, str]]
    """Component and implementation."""
    unknown: tuple[str, ...]
    """Changed files that no implementation is known to use."""


def touched_by(change: Change, plan: Plan, rules: Sequence[str]) -> Touched:
    """Return the implementations that use changed files.

    An implementation uses its own file, what that imports, and so on, as far as it lies in the repository, and the same
    of its component; one of a backend uses what it executes in a few cases. Of other files (kernels in C++,
    configurations) the user says what they touch.

    Parameters
    ----------
    change : Change
        What has changed.
    plan : Plan
        What is run.
    rules : sequence of str
        ``PATTERN=COMPONENT[,COMPONENT...]``, with patterns of paths in the repository: ``csrc/attention/*=swa_mask``.

    Raises
    ------
    UsageError
        If a rule has another form, or names a component that there is not.
    """
    subjects = {job.subject.names: (job.subject.component, job.subject.implementation) for job in plan.jobs}
    used = {name: _used(*subject, change.root) for name, subject in subjects.items()}
    of_backends = [job for job in plan.jobs if is_backend(job.subject.implementation.selector)]
    for name, executed in files_executed(of_backends, change.root, change.files).items():
        used[name] |= executed
    touched = {name for name, files in used.items() if files & change.files}
    explained = set().union(*used.values())
    for pattern, components in _parsed(rules, {component for component, _ in subjects}):
        matched = {path for path in change.files if fnmatchcase(path.relative_to(change.root).as_posix(), pattern)}
        explained |= matched
        touched |= {name for name in subjects if matched and name[0] in components}
    rest = sorted(path.relative_to(change.root).as_posix() for path in change.files - explained)
    return Touched(frozenset(touched), tuple(rest))


def _parsed(rules: Sequence[str], components: Collection[str]) -> Iterator[tuple[str, set[str]]]:
    for rule in rules:
        pattern, equals, names = rule.rpartition("=")
        if not equals or not pattern or not names:
            raise UsageError(f"--touches {rule!r}: expected PATTERN=COMPONENT[,COMPONENT...]")
        for name in names.split(","):
            if name not in components:
                raise UsageError(f"--touches {rule!r}: {unknown('component', name, components)}")
        yield pattern, set(names.split(","))


def _used(component: Component, item: Implementation, root: Path) -> frozenset[Path]:
    """Files of the repository that an implementation and its component are made from."""
    made_by = (item.function, item.factory, component.strategy, component.inputs, component.reference)
    begin = [file_of(function) for function in made_by]
    return imported(frozenset(path for path in begin if path is not None), root)


@functools.cache
def imported(files: frozenset[Path], root: Path) -> frozenset[Path]:
    """Return Python files and all that they import, at the top or within functions, as far as it lies below a root."""
    seen: set[Path] = set()
    waiting = [path for path in files if path.is_relative_to(root)]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imports(path, root)
    return frozenset(seen)


@functools.cache
def _imports(path: Path, root: Path) -> tuple[Path, ...]:
    """Files that one imports by itself."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ()
    found: list[Path] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += _files_of(alias.name, _roots(path, root))
        elif isinstance(node, ast.ImportFrom):
            above = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else _roots(path, root)
            base = node.module or ""
            for name in (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)):
                found += _files_of(name, above)
    return tuple(file for file in found if file.is_relative_to(root))


def _roots(path: Path, root: Path) -> list[Path]:
    """Folders in which modules are looked for: those of Python's path in the repository, and the file's own."""
    known = (Path(entry or ".").resolve() for entry in sys.path)
    return list(dict.fromkeys([*(entry for entry in known if entry.is_relative_to(root)), path.parent, root]))


def _files_of(name: str, roots: Iterable[Path]) -> list[Path]:
    """The file of a module, and those of the packages that it is in."""
    parts = [part for part in name.split(".") if part]
    for root in roots:
        found = []
        for count in range(1, len(parts) + 1):
            stem = root.joinpath(*parts[:count])
            found += [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
        if found:
            return found
    return []
