"""One way of computing a component, and the decorator that makes one from a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npudiff.constraints import Box, Constraints

ImplementationFunction = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Implementation:
    """One way of computing a component on a target.

    Attributes
    ----------
    component : str
        Name of the component.
    name : str
        Name in listings, unique within the component.
    function : callable
        Called as ``function(inputs, target)`` with inputs on the host; it moves them to ``target.device`` and returns
        one tensor, or a mapping from output name to tensor. It may leave out outputs that it does not compute.
    constraints : Constraints
        The cases that the implementation supports.
    summary : str
        One line for listings: the first line of the function's docstring.
    wrong : str or None
        For a mutant, the real bug that it re-creates; a run is expected to find it.
    origin : str
        Module or file that it comes from.
    """

    component: str
    name: str
    function: ImplementationFunction
    constraints: Constraints = field(default_factory=Constraints)
    summary: str = ""
    wrong: str | None = None
    origin: str = ""

    def __call__(self, inputs: Any, target: Any) -> Any:  # noqa: ANN401 - the component's own contract
        """Run it."""
        return self.function(inputs, target)


def implementation(
    component: str,
    *,
    name: str,
    supports: Box | Sequence[Box] | None = None,
    wrong: str | None = None,
) -> Callable[[ImplementationFunction], Implementation]:
    """Turn a function ``f(inputs, target)`` into an implementation that npudiff finds.

    Parameters
    ----------
    component : str
        Name of the component that the function computes.
    name : str
        Name in listings.
    supports : mapping or sequence of mappings, optional
        Allowed values per axis, or alternatives of that; cases are drawn within. ``npudiff list COMPONENT`` shows the
        axes. By default everything is supported.
    wrong : str, optional
        Marks a mutant and names the bug that it re-creates.

    Examples
    --------
    >>> import npudiff
    >>> @npudiff.implementation("swa_mask", name="mine", supports={"batch": range(1, 9)})
    ... def swa_mask(inputs, target):
    ...     return my_kernel(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
    """

    def decorate(function: ImplementationFunction) -> Implementation:
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        constraints = Constraints() if supports is None else Constraints.of(supports)
        return Implementation(component, name, function, constraints, summary, wrong, function.__module__)

    return decorate


def outputs_of(result: object, names: Sequence[str]) -> Mapping[str, Any]:
    """Name the outputs of an implementation: a mapping as it is, a single tensor as the first output.

    Raises
    ------
    TypeError
        If the result is neither, or names an output that the component does not have.
    """
    if isinstance(result, Mapping):
        strange = [name for name in result if name not in names]
        if strange or not result:
            raise TypeError(f"an implementation must return outputs among {list(names)}, got {list(result)}")
        return result
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return {names[0]: result}
    raise TypeError(
        f"an implementation must return a tensor or a mapping of {list(names)}, got {type(result).__name__}"
    )
