"""What a component asks for and what there is of it: the contract that whoever writes a kernel reads.

Inputs are a dataclass; what each field means is the text under it in the source, where its author wrote it. Outputs
are what the reference's docstring says that it returns.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from npudiff.judge.others import properties_with_others
from npudiff.model.case import declaration
from npudiff.model.component import Component
from npudiff.model.implementation import Implementation


@dataclass(frozen=True)
class InputField:
    """A field of a component's inputs."""

    name: str
    type: str
    """Its annotation."""
    meaning: str
    """What its author says of it: shape, dtype, meaning. Empty where nothing is said."""
    fields: tuple[InputField, ...] = ()
    """Those of the dataclass that it is; only where a dataclass comes for the first time."""


@dataclass(frozen=True)
class ListedMethod:
    """A method of the object that an implementation of a component with history opens."""

    name: str
    signature: str
    meaning: str


@dataclass(frozen=True)
class ListedAxis:
    """An axis of a component's cases."""

    name: str
    meaning: str
    values: str
    """The values that it can have, in words."""


@dataclass(frozen=True)
class ListedProperty:
    """Something that must hold of each implementation."""

    name: str
    summary: str


@dataclass(frozen=True)
class ListedImplementation:
    """An implementation."""

    name: str
    summary: str
    wrong: str
    """The bug that it re-creates; empty for one that is right."""
    supports: tuple[str, ...]
    """Alternatives of axes and values, in words; none where it supports everything."""
    options: Mapping[str, tuple[str, ...]]
    """Name of an option to its values."""


OF_TENSORS = "a tensor of another dtype, with an axis more, or with a row less"
"""What can be wrong with the inputs of every component."""


@dataclass(frozen=True)
class ListedComponent:
    """A component: what an implementation of it is given, what it returns, and how it is tested."""

    name: str
    summary: str
    inputs_class: str
    """Full name of the dataclass of inputs."""
    inputs: tuple[InputField, ...]
    outputs: tuple[str, ...]
    """Names of the outputs; an implementation that returns a single tensor returns the first."""
    returns: str
    """What the reference's docstring says of them: shapes, dtypes, meaning."""
    history: bool
    """Whether an implementation opens a live object, and a case is a sequence of steps."""
    methods: tuple[ListedMethod, ...]
    """What such an object must be able to do."""
    ranks: bool
    """Whether several processes compute the answer: an implementation is what one of them runs, and is given its part
    of the inputs."""
    axes: tuple[ListedAxis, ...]
    properties: tuple[ListedProperty, ...]
    illegal: tuple[str, ...]
    """What can be wrong with inputs besides their tensors, which one that says ``checks=True`` has to refuse."""
    models: tuple[str, ...]
    """Names of models whose sizes are known, for ``--model``."""
    implementations: tuple[ListedImplementation, ...]


def listed(component: Component, implementations: Iterable[Implementation]) -> ListedComponent:
    """Return what there is to say of a component, and of those implementations that are of it."""
    own = [item for item in implementations if item.component == component.name]
    named = {prop.name: prop for item in own for prop in properties_with_others(component, item)}
    history = component.history
    kind = _inputs_class(component) if history is None or history.given is None else history.given
    if component.ranks is not None:
        kind = _returned(component.ranks.part) or kind
    return ListedComponent(
        component.name,
        component.summary,
        f"{kind.__module__}.{kind.__qualname__}" if kind is not None else "",
        fields_of(kind) if kind is not None else (),
        component.outputs,
        section_of(inspect.getdoc(component.reference) or "", "Returns"),
        history is not None,
        tuple(_methods(history.opens)) if history is not None and history.opens is not None else (),
        component.ranks is not None,
        tuple(ListedAxis(name, axis.meaning, axis.options) for name, axis in component.axes.items()),
        tuple(ListedProperty(name, prop.summary) for name, prop in named.items()),
        tuple(kind.what for kind in component.illegal),
        tuple(sorted(component.profiles)),
        tuple(
            ListedImplementation(
                item.name, item.summary, item.wrong or "", tuple(item.constraints.summary()), dict(item.options)
            )
            for item in own
        ),
    )


def lines_of(component: ListedComponent, *, full: bool) -> list[str]:
    """Return a component as lines of a listing: names only, or all of it."""
    lines = [f"{component.name}: {component.summary}"]
    if full:
        lines += [*_contract(component)]
    for title, chosen in (
        ("implementations", [one for one in component.implementations if not one.wrong]),
        ("wrong on purpose", [one for one in component.implementations if one.wrong]),
    ):
        lines += [f"  {title}"] if chosen else []
        for one in chosen:
            lines.append(f"    {one.name:26} {one.summary}")
            if full:
                lines += [f"    {'':26} {line}" for line in _more(one)]
    if full:
        lines += ["  properties", *(f"    {one.name:26} {one.summary}" for one in component.properties)]
        lines += ["  axes, for --where and supports="]
        for axis in component.axes:
            lines += [f"    {axis.name:26} {axis.meaning}", f"    {'':26} {axis.values}"]
    if full and not component.history:
        lines += ["  illegal inputs, for checks=True", *(f"    {one}" for one in (*component.illegal, OF_TENSORS))]
    if full:
        lines += ["  models, for --model", f"    {', '.join(component.models) or 'none'}"]
    return [*lines, ""]


