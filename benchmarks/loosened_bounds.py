"""Every place in a reference where an error enters, made four times as large, to find those that nobody sees.

A place is an expression that a bound is computed from: a constant of ``reference.bounds``, a name or field that holds
an error, a call that rounds. It is found in the source, multiplied in memory, and the recorded bounds of every
component that stands on its module are computed again (``benchmarks.recorded_bounds``). A place must be seen by one
of them, or by a test of the module: where an error only decides of what nothing is said, only numbers by hand show four
times as much. What changes a bound by less than is tolerated, everywhere, is of second order, and is listed.

``python -m benchmarks.loosened_bounds`` prints the places that nobody sees, and ends with 1 if there are any; with
``--factor 0.25`` bounds are tighter, and correct chains are accused as well. ``benchmarks.covering_cases`` draws cases
that see more.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import dataclasses
import functools
import gc
import importlib
import math
import os
import re
import sys
import types
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

import npudiff.reference
from benchmarks.recorded_bounds import Recorded, Summary, bounds_of, read
from npudiff.model.component import Component
from npudiff.run.discovery import load_component

FACTOR = 4.0

ROOT = Path(npudiff.reference.__file__).parent

TESTS = Path(__file__).parents[1] / "tests" / "reference"

ERROR_NAME = re.compile(
    r"(?i)(^|_)(error|errors|bound|bounds|rounding|roundings|roundoff|independent|relative|brought|common|carried|reach"
    r"|moved|mass|furthest|stretch|rounded|squares|step|accumulated|underflow|confidence|even|exponential)"
    r"($|_(?!index))"
)
"""Words in names of what a bound is computed from."""

NO_ERRORS = {"step": ("hybrid_pools.", "state_pools.", "decoder_layer.", "scale_pack")}
"""Names with such a word, and modules where they are something else: a step of a history, a power of two."""

ROUNDS = ("rounded", "in_float32")
"""Methods after which numbers have one error more: that one is made larger."""

CALLS = ("unit_roundoff", "underflow_step", "accumulation_error", "rounding_scale", "carried", "carried_gain",
         "gain_bound", "rounding_gain", "rstd_error")  # fmt: skip

ASKS = ("any", "isfinite", "isposinf", "zeros_like", "ones_like", "expand_as", "new_zeros", "len")
"""Functions that say the same of four times as much, of a name: a comparison inside may be another one."""

ERROR_FIELDS = ("error", "bound", "independent", "brought", "common", "relative")
"""Fields of results that are made larger as a whole."""


def _short(module: str) -> str:
    return module.removeprefix("npudiff.reference.")


@dataclass(frozen=True)
class Place:
    """An expression in a reference."""

    module: str
    function: tuple[str, int] | None
    """Name and first line of the function that it stands in, the outermost one; None for the module's own constants."""
    line: int
    column: int
    text: str

    @property
    def name(self) -> str:
        """Module, function and expression: what stays when lines move."""
        parts = [_short(self.module), *([self.function[0]] if self.function else [])]
        return f"{'.'.join(parts)}: {self.text}"

    @property
    def where(self) -> str:
        """The same with its line."""
        return f"{self.module.removeprefix('npudiff.').replace('.', '/')}.py:{self.line} {self.name}"


class _Was(Enum):
    """What an expression was, one time that it was to be made larger."""

    SOME = "a number other than 0"
    ZERO = "0, times which anything is 0"
    NO_NUMBER = "no number"


_evaluated = Counter[_Was]()
"""What the expression was since this was emptied, and how often."""


def larger(value: Any, factor: float) -> Any:
    """Return a number, a tensor or the errors of a result, times a factor; anything else as it is."""
    made = _times(value, factor)
    _evaluated[_Was.NO_NUMBER if made is value else _Was.SOME if _differ(value, made) else _Was.ZERO] += 1
    return made


def _differ(one: Any, other: Any) -> bool:
    """Whether a number in one is another than in the other."""
    if isinstance(one, torch.Tensor):
        return not torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, tuple):
        return any(map(_differ, one, other))
    if dataclasses.is_dataclass(one):
        return any(_differ(getattr(one, name), getattr(other, name)) for name in _error_fields(one))
    return bool(one != other)


