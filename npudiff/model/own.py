"""Components and properties in a user's file: the decorators that make them of a reference and of a transformation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npudiff.errors import UsageError
from npudiff.model.component import Component, ExpectedOutput, Property
from npudiff.model.ranks import Ranks

if TYPE_CHECKING:
    from npudiff.model.case import DeclaredCase
    from npudiff.model.constraints import Box

Reference = Callable[[Any], Any]


def component(
    case: type[DeclaredCase],
    *,
    outputs: Sequence[str] = ("output",),
    inputs: Callable[[Any], Any] | None = None,
    name: str | None = None,
    relations: Sequence[Property[Any]] = (),
    profiles: Mapping[str, Box] | None = None,
    ranks: Ranks | None = None,
) -> Callable[[Reference], Component]:
    """Turn a reference into a component, which ``--component FILE`` finds.

    Everything else follows from the case: what is drawn, what may be asked for, how it reads.

    Parameters
    ----------
    case : type
        A frozen dataclass that derives from ``npudiff.Case``. It has a method ``inputs`` that returns the inputs, a
        frozen dataclass of tensors and plain values, unless ``inputs=`` is given.
    outputs : sequence of str
        Names of the outputs; the reference may return the only one as it is.
    inputs : callable, optional
        Case to inputs.
    name : str, optional
        Name of the component; by default that of the function.
    relations : sequence of Property, optional
        What must hold besides, as ``npudiff.relation`` makes it.
    profiles : mapping, optional
        Production sizes, by model name, as values of axes.
    ranks : Ranks, optional
        How inputs are split and outputs put together, where several processes compute them together.

    Returns
    -------
    callable
        Decorates ``f(inputs)``, which returns what is expected of each output: ``Inexact.expected(dtype)``,
        ``reference.bounds.Expected``, or ``reference.bounds.exactly(tensor)``.

    Examples
    --------
    >>> @npudiff.component(DoubleCase)
    ... def double(inputs):
    ...     "Twice the input, rounded once."
    ...     return Inexact.exact(inputs.x).times(2.0).expected(inputs.x.dtype)
    """
    made = inputs or getattr(case, "inputs", None)
    if made is None:
        raise UsageError(f"{case.__name__} has no method inputs(), and none is given by inputs=")

    def decorate(reference: Reference) -> Component:
        def expected(given: Any) -> Mapping[str, ExpectedOutput]:  # noqa: ANN401 - inputs of the component
            answer = reference(given)
            return answer if isinstance(answer, Mapping) else {outputs[0]: answer}

        expected.__doc__ = reference.__doc__
        return Component(
            name=name or reference.__name__,
            summary=(inspect.getdoc(reference) or "").partition("\n")[0].rstrip("."),
            case_type=case,
            outputs=tuple(outputs),
            inputs=made,
            reference=expected,
            relations=tuple(relations),
            profiles=profiles or {},
            ranks=ranks,
        )

    return decorate


@dataclass(frozen=True)
class OwnProperty:
    """A property that a user's file adds to a component that is there."""

    component: str
    """Its name."""
    prop: Property[Any]


def property_of(
    component: str, *, name: str | None = None, within: Box | None = None, example_ratio: float = 0.1
) -> Callable[[Callable[[Any, Any], Any]], OwnProperty]:
    """Turn ``f(subject, case)`` into a property of a component that is there, which ``--component FILE`` finds.

    Parameters
    ----------
    component : str
        Name of the component.
    name : str, optional
        Name of the property; by default that of the function.
    within : mapping, optional
        Axes that it narrows, so that its cases apply and stay cheap.
    example_ratio : float, optional
        Examples per example of equivalence.

    Returns
    -------
    callable
        Decorates a function that returns a comparison of runs, such as ``npudiff.same_bits(one, other, "why")``;
        ``subject.run(inputs)`` runs the implementation, ``subject.component.inputs(case)`` builds the case's inputs.
    """

    def decorate(check: Callable[[Any, Any], Any]) -> OwnProperty:
        summary = (inspect.getdoc(check) or "").partition("\n")[0].rstrip(".")
        return OwnProperty(component, Property(name or check.__name__, summary, check, within or {}, {}, example_ratio))

    return decorate
