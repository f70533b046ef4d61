"""A mutant in place of the implementation that it was made from, in all processes of somebody's own tests.

``npudiff score --suite`` says by an environment variable what stands in place of what. In the processes of the suite
the hooks below are installed when implementations and components are first imported; nowhere else does anything of
this run. A test that imports the implementation, or finds it by its name, calls the mutant then.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.run.on_import import Execute

if TYPE_CHECKING:  # its hooks are called while these are imported
    from npudiff.model.component import Component
    from npudiff.model.implementation import Implementation

VARIABLE = "NPUDIFF_IN_PLACE"
HOOKS = {
    "npudiff.model.implementation": f"{__name__}:on_implementations",
    "npudiff.run.discovery": f"{__name__}:on_components",
}
"""What is called when a process of the suite imports these; see :func:`npudiff.run.on_import.hooked`."""

Function = Callable[[Any, Any], Any]

_INSIDE: ContextVar[bool] = ContextVar("inside a mutant", default=False)
_CASES: dict[int, tuple[weakref.ref[Any], Any]] = {}


@dataclass(frozen=True)
class Substitution:
    """What stands in place of what."""

    original: str = ""
    mutant: str = ""
    """``component.name`` of both; both empty where nothing is replaced."""
    stateful: bool = False
    """Whether the mutant keeps something between calls."""
    record: str = ""
    """File to which the ``component.name`` of each implementation that is called is appended; empty for none."""

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes in which it holds."""
        return {VARIABLE: json.dumps(asdict(self))}


def on_implementations(execute: Execute) -> Execute:
    """Put the mutant in its place as soon as implementations can be defined."""

    def executed(module: ModuleType) -> None:
        execute(module)
        module.DEFINITION_HOOKS.append(placed)

    return executed


def on_components(execute: Execute) -> Execute:
    """Remember of all inputs by which case they were made."""

    def executed(module: ModuleType) -> None:
        execute(module)
        module.COMPONENT_HOOKS.append(remembered)

    return executed


def placed(item: Implementation) -> Implementation:
    """Return what stands in the place of an implementation here. Mutants call correct implementations as they are."""
    given = _given(os.environ[VARIABLE])
    if item.wrong is not None:
        return replace(item, function=_by_itself(item.function))
    name = f"{item.component}.{item.name}"
    if name != given.original:
        return replace(item, function=_recorded(name, item.function, given))

    def opens() -> Function:
        return _recorded(name, _stand(item.fresh().function, given.mutant), given)

    return replace(item, function=opens(), factory=opens if item.factory is not None or given.stateful else None)


def remembered(component: Component) -> Component:
    """Return a component whose inputs are known by their cases: a mutant stands in only where it supports the case."""
    return replace(component, inputs=remembering(component.inputs))


def remembering(inputs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make inputs known by their cases."""

    @functools.wraps(inputs)
    def made(case: AnyCase) -> AnyInputs:
        result = inputs(case)
        key = id(result)
        with contextlib.suppress(TypeError):  # a class with __slots__ has no weak references: its case stays unknown
            _CASES[key] = weakref.ref(result, lambda _: _CASES.pop(key, None)), case
        return result

    return made


@functools.cache
def _given(text: str) -> Substitution:
    return Substitution(**json.loads(text))


@functools.cache
def _mutant(name: str) -> tuple[Implementation, Callable[[Any], Mapping[str, Any]]]:
    """Return the mutant of this name, and what gives the values of its axes."""
    from npudiff.run.discovery import load_component, select_implementations  # noqa: PLC0415 - it imports implementations

    component = load_component(name.partition(".")[0])
    (found,) = select_implementations([component], [name])
    return found, component.values


def _stand(original: Function, name: str) -> Function:
    """Call the mutant where it was made for the case, and the original elsewhere.

    Of inputs that were made by hand nobody knows the case: the mutant is called, and where it raises the original.
    """
    opened: list[Function] = []

    def function(inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        if _INSIDE.get():
            return original(inputs, target)
        mutant, values = _mutant(name)
        known = _CASES.get(id(inputs))
        if known is not None and mutant.constraints.reason_against(values(known[1])) is not None:
            return original(inputs, target)
        if not opened:
            opened.append(mutant.fresh().function)
        try:
            with _inside():
                return opened[0](inputs, target)
        except Exception:
            if known is not None:
                raise
            return original(inputs, target)

    return function


def _by_itself(function: Function) -> Function:
    def call(inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        with _inside():
            return function(inputs, target)

    return call


def _recorded(name: str, function: Function, given: Substitution) -> Function:
    """Append the name to the record once, however often it is called here."""
    if not given.record:
        return function
    seen: list[bool] = []

    def call(inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        if not seen and not _INSIDE.get():
            seen.append(True)
            with Path(given.record).open("a", encoding="utf-8") as record:
                record.write(f"{name}\n")
        return function(inputs, target)

    return call


@contextmanager
def _inside() -> Iterator[None]:
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)