def _error_fields(value: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(value)} & set(ERROR_FIELDS)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, torch.Tensor):
        return value * factor if value.is_floating_point() else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value * factor
    if isinstance(value, tuple):
        made = tuple(_times(item, factor) for item in value)
        return value if all(one is other for one, other in zip(made, value, strict=True)) else made
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {name: _times(getattr(value, name), factor) for name in _error_fields(value)}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def rounds_more(factor: float, before: Any, method: str, *arguments: Any) -> Any:
    """Call a method that adds an error, and add it as many times."""
    after = getattr(before, method)(*arguments)
    name = "error" if hasattr(after, "error") else "independent"
    old, new = getattr(before, name), getattr(after, name)
    _evaluated[_Was.SOME if _differ(old, new) else _Was.ZERO] += 1
    return dataclasses.replace(after, **{name: old + (new - old) * factor})


def _is_named(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute)


class _Enlarge(ast.NodeTransformer):
    """Wraps one expression, or all when looking for them."""

    def __init__(self, module: str, at: tuple[int, int] | None = None) -> None:
        self.module, self.at, self.found = _short(module), at, list[tuple[int, int, str]]()

    def _wrapped(self, node: ast.expr, new: ast.expr) -> ast.expr:
        self.found.append((node.lineno, node.col_offset, ast.unparse(node)))
        return ast.copy_location(new, node) if self.at == (node.lineno, node.col_offset) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        zero = any(isinstance(one, ast.Constant) and one.value == 0 for one in node.comparators)
        if (zero and _is_named(node.left)) or any(isinstance(one, ast.Is | ast.IsNot) for one in node.ops):
            return node  # four times as much says the same
        self.generic_visit(node)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        *asked, last = node.values  # of a name that is not the last it is asked whether there is anything
        node.values = [*(one if _is_named(one) else self.visit(one) for one in asked), self.visit(last)]
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        given = [node.func.value, *node.args] if isinstance(node.func, ast.Attribute) else node.args
        if name in ASKS and all(_is_named(one) or isinstance(one, ast.Constant) for one in given):
            return node
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ROUNDS:
            made = ast.Call(
                ast.Name("__rounds_more__", ast.Load()),
                [node.func.value, ast.Constant(node.func.attr), *node.args],
                node.keywords,
            )
            end = (node.end_lineno or 0, node.end_col_offset or 0)  # a chain of calls begins at one place
            self.found.append((*end, ast.unparse(node)))
            return ast.copy_location(made, node) if self.at == end else node
        if isinstance(node.func, ast.Name) and node.func.id.lstrip("_") in CALLS:
            return self._wrapped(node, self._times(node))
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        other = self.module.startswith(NO_ERRORS.get(node.id, ()))
        named = ERROR_NAME.search(node.id) and node.id.lstrip("_") not in CALLS and not other
        wanted = isinstance(node.ctx, ast.Load) and named
        return self._wrapped(node, self._times(node)) if wanted else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        wanted = isinstance(node.ctx, ast.Load) and ERROR_NAME.search(node.attr) and node.attr not in ROUNDS
        if not wanted:
            return node
        end = (node.end_lineno or 0, node.end_col_offset or 0)
        self.found.append((*end, ast.unparse(node)))
        return ast.copy_location(self._times(node), node) if self.at == end else node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        return node  # messages

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        return node  # annotations and defaults

    @staticmethod
    def _times(node: ast.expr) -> ast.Call:
        return ast.Call(ast.Name("__larger__", ast.Load()), [node], [])


def places(module: str) -> list[Place]:
    """Return the places of a module."""
    path = Path(importlib.import_module(module).__file__ or "")
    found: list[Place] = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        for function in _functions(node):
            finder = _Enlarge(module)
            for statement in function.body:
                finder.visit(statement)
            first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
            found += [Place(module, (function.name, first), *where) for where in finder.found]
        if isinstance(node, ast.Assign) and ERROR_NAME.search(ast.unparse(node.targets[0])):
            value = ast.unparse(node.targets[0])
            if isinstance(getattr(sys.modules[module], value, None), (int, float)):
                found.append(Place(module, None, node.lineno, 0, value))
    return found


def _functions(node: ast.stmt) -> Iterator[ast.FunctionDef]:
    if isinstance(node, ast.FunctionDef):
        yield node
    elif isinstance(node, ast.ClassDef):
        yield from (item for item in node.body if isinstance(item, ast.FunctionDef))


@contextlib.contextmanager
def enlarged(place: Place, factor: float) -> Iterator[None]:
    """Make an expression as many times as large while the context lasts."""
    import builtins

    vars(builtins)["__larger__"] = functools.partial(larger, factor=factor)
    vars(builtins)["__rounds_more__"] = functools.partial(rounds_more, factor)
    with contextlib.ExitStack() as undone:
        if place.function is None:
            _enlarge_constant(place, factor, undone)
        else:
            _enlarge_code(place, undone)
        _forget()
        yield
    _forget()