def _more(one: ListedImplementation) -> Iterator[str]:
    if one.wrong:
        yield one.wrong
    yield from (f"option {name}: {', '.join(values)}" for name, values in one.options.items())
    yield from (f"supports {line}" for line in one.supports)


def _contract(component: ListedComponent) -> Iterator[str]:
    """Yield what an implementation is given, and what it has to return."""
    called = "opens an object with (inputs, target)" if component.history else "is called with (inputs, target)"
    if component.ranks:
        called = "is what each rank runs, called with (inputs, target) where torch.distributed is initialised"
    yield f"  inputs: {component.inputs_class or 'of no declared class'}; an implementation {called}"
    yield from _fields(component.inputs, "    ")
    if component.methods:
        yield "  methods of the object that it opens"
    for one in component.methods:
        yield f"    {one.name}{one.signature}"
        yield from (f"        {line}" for line in one.meaning.splitlines())
    whose = " of all ranks, each of which returns its rows" if component.ranks else ""
    yield f"  outputs: {', '.join(component.outputs)}{whose}; a single tensor that is returned is the first"
    yield from (f"    {line}" for line in component.returns.splitlines())


def _fields(fields: Sequence[InputField], indent: str) -> Iterator[str]:
    for one in fields:
        yield f"{indent}{one.name}: {one.type}"
        yield from (f"{indent}    {line}" for line in one.meaning.splitlines())
        yield from _fields(one.fields, indent + "    ")


def _methods(protocol: type) -> Iterator[ListedMethod]:
    """Yield the public methods of a protocol, in their order."""
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            yield ListedMethod(name, str(inspect.signature(function)).replace("'", ""), inspect.getdoc(function) or "")


def fields_of(kind: type, seen: set[type] | None = None) -> tuple[InputField, ...]:
    """Return the fields of a dataclass with what is written under them; of dataclasses in it, too.

    Parameters
    ----------
    kind : type
        A dataclass.
    seen : set of type
        Dataclasses whose fields were told already.
    """
    seen = {kind} if seen is None else seen
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= _meanings(base)
    types = _types(kind)
    found = []
    for field in dataclasses.fields(kind):
        inner: list[InputField] = []
        for one in _dataclasses_in(types.get(field.name)):
            if one not in seen:
                seen.add(one)
                inner += fields_of(one, seen)
        shown = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        found.append(InputField(field.name, shown, meanings.get(field.name, ""), tuple(inner)))
    return tuple(found)


def _types(kind: type) -> dict[str, object]:
    """Types of the fields of a class, as far as they can be resolved here."""
    with contextlib.suppress(Exception):  # a name that only a type checker imports: the annotation's text is shown
        return typing.get_type_hints(kind)
    return {}


def _dataclasses_in(kind: object) -> Iterator[type]:
    """Yield the dataclasses that an annotation names, in unions and containers too."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
    for part in typing.get_args(kind):
        yield from _dataclasses_in(part)


def _returned(function: Callable[..., object]) -> type | None:
    """The dataclass that a function says it returns."""
    with contextlib.suppress(Exception):  # somebody's own function, with annotations of any kind or none
        kind = typing.get_type_hints(function).get("return")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _inputs_class(component: Component) -> type | None:
    """The dataclass of inputs: as annotated, or that of the simplest case of a component which has no annotations."""
    if annotated := _returned(component.inputs):
        return annotated
    with contextlib.suppress(Exception):  # of a case that is not simple, nothing is said
        said = declaration(component.case_type).quantities
        options = {name: one.drawn or one.legal for name, one in said.items() if not callable(one.drawn)}
        needed = [one.name for one in dataclasses.fields(component.case_type) if one.default is dataclasses.MISSING]
        made = type(component.inputs(component.case_type(**{name: next(iter(options[name])) for name in needed})))
        return made if dataclasses.is_dataclass(made) else None
    return None


def _meanings(kind: type) -> Mapping[str, str]:
    """Name of a field to the text under it; one text may stand under several fields."""
    meanings: dict[str, str] = {}
    waiting: list[str] = []
    for statement in _class_body(kind.__module__, kind.__qualname__):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            waiting.append(statement.target.id)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            meanings |= dict.fromkeys(waiting, inspect.cleandoc(str(statement.value.value)))
            waiting = []
    return meanings


@functools.cache
def _class_body(module: str, name: str) -> Sequence[ast.stmt]:
    """The statements of a class as they are written; nothing where there is no source."""
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        body: Sequence[ast.stmt] = ast.parse(inspect.getsource(sys.modules[module])).body
        for part in name.split("."):
            body = next((one.body for one in body if isinstance(one, ast.ClassDef) and one.name == part), [])
        return body
    return ()


def section_of(docstring: str, title: str) -> str:
    """Return what a section of a docstring in numpy's style says, without the line of the type."""
    lines = docstring.splitlines()
    places = [place for place, line in enumerate(lines[:-1]) if line == title and set(lines[place + 1]) == {"-"}]
    if not places:
        return ""
    body = lines[places[0] + 2 :]
    ends = [place for place, line in enumerate(body) if line and set(line) == {"-"}]
    body = body[: ends[0] - 1] if ends else body
    return inspect.cleandoc("\n".join(body[1:])) if body else ""
