"""Finding components, implementations, targets and contracts: entry points of installed packages, and ``--impl``."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from npudiff.errors import UsageError, unknown
from npudiff.model.backend import is_backend
from npudiff.model.component import Component
from npudiff.model.contract import Contract
from npudiff.model.implementation import Implementation, Target, TargetUnavailable
from npudiff.model.job import TIMEOUT
from npudiff.model.own import OwnProperty
from npudiff.run.backends import from_backend
from npudiff.run.defined import identity, implementations_in
from npudiff.run.ranks import with_ranks
from npudiff.run.user_modules import UserModule, import_named, is_file_name, is_importable

COMPONENT_HOOKS: list[Callable[[Component], Component]] = []
"""What each component passes through when it is loaded; empty but in processes of ``npudiff score --suite``."""


@dataclass
class _Own:
    """What the files of a user have added in this process."""

    files: list[str] = field(default_factory=list)
    components: dict[str, Component] = field(default_factory=dict)
    properties: list[OwnProperty] = field(default_factory=list)
    implementations: list[Implementation] = field(default_factory=list)


_own = _Own()

_FORMER_PACKAGES = {"device", "properties", "reference"}  # they stood beside npudiff, and are in it now


class OtherComponent(UsageError):
    """A selector names implementations of other components than those that were asked for."""


@functools.cache
def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"npudiff.{group}")}


@functools.cache
def _component_modules() -> dict[str, str]:
    """Return the module of each component: that of an entry point, or each module of a package that one names.

    Of a package, names that begin with an underscore or with ``test_`` are no components. Nothing is imported but the
    package itself, so that a run of one component does not pay for the others.
    """
    found: dict[str, str] = {}
    for point in _entry_points("components").values():
        if point.attr:
            found[point.name] = point.module
            continue
        for info in pkgutil.iter_modules(importlib.import_module(point.module).__path__):
            if not info.name.startswith(("_", "test_")):
                found[info.name] = f"{point.module}.{info.name}"
    return found


def component_names() -> list[str]:
    """Return the names of all components, without importing them."""
    return sorted({*_component_modules(), *_own.components})


def own_files() -> list[str]:
    """Return the files and modules of components that a user has named."""
    return list(_own.files)


def add_own(selector: str) -> list[str]:
    """Import a user's file or module; have its components, properties and implementations known from now on.

    Returns
    -------
    list of str
        Names of its components, and of those that it has properties of.

    Raises
    ------
    UsageError
        If it does not import, has neither, or a component's name is taken.
    """
    user = import_named(selector, "--component")
    held = [value for name, value in vars(user.module).items() if not name.startswith("_")]
    components = {id(one): one for one in held if isinstance(one, Component)}.values()
    properties = [one for one in held if isinstance(one, OwnProperty)]
    if not components and not properties:
        raise UsageError(f"--component {selector}: nothing in it is made by @npudiff.component or @npudiff.property_of")
    if selector not in _own.files:
        for one in components:
            add_component(replace(one, selector=selector), selector)
        for own in properties:
            if own.component not in component_names():
                raise UsageError(f"--component {selector}: {unknown('component', own.component, component_names())}")
        _own.properties += [replace(one, prop=replace(one.prop, selector=selector)) for one in properties]
        _own.implementations += _own_of(user, selector, _installed_implementations())
        _own.files.append(selector)
    return list(dict.fromkeys([*(one.name for one in components), *(one.component for one in properties)]))


def add_component(component: Component, selector: str = "") -> None:
    """Have a component known that is there as an object.

    Raises
    ------
    UsageError
        If another one has its name.
    """
    taken = component.name in _component_modules() or _own.components.get(component.name, component) is not component
    if taken:
        raise UsageError(f"--component {selector}: there is another component called {component.name!r}")
    _own.components[component.name] = component


def target_names() -> list[str]:
    """Return the names of all targets, without importing them."""
    return sorted(_entry_points("targets"))


def load_component(name: str) -> Component:
    """Import one component.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    if name in _own.components:
        return _hooked(_own.components[name])
    modules, points = _component_modules(), _entry_points("components")
    if name not in modules:
        if name.endswith(".py"):
            raise UsageError(
                f"{name} is a file: --impl {name} if it has implementations, --component {name} if it has a component"
            )
        raise unknown("component", name, component_names())
    attribute = (points[name].attr if name in points else None) or "component"
    component = getattr(importlib.import_module(modules[name]), attribute, None)
    if not isinstance(component, Component):
        raise UsageError(f"{modules[name]} has no Component called {attribute!r} (entry points npudiff.components)")
    return _hooked(component)