def _enlarge_constant(place: Place, factor: float, undone: contextlib.ExitStack) -> None:
    value = getattr(sys.modules[place.module], place.text)
    for name, module in list(sys.modules.items()):
        if name.startswith("npudiff.reference") and vars(module).get(place.text) is value:
            setattr(module, place.text, value * factor)
            undone.callback(setattr, module, place.text, value)


def _enlarge_code(place: Place, undone: contextlib.ExitStack) -> None:
    module = sys.modules[place.module]
    path = module.__file__ or ""
    tree = _Enlarge(place.module, (place.line, place.column)).visit(ast.parse(Path(path).read_text(encoding="utf-8")))
    compiled = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True, flags=_FLAGS)
    (new,) = [code for code in _codes(compiled) if (code.co_name, code.co_firstlineno) == place.function]
    for function in _functions_of_references()[(path, *(place.function or ()))]:
        undone.callback(setattr, function, "__code__", function.__code__)
        function.__code__ = new


def _objects() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some packages warn of what they have when it is asked for its type
        yield from gc.get_objects()


@functools.cache
def _functions_of_references() -> dict[tuple[str, ...], list[types.FunctionType]]:
    """Every function, by file, name and first line; whoever imported it holds the same object."""
    found = collections.defaultdict[Any, list[types.FunctionType]](list)
    for one in _objects():
        if isinstance(one, types.FunctionType) and (one.__module__ or "").startswith("npudiff.reference"):
            found[one.__code__.co_filename, one.__code__.co_name, one.__code__.co_firstlineno].append(one)
    return found


_FLAGS = __import__("__future__").annotations.compiler_flag


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.cache
def _caches() -> list[Any]:
    """What references keep between calls."""
    kind = type(functools.lru_cache(lambda: None))
    return [one for one in _objects() if isinstance(one, kind)
            and (one.__module__ or "").startswith("npudiff.reference")]  # fmt: skip


def _forget() -> None:
    for cache in _caches():
        cache.cache_clear()


