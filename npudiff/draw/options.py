"""Options of an implementation, such as a flag of a backend: part of its cases, so that they are drawn, shown and kept.

A component with options is the same component with a field more in its cases for each of them, and with inputs that
carry their values. Cases shrink towards the first value of each option.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, assume
from npudiff.draw.chosen import chosen, draw_of
from npudiff.errors import UsageError
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.case import OPTION
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, allows
from npudiff.model.implementation import ImplementationFunction

Options = Mapping[str, tuple[str, ...]]
"""Name of an option to its values, the usual one first."""

_known: dict[tuple[int, tuple[tuple[str, tuple[str, ...]], ...]], tuple[Component, Component]] = {}
"""With the component that it was made of, which so stays the only one of its identity."""


def with_options(component: Component, options: Options) -> Component:
    """Return the component whose cases have these options; itself if there are none.

    Raises
    ------
    UsageError
        If an option has the name of an axis, or no value.
    """
    if not options:
        return component
    key = id(component), tuple(options.items())
    if key not in _known:
        _known[key] = component, _made(component, options)
    return _known[key][1]


def _made(component: Component, options: Options) -> Component:
    fields = {field.name for field in dataclasses.fields(component.case_type)}
    for name, values in options.items():
        if name in component.axes or name in fields:
            raise UsageError(f"an option of {component.name} is called {name}, as an axis or a field of its cases is")
        if not values:
            raise UsageError(f"option {name} of {component.name} has no value")
    case_type = dataclasses.make_dataclass(
        component.case_type.__name__,
        [(name, str, _field(values[0])) for name, values in options.items()],
        bases=(component.case_type,),
        frozen=True,
    )
    return dataclasses.replace(
        component,
        case_type=case_type,
        axes={**component.axes, **{name: Axis("an option of the implementation", options[name]) for name in options}},
        strategy=functools.partial(_strategy, component, options, case_type),
        inputs=lambda case: _with_values(component.inputs(case), _values(case, options)),
        relations=tuple(_told(one, options) for one in component.relations),
        values=lambda case: {
            **component.values(case),
            **{name: (one,) for name, one in _values(case, options).items()},
        },
        features=lambda case: [*component.features(case), *_unusual(case, options)],
        describe=lambda case: " · ".join([component.describe(case), *_unusual(case, options)]),
        check_case=functools.partial(_check_case, component, options),
    )


def _field(usual: str) -> Any:  # noqa: ANN401 - as dataclasses have it
    return dataclasses.field(default=usual, metadata={OPTION: True})


def _values(case: AnyCase, options: Options) -> dict[str, str]:
    return {name: getattr(case, name) for name in options}


def _unusual(case: AnyCase, options: Options) -> list[str]:
    return [f"{name} {value}" for name, value in _values(case, options).items() if value != options[name][0]]


def _check_case(component: Component, options: Options, case: AnyCase) -> None:
    component.check_case(case)
    for name, value in _values(case, options).items():
        if value not in options[name]:
            raise ValueError(f"{name} is one of {', '.join(options[name])}, got {value}")


def _strategy(
    component: Component, options: Options, case_type: type, constraints: Constraints
) -> st.SearchStrategy[AnyCase]:
    """Draw the values of options, and then a case within the boxes that have them."""
    values, strategies = [], []
    for its, within in _choices(options, constraints):
        values.append(its)
        strategies.append(component.strategy(within))
    draws = [draw for strategy in strategies if (draw := draw_of(strategy)) is not None]
    places = range(len(values))

    def with_values(place: int, case: AnyCase) -> AnyCase:
        return case_type(**_fields(case), **values[place])

    def draw_one(choose: Chooser) -> AnyCase:
        assume(values)
        place = choose.pick(places)
        return with_values(place, draws[place](choose))

    @st.composite
    def cases(draw: st.DrawFn) -> AnyCase:
        place = draw(st.sampled_from(places))
        return with_values(place, draw(strategies[place]))

    return chosen(draw_one) if len(draws) == len(values) else cases()


def _choices(options: Options, constraints: Constraints) -> Iterator[tuple[dict[str, str], Constraints]]:
    """Yield the values that options can have together, the usual ones first, and what is allowed beside them."""
    for chosen_values in itertools.product(*options.values()):
        values = dict(zip(options, chosen_values, strict=True))
        boxes = tuple(_without(box, options) for box in constraints.boxes if _allows(box, values))
        if boxes:
            yield values, Constraints(boxes)


def _allows(box: Box, values: Mapping[str, str]) -> bool:
    return all(name not in box or allows(box[name], value) for name, value in values.items())


def _without(box: Box, names: Collection[str]) -> Box:
    return {axis: allowed for axis, allowed in box.items() if axis not in names}


def _fields(item: Any) -> dict[str, Any]:  # noqa: ANN401 - a case or inputs
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}


def _with_values(inputs: AnyInputs, values: Mapping[str, str]) -> AnyInputs:
    if hasattr(inputs, "options"):  # of a component that has other options already
        return dataclasses.replace(inputs, options={**inputs.options, **values})
    kind: type = type(inputs)
    return _inputs_type(kind)(**_fields(inputs), options=dict(values))


def _told(relation: Property, options: Options) -> Property:
    """Return a relation whose runs have the options of its case, also with inputs that it builds itself."""

    def check(subject: Subject, case: AnyCase) -> Comparison:
        item, values = subject.implementation, _values(case, options)
        factory = item.factory
        told = dataclasses.replace(
            item,
            function=_completing(item.function, values),
            factory=None if factory is None else lambda: _completing(factory(), values),
        )
        return relation.check(dataclasses.replace(subject, implementation=told), case)

    return dataclasses.replace(relation, check=check)


def _completing(function: ImplementationFunction, values: Mapping[str, str]) -> ImplementationFunction:
    """Return a function that gives its inputs these options where they carry none."""
    return lambda inputs, target: function(
        inputs if hasattr(inputs, "options") else _with_values(inputs, values), target
    )


@functools.cache
def _inputs_type(kind: type) -> Any:  # noqa: ANN401 - a dataclass
    """Make the type of inputs that carry options; reference and adapters see what they know of them."""
    options: Any = dataclasses.field(default_factory=dict)
    made = dataclasses.make_dataclass(kind.__name__, [("options", dict[str, str], options)], bases=(kind,), frozen=True)
    made.__module__ = kind.__module__
    return made
