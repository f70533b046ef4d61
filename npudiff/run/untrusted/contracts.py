"""What a candidate's process can import of npudiff: contracts without references, and nothing that judges.

A contract is a class of ``npudiff.reference`` whose name ends with ``Inputs`` or (of a rank) ``Part``, a constant, the
whole of a module called ``contract`` or ``inputs``, and what these use in turn.
All other functions and classes are left out when a module is loaded: they were never in the process.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

REFERENCE = "npudiff.reference"

HIDDEN = ("npudiff.properties", "npudiff.judge", "npudiff.draw", "npudiff.device.mutants")
"""What knows the right answer, or which cases come."""

Name = tuple[str, str]
"""A module of ``npudiff.reference``, and a name in it."""


def hide_references() -> None:
    """Leave this process the contracts of ``npudiff.reference`` only.

    Raises
    ------
    RuntimeError
        If anything that is to be hidden was imported before.
    """
    loaded = [name for name in sys.modules if _below(name, (REFERENCE, *HIDDEN))]
    if loaded:
        raise RuntimeError(f"imported already: {', '.join(loaded)}")
    sys.meta_path.insert(0, _ContractFinder(needed_by_contracts(Path(__file__).parents[2] / "reference")))


class _ContractFinder(MetaPathFinder):
    """Finds modules of references without their functions, and refuses what judges."""

    def __init__(self, needed: Collection[Name]) -> None:
        self._needed = needed

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module; raises ``ImportError`` for one that is hidden."""
        if _below(name, HIDDEN):
            raise ImportError(f"{name} is not there for a candidate, which gets inputs and gives outputs", name=name)
        if not _below(name, (REFERENCE,)):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _ContractLoader(name, spec.origin, self._needed)
        return spec


class _ContractLoader(SourceFileLoader):
    """Loads a module without what no contract needs."""

    def __init__(self, name: str, path: str, needed: Collection[Name]) -> None:
        super().__init__(name, path)
        self._needed = needed

    def get_code(self, fullname: str) -> Any:  # noqa: ANN401 - a code object, as of the base class
        """Compile the contract; bytecode that is there is of the whole module."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        tree.body = [one for statement in tree.body for one in _kept(fullname, statement, self._needed)]
        return self.source_to_code(tree, path)  # it takes trees too


def _kept(module: str, statement: ast.stmt, needed: Collection[Name]) -> Iterator[ast.stmt]:
    """Yield a statement of a module if a contract has it; of an import, what is needed here or where it is from."""
    if isinstance(statement, ast.ImportFrom) and _below(statement.module or "", (REFERENCE,)):
        places = {(module, _bound(one)): one for one in statement.names}
        places |= {(statement.module or "", one.name): one for one in statement.names}
        statement.names = list(dict.fromkeys(one for place, one in places.items() if place in needed))
        if statement.names:
            yield statement
    elif not isinstance(statement, ast.FunctionDef | ast.ClassDef) or (module, statement.name) in needed:
        yield statement


def needed_by_contracts(folder: Path) -> set[Name]:
    """Return the names that contracts need, and those that they need in turn.

    Parameters
    ----------
    folder : pathlib.Path
        Where ``npudiff.reference`` lies.
    """
    trees = {
        _module_name(path.relative_to(folder)): ast.parse(path.read_bytes()) for path in sorted(folder.rglob("*.py"))
    }
    defined = {(module, name): one for module, tree in trees.items() for one in tree.body for name in _defined(one)}
    contracts = [(module, one) for module, tree in trees.items() for one in tree.body if _is_contract(module, one)]
    needed = {(module, name) for module, one in contracts for name in _defined(one)}
    while contracts:
        module, statement = contracts.pop()
        for name in {(module, used) for used in _used(statement)} - needed:
            needed.add(name)
            contracts += _followed(name, defined)
    return needed


def _followed(name: Name, defined: Mapping[Name, ast.stmt]) -> list[tuple[str, ast.stmt]]:
    """The function or class of a name; if it is imported from another module, the name there."""
    statement = defined.get(name)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [(name[0], statement)]
    if isinstance(statement, ast.ImportFrom) and statement.module is not None:
        origin = next(one.name for one in statement.names if _bound(one) == name[1])
        other = defined.get((statement.module, origin))
        return [] if other is None else [(statement.module, ast.Expr(ast.Name(origin, ast.Load())))]
    return []


def _is_contract(module: str, statement: ast.stmt) -> bool:
    """Whether a statement is there even if nothing needs it."""
    if isinstance(statement, ast.ClassDef):
        return statement.name.endswith(("Inputs", "Part")) or module.rpartition(".")[2] in ("contract", "inputs")
    return not isinstance(statement, ast.FunctionDef | ast.Import | ast.ImportFrom)


def _module_name(path: Path) -> str:
    return ".".join((REFERENCE, *(part for part in path.with_suffix("").parts if part != "__init__")))


def _bound(name: ast.alias) -> str:
    return name.asname or name.name.partition(".")[0]


def _defined(statement: ast.stmt) -> list[str]:
    """The names of functions, classes and imports that a statement of a module brings."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    return [_bound(one) for one in statement.names] if isinstance(statement, ast.Import | ast.ImportFrom) else []


def _used(statement: ast.AST) -> Iterable[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _below(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)