def _hooked(component: Component) -> Component:
    own = tuple(one.prop for one in _own.properties if one.component == component.name)
    component = replace(component, relations=(*component.relations, *own)) if own else component
    for hook in COMPONENT_HOOKS:
        component = hook(component)
    return component


def load_components(names: Sequence[str]) -> list[Component]:
    """Import the named components, or all of them."""
    return [load_component(name) for name in names or component_names()]


def load_target(name: str, cann: str | None) -> Target:
    """Build a target.

    Raises
    ------
    UsageError
        If there is none of this name, or no such CANN profile.
    TargetUnavailable
        If it cannot run here.
    """
    points = _entry_points("targets")
    if name not in points:
        raise unknown("target", name, points)
    try:
        target = points[name].load()(cann)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not isinstance(target, Target):
        raise UsageError(f"entry point {name!r} of npudiff.targets did not return a Target")
    return with_ranks(target, TIMEOUT, built_in_implementations, load_component)


class Launcher(Protocol):
    """Runs a program on a device of a kind."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        cann: str | None,
        soc: str | None,
        triton: bool,
        devices: int | None,
        ranks: int | None,
        rank_timeout: float | None,
    ) -> int:
        """Run a command where the device says that it has this CANN, and is this chip; or several ranks of it."""


def load_launcher(name: str) -> Launcher:
    """Return what runs a program on a device of a kind.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    points = _entry_points("launchers")
    if name not in points:
        raise unknown("launcher", name, points)
    launcher: Launcher = points[name].load()
    return launcher


def default_target(cann: str | None, otherwise: str = "sim") -> Target:
    """Return the ``npu`` target where a device is visible, else another."""
    try:
        return load_target("npu", cann)
    except TargetUnavailable:
        return load_target(otherwise, cann)


def load_contracts(paths: Sequence[Path]) -> list[Contract]:
    """Ask every package that has a contract for it.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Wheels or folders that are read too.

    Raises
    ------
    UsageError
        If no package has one, or a path cannot be read.
    """
    points = _entry_points("contracts")
    if not points:
        raise UsageError("--contract: no installed package has a contract (entry points npudiff.contracts)")
    contracts = [(name, points[name].load()(paths)) for name in sorted(points)]
    for name, contract in contracts:
        if not isinstance(contract, Contract):
            raise UsageError(f"entry point {name!r} of npudiff.contracts did not return a Contract")
    return [contract for _, contract in contracts]


def built_in_implementations() -> list[Implementation]:
    """Return the implementations that installed packages provide, and those beside components of a user."""
    return [*_installed_implementations(), *_own.implementations]


def _installed_implementations() -> list[Implementation]:
    found: list[Implementation] = []
    for point in _entry_points("implementations").values():
        found.extend(implementations_in(point.load()))
    return found


Provide = Callable[[str], list[Implementation]]
"""Returns the implementations that a file or a module provides."""


def select_implementations(
    components: Iterable[Component], selectors: Sequence[str], provide: Provide | None = None
) -> list[Implementation]:
    """Return the implementations of the components that the selectors name; without selectors, all built-in ones.

    A selector is the name of an implementation (``fia_decode_mask`` or ``sliding_attention.fia_decode_mask``), an
    importable module, or a Python file. ``provide`` is asked for what is not built in, which by default is imported.

    Raises
    ------
    OtherComponent
        If what a selector names implements none of the components.
    UsageError
        If a selector names nothing, or its module fails to import, or two implementations have one name.
    """
    names = {component.name: component for component in components}
    built_in = built_in_implementations()
    chosen: list[Implementation] = []
    for selector in selectors:
        found = [item for item in built_in if selector in (item.name, f"{item.component}.{item.name}")]
        if not found:
            found = _external(selector, built_in, provide)
        fitting = [item for item in found if item.component in names]
        if not fitting:
            owners = ", ".join(sorted({item.component for item in found}))
            raise OtherComponent(f"--impl {selector}: implements {owners}, not {', '.join(sorted(names))}")
        chosen.extend(fitting)
    if not selectors:
        chosen = [item for item in built_in if item.component in names]
    return [_checked(item, names[item.component]) for item in each_once(chosen)]