def modules_below(module: str) -> set[str]:
    """Return the modules of references that one stands on, itself included."""
    seen, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        tree = ast.parse(Path(importlib.import_module(name).__file__ or "").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("npudiff.reference"):
                below = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
                waiting += [one for one in below if _is_module(one)]
    return seen


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[2:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@functools.cache
def places_of(component: str) -> tuple[Place, ...]:
    """The places that a component's reference may come by."""
    reference = load_component(component).reference
    return tuple(place for module in sorted(modules_below(reference.__module__)) for place in places(module))


def all_places(components: Iterable[str]) -> list[Place]:
    """Return the places of all references, those that several components come by once."""
    return list(dict.fromkeys(place for name in components for place in places_of(name)))


Bounds = dict[str, Summary]


def effects(component: Component, place: Place, factor: float, cases: Sequence[tuple[Any, Bounds]]) -> list[float]:
    """Return how much a place changes the bounds of each case, where 1 is as much as is tolerated.

    Parameters
    ----------
    component : Component
        Whose reference is run.
    place : Place
        What is made larger.
    factor : float
        By how much.
    cases : sequence
        Inputs, and their bounds.
    """
    with enlarged(place, factor):
        return [_change(component, inputs, before) for inputs, before in cases]


def _change(component: Component, inputs: Any, before: Bounds) -> float:
    try:
        after = bounds_of(component.reference(inputs))
    except (ValueError, RuntimeError, TypeError):
        return math.inf  # such as steps that are too large for int8: it does not go unseen
    return max((before[name].change(after[name]) for name in before), default=0.0)


class Effect(Enum):
    """What becomes of bounds when a place is made larger."""

    SEEN = "seen"
    BY_TESTS = "seen by tests of the module"
    SMALL = "of second order: no bound changes by more than is tolerated"
    NOTHING = "UNSEEN: no bound changes"
    ZERO = "0 in every case, where four times as much is 0"
    NO_NUMBER = "no number"
    NOT_REACHED = "NOT REACHED"


LOST = (Effect.NOTHING, Effect.NOT_REACHED)
"""What must not become of any: nobody would see a bound that is made looser there."""


def effect(place: Place, factor: float, recorded: Mapping[str, Sequence[Recorded]]) -> tuple[Effect, dict[str, float]]:
    """Return what becomes of the recorded bounds of all components, and the largest change of each."""
    _evaluated.clear()
    changes = seen_by(place, factor, recorded)
    largest = max(changes.values(), default=0.0)
    if largest:
        return (Effect.SEEN if largest > 1 else Effect.SMALL), changes
    return _without_a_change(_evaluated.copy(), place, factor, recorded), changes


def _without_a_change(
    was: Counter[_Was], place: Place, factor: float, recorded: Mapping[str, Sequence[Recorded]]
) -> Effect:
    """Why nothing that is recorded changes."""
    if was[_Was.NO_NUMBER] == was.total() != 0:
        return Effect.NO_NUMBER
    if moves(place, factor, recorded):
        return Effect.SMALL
    if tests_see(place, factor):
        return Effect.BY_TESTS
    if not was:
        return Effect.NOT_REACHED
    return Effect.NOTHING if was[_Was.SOME] else Effect.ZERO


def seen_by(place: Place, factor: float, recorded: Mapping[str, Sequence[Recorded]]) -> dict[str, float]:
    """Return by how much a place changes what is recorded, at most, for each component that stands on it."""
    changes = {}
    for name, kept in recorded.items():
        if place in places_of(name) and kept:
            changes[name] = max(effects(load_component(name), place, factor, _prepared(name, tuple(kept))))
    return changes


def moves(place: Place, factor: float, recorded: Mapping[str, Sequence[Recorded]]) -> bool:
    """Whether any bound of any recorded case changes at all: less than is kept of it, say."""
    for name, kept in recorded.items():
        if place in places_of(name) and kept:
            component = load_component(name)
            cases = [inputs for inputs, _ in _prepared(name, tuple(kept))]
            before = [_all_bounds(component, inputs) for inputs in cases]
            with enlarged(place, factor):
                after = [_all_bounds(component, inputs) for inputs in cases]
            if any(not torch.equal(*pair) for pair in zip(before, after, strict=True)):
                return True
    return False


def _all_bounds(component: Component, inputs: Any) -> torch.Tensor:
    expected = component.reference(inputs).values()
    return torch.cat([part.flatten() for one in expected for part in (one.bound, one.gain) if part is not None])


def tests_see(place: Place, factor: float) -> bool:
    """Whether a test that imports the module of a place fails where it is made larger.

    Raises
    ------
    RuntimeError
        If one fails anyway.
    """
    name = re.escape(_short(place.module))
    imports = re.compile(rf"\bimport {name}\b|reference\.{name}\b")
    files = [path for path in sorted(TESTS.glob("test_*.py")) if imports.search(path.read_text(encoding="utf-8"))]
    kept = tuple(str(path) for path in files if path.stem != "test_recorded_bounds")
    if not kept:
        return False
    if not _pass(kept):
        raise RuntimeError(f"they fail as they are: {', '.join(kept)}")
    with enlarged(place, factor):
        return not _pass.__wrapped__(kept)


_ALONE = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")


@functools.cache
def _pass(files: tuple[str, ...]) -> bool:
    """Whether all tests of some files pass, in a process of their own: what they leave is no business of others."""
    pid = os.fork()
    if not pid:
        code = 99  # raised: no verdict of tests
        try:
            torch.set_num_threads(1)  # it has no others, and would wait for them
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            code = int(pytest.main([*_ALONE, *files]))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code}: {', '.join(files)}")
    return code == pytest.ExitCode.OK


_ready: dict[str, list[tuple[Any, Bounds]]] = {}


def _prepared(name: str, kept: Sequence[Recorded]) -> list[tuple[Any, Bounds]]:
    """Inputs and bounds of the kept cases of a component, built once."""
    if name not in _ready:
        _ready[name] = [(one.inputs(load_component(name)), one.bounds) for one in kept]
    return _ready[name]


def main() -> int:
    """Print the places that nobody sees."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loosened_bounds", description=__doc__)
    parser.add_argument("--factor", type=float, default=FACTOR, help="times which a bound is made")
    parser.add_argument("--all", action="store_true", help="print every place, and who sees it")
    parser.add_argument("--only", metavar="REGEX", default="", help="places whose module, function and text it matches")
    options = parser.parse_args()
    recorded = read()
    counts = Counter[Effect]()
    for place in (one for one in all_places(recorded) if re.search(options.only, one.name)):
        became, changes = effect(place, options.factor, recorded)
        counts[became] += 1
        said = ", ".join(f"{name} {change:.2g}" for name, change in changes.items() if change)
        if options.all or became is not Effect.SEEN:
            print(f"{place.where}: {became.value}{': ' if said else ''}{said}", flush=True)
    print(", ".join(f"{count} {became.name.lower().replace('_', ' ')}" for became, count in counts.items()))
    return 1 if any(counts[became] for became in LOST) else 0


if __name__ == "__main__":
    sys.exit(main())