def given_implementations(components: Iterable[Component], given: Sequence[Implementation]) -> list[Implementation]:
    """Return implementations that are there as objects, checked as those that a selector names.

    Raises
    ------
    UsageError
        If one is of a component that was not asked for, says that it supports what there is not, or has a namesake.
    """
    names = {component.name: component for component in components}
    for item in given:
        if item.component not in names:
            raise OtherComponent(f"{item.name}: implements {item.component}, not {', '.join(sorted(names))}")
    return [_checked(item, names[item.component]) for item in each_once(given)]


def _checked(item: Implementation, component: Component) -> Implementation:
    from npudiff.draw.options import with_options  # noqa: PLC0415 - the process of a candidate has no draws

    axes = with_options(component, item.options).axes
    return replace(item, constraints=item.constraints.checked(axes, f"implementation {item.name}"))


def each_once(items: Sequence[Implementation]) -> list[Implementation]:
    """Return implementations without repetitions; refuse namesakes.

    Findings, tests and known issues say which implementation they are of by its name alone.

    Raises
    ------
    UsageError
        If two have one name.
    """
    seen: dict[tuple[str, str], Implementation] = {}
    for item in items:
        other = seen.setdefault((item.component, item.name), item)
        if inspect.unwrap(other.function) is not inspect.unwrap(item.function):
            raise UsageError(
                f"--impl: {item.component}.{item.name} is in {other.origin} and in {item.origin}: rename one of them"
            )
    return list(seen.values())


def _external(selector: str, built_in: Sequence[Implementation], provide: Provide | None) -> list[Implementation]:
    if is_backend(selector):
        return from_backend(selector)
    if not is_file_name(selector):
        _refuse_former_name(selector)
        if provide is None and not is_importable(selector):
            known = {f"{item.component}.{item.name}" if "." in selector else item.name for item in built_in}
            raise unknown("implementation", selector, known)
    found = _own_of(import_named(selector), selector, built_in) if provide is None else provide(selector)
    twice = [name for name, count in Counter((item.component, item.name) for item in found).items() if count > 1]
    if twice:
        raise UsageError(f"--impl {selector}: two implementations are called {'.'.join(twice[0])}")
    if not found:
        raise UsageError(f"--impl {selector}: no function in it is decorated with @npudiff.implementation")
    for item in found:
        if item.component not in component_names():
            raise UsageError(
                f"--impl {selector}: {item.name}: {unknown('component', item.component, component_names())}"
            )
    return found


def own_implementations(selector: str) -> list[Implementation]:
    """Return the implementations of a file or module that are not part of npudiff, without asking what is installed.

    Raises
    ------
    UsageError
        If it does not import.
    """
    user = import_named(selector)
    own = [replace(item, origin=selector) for item in implementations_in(user.module) if not item.built_in]
    return own if user.neighbours is None else [user.neighbours.around(item) for item in own]


def _own_of(user: UserModule, selector: str, built_in: Sequence[Implementation]) -> list[Implementation]:
    """Return the implementations of a module without built-in ones that it imports; those of one that is built in."""
    name = user.module.__name__
    inside = {identity(item) for item in built_in if f"{item.origin}.".startswith(f"{name}.")}
    outside = {identity(item) for item in built_in} - inside
    found = []
    for item in implementations_in(user.module):
        if identity(item) in inside:
            found.append(item)
        elif identity(item) not in outside:
            own = replace(item, origin=selector, selector=selector)
            found.append(own if user.neighbours is None else user.neighbours.around(own))
    return found


def _refuse_former_name(selector: str) -> None:
    """Refuse a module of npudiff under a name without ``npudiff``, unless the user has a module of this name.

    Findings and workflows that were written when these were packages of their own name such modules; in a checkout
    they would be imported twice.
    """
    top = selector.partition(".")[0]
    if top in _FORMER_PACKAGES and is_importable(f"npudiff.{selector}"):
        own, former = importlib.util.find_spec(f"npudiff.{top}"), importlib.util.find_spec(top)
        same = own is not None and former is not None and _place(own.origin) == _place(former.origin)
        if same or not is_importable(selector):
            raise UsageError(f"--impl {selector}: this module is npudiff.{selector} now")


def _place(origin: str | None) -> Path | None:
    return None if origin is None else Path(origin).resolve()
